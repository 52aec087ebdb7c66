"""Configuration: YAML files and `key=value` overrides in, one resolved and checked config out.

    config = compose("train", ["trainer=npo", "trainer.beta=0.5"], configs=path, schema=RunSettings)
    trainer = build(config.trainer, model=model)

`configs/<entry>.yaml` names the default choice of each group (`trainer: npo`) and sets the entry's
own settings, which the dataclass `schema` declares. `configs/<group>/<choice>.yaml` holds
`class: dotted.path` and settings, which the nested dataclass `Config` of that class declares. The
dotted path is the only list of classes there is: `my_lab.method.Mine` works as `trainers.npo.NPO`
does, and `class: null` says that the part is absent. A resolved config holds every default, and
composing it again (as `base`) gives the same config. Nothing is interpolated, neither from another
file nor from the environment.
"""

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError
from .schema import MISSING, Argument, default_of, hint, in_words, meanings, shown, typed, untyped

NAME = re.compile(r"\w[\w.+-]*")


class Setting(NamedTuple):
    """A line of a command's help: a group and its choices, or a setting, its type and meaning."""

    name: str
    default: str
    allowed: tuple[str, ...]
    meaning: str = ""


def compose(
    entry: str,
    overrides: Sequence[str],
    *,
    configs: Path,
    schema: type,
    base: Path | None = None,
    kinds: Mapping[str, type] | None = None,
) -> DictConfig:
    """The resolved, read-only config: an entry's defaults, then the file `base`, then `overrides`.

    `group=choice` exchanges a whole section; `group.key=value` and `key=value` set one value. Of
    two overrides of one value the later wins. `kinds`: what the class of a group must be.
    """
    tree = _read(configs / f"{entry}.yaml")
    groups = [key for key in tree if (configs / key).is_dir()]
    if base is not None:
        tree |= _read(base)
    arguments = [_split(override) for override in overrides]
    for keys, value in arguments:
        if len(keys) == 1 and keys[0] in groups:
            tree[keys[0]] = value.text
    for group in groups:
        tree[group] = _section(tree[group], group, configs)
    for keys, value in arguments:
        if keys[0] not in groups or len(keys) > 1:
            _set(tree, keys, value)
    kind_of = {group: (kinds or {}).get(group, object) for group in groups}
    for group in groups:
        _check_choice(tree[group], group, kind_of[group], configs)
    _check_names(tree, groups, schema)
    settings = {key: value for key, value in tree.items() if key not in groups}
    resolved = untyped(typed(schema, settings, ""))
    for group in groups:
        resolved[group] = _resolved(tree[group], group, choices(configs, group), kind_of[group])
    return _frozen(resolved)


def build(section: DictConfig | Mapping[str, object], **context: object) -> Any:
    """An instance of the section's class, given its `Config` and the context; None if absent."""
    part, settings = part_of(section)
    return None if part is None else part(settings, **context)


def part_of(section: DictConfig | Mapping[str, object]) -> tuple[Any, Any]:
    """The section's class and an instance of its `Config`; None and None if the part is absent."""
    settings = plain(section)
    name, path = settings.pop("name", ""), settings.pop("class", None)
    if path is None:
        return None, None
    part, schema = _import(path, str(name))
    return part, typed(schema, settings, str(name))


def choices(configs: Path, group: str) -> list[str]:
    """The names that `group=` accepts, sorted."""
    return sorted(file.stem for file in (configs / group).glob("*.yaml"))


def describe(configs: Path, entry: str, schema: type) -> list[Setting]:
    """An entry's help: each group with its default and choices, each setting as it is meant."""
    tree = _read(configs / f"{entry}.yaml")
    groups = [key for key in tree if (configs / key).is_dir()]
    lines = [Setting(key, str(tree[key]), tuple(choices(configs, key))) for key in groups]
    hints, told = get_type_hints(schema), meanings(schema)
    for field in dataclasses.fields(schema):
        value = tree.get(field.name, default_of(field))
        default = "required" if value == MISSING else shown(value).strip("'")
        allowed = (in_words(hints[field.name]),)
        lines.append(Setting(field.name, default, allowed, told.get(field.name, "")))
    return lines


def save(config: DictConfig, path: Path) -> None:
    """Write a resolved config as YAML; the file appears whole."""
    partial = path.with_suffix(".partial")
    OmegaConf.save(config, partial)
    partial.replace(path)


def load(path: Path) -> DictConfig:
    """A read-only config as `save` wrote it."""
    return _frozen(_read(path))


def _frozen(settings: dict[str, Any]) -> DictConfig:
    config = OmegaConf.create(settings)
    OmegaConf.set_readonly(config, value=True)
    return config


def _read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file."""
    if not path.is_file():
        inside = path / "config.yaml"
        raise ConfigError(
            f"no config file at {path}{f'; did you mean {inside}?' if inside.is_file() else ''}"
        )
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {path}: {reason}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path} must hold `key: value` lines")
    return plain(content)


def plain(section: DictConfig | Mapping[str, object]) -> dict[str, Any]:
    """A copy of the section as a dict."""
    if isinstance(section, DictConfig):
        found = OmegaConf.to_container(section, resolve=False)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}
    return dict(section)


def _split(override: str) -> tuple[list[str], Argument]:
    """The keys and the value of `a.b=value`."""
    key, separator, text = override.partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"{override!r} is not of the form key=value, such as trainer=npo")
    try:
        value = plain(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        value = text  # not YAML: fine for a str, refused by any other type
    return keys, Argument(text, value)


def _set(tree: dict[str, Any], keys: Sequence[str], value: Argument) -> None:
    """Put a value at its place in a tree of dicts."""
    for key in keys[:-1]:
        below = tree.get(key)
        below = below.value if isinstance(below, Argument) else below
        tree[key] = dict(below) if isinstance(below, Mapping) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _check_names(tree: Mapping[str, Any], groups: Sequence[str], schema: type) -> None:
    """Refuse a setting that is elsewhere, and say where; and what is neither setting nor group."""
    names = {"": _names(schema)}
    for group in groups:
        path = untyped(tree[group]["class"])
        if isinstance(path, str):
            names[group] = _names(_import(path, group)[1])
    for group, own in names.items():
        beside = ["name", "class"] if group else groups
        for key in tree[group] if group else tree:
            places = [f"{place}.{key}".lstrip(".") for place in names if key in names[place]]
            if places and key not in (*own, *beside):
                given = f"{group}.{key}".lstrip(".")
                raise ConfigError(f"unknown setting {given!r}; it is {' or '.join(places)}")
    known = [*groups, *names[""]]
    for key in tree:
        if key not in known:
            raise ConfigError(f"unknown setting {key!r}{hint(key, known, 'settings')}")


def _check_choice(section: Mapping[str, Any], group: str, kind: type, configs: Path) -> None:
    """Refuse a setting that other choices of the group have, and say which."""
    path = untyped(section["class"])
    part, schema = _import(path, group) if isinstance(path, str) else (None, None)
    if part is not None and not issubclass(part, kind):
        return  # what is wrong is the class
    own = [] if schema is None else _names(schema)
    for key in section:
        if key in ("name", "class", *own) or hint(str(key), own):
            continue
        files = {x: _read(configs / group / f"{x}.yaml") for x in choices(configs, group)}
        written = {str(name).lower(): name for own_of in files.values() for name in own_of}
        meant = written.get(str(key).lower(), key)
        others = [choice for choice, settings in files.items() if meant in settings]
        name = untyped(section["name"])
        if others and name not in others:  # its own file's is of another class than that file's
            there = " or ".join(f"{group}={choice}" for choice in others)
            close = "" if meant == key else f"; did you mean {meant!r}"
            told = f"{key!r}{close}, which is one of {there}{'?' if close else ''}"
            raise ConfigError(f"{group}={name} has no setting {told}")


def _names(schema: type) -> list[str]:
    """The settings that a dataclass declares."""
    return [field.name for field in dataclasses.fields(schema) if field.init]


def _section(given: object, group: str, configs: Path) -> dict[str, Any]:
    """A group's settings, from its choice's file or as a resolved config holds them."""
    if isinstance(given, Mapping):
        if not {"name", "class"} <= given.keys():
            raise ConfigError(f"{group} must be a choice, or hold `name`, `class` and settings")
        if not NAME.fullmatch(str(given["name"])):  # it becomes a part of folders' names
            raise ConfigError(
                f"{group}.name must be letters, digits and .+-_, got {given['name']!r}"
            )
        return dict(given)
    name, allowed = str(given), choices(configs, group)
    if name not in allowed:
        raise ConfigError(f"no {group} is called {name!r}{hint(name, allowed, 'choices')}")
    path = configs / group / f"{name}.yaml"
    settings = _read(path)
    if "class" not in settings:
        raise ConfigError(f"{path} must hold `class: <dotted path>`, or `class: null` for none")
    if "name" in settings:
        raise ConfigError(f"{path} must not hold `name`, which is the file's own name")
    return {"name": name, **settings}


def _resolved(
    section: dict[str, Any], group: str, allowed: Sequence[str], kind: type
) -> dict[str, Any]:
    """The section with all defaults of its class filled in and every value checked."""
    settings = dict(section)
    name = settings.pop("name")
    if isinstance(name, Argument):
        others = hint("", allowed, "choices")
        raise ConfigError(f"{group}.name cannot be set; type {group}=<choice>{others}")
    path = typed(str | None, settings.pop("class"), f"{group}.class")
    if path is not None:
        part, schema = _import(path, group)
        if not issubclass(part, kind):
            raise ConfigError(
                f"{group}.class: {path!r} is no {kind.__name__}; choose {group}=<choice>"
                f"{hint('', allowed, 'choices')}"
            )
        return {"name": name, "class": path, **untyped(typed(schema, settings, group))}
    for key in settings:
        others = hint("", allowed, "choices")
        raise ConfigError(
            f"{group}={name} has no setting {key!r}; choose {group}=<choice> first{others}"
        )
    return {"name": name, "class": None}


def _import(path: str, group: str) -> tuple[Any, type]:
    """The class at a dotted path and its nested `Config`."""
    module, _, name = path.rpartition(".")
    if not all(module.split(".")):
        raise ConfigError(f"{group}.class must be like my_package.my_module.MyClass, got {path!r}")
    try:
        names = vars(importlib.import_module(module))
    except ImportError as error:
        raise ConfigError(f"{group}.class: cannot import {path!r}: {error}") from error
    if name not in names:
        close = hint(name, [key for key, value in names.items() if isinstance(value, type)])
        raise ConfigError(f"{group}.class: {module!r} has no {name!r}{close}")
    schema = getattr(names[name], "Config", None)
    if not isinstance(schema, type) or not dataclasses.is_dataclass(schema):
        raise ConfigError(f"{group}.class: {path!r} has no nested dataclass `Config`")
    return names[name], schema

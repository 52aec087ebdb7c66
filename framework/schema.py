"""Settings checked against dataclasses: plain YAML values in, typed instances out, and back again.

    typed(Config, {"beta": 1}, "trainer")  ->  Config(beta=1.0), all defaults filled in
    untyped(Config(beta=1.0))              ->  {"beta": 1.0}

A dataclass's annotations say what is allowed: bool, int, float, str, Path, None, Literal, lists,
tuples, dicts, unions and further dataclasses. A value of another type is refused with its path, not
converted; only ints widen to floats. OmegaConf's own check is not used: it turns 7 into the text
"7", knows no Literal, and its messages take several lines.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError, LetheError

MISSING = "???"  # the mark of a value that must be given, as in OmegaConf
NAMES = {bool: "a bool", int: "an int", float: "a float", str: "a str", Path: "a path"}


@dataclasses.dataclass(frozen=True)
class Argument:
    """A value from the command line: its text, and what YAML reads in it. The type decides."""

    text: str
    value: Any


def _value(given: Any) -> Any:
    return given.value if isinstance(given, Argument) else given


def typed(annotation: Any, given: Any, path: str) -> Any:
    """The given value as one of the annotated type; a dataclass is made of a mapping."""
    value, text = _value(given), given.text if isinstance(given, Argument) else given
    kind, options = get_origin(annotation), get_args(annotation)
    if isinstance(text, str) and text == MISSING:
        raise ConfigError(f"{path} must be given: {in_words(annotation)}")
    if isinstance(text, str) and "${" in text:
        raise ConfigError(f"{path} must not hold '${{' (nothing is interpolated), got {text!r}")
    if annotation is Any:
        return _anything(value, path)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping | annotation):
        return _instance(annotation, value, path)
    if kind in (Union, types.UnionType):
        return _first(options, given, path)
    if kind is Literal:
        for option in options:  # `mode=off` is the text "off" if that is allowed, not false
            if any(type(option) is type(found) and option == found for found in (value, text)):
                return option
    if kind in (list, tuple, dict) and isinstance(value, list | tuple | Mapping):
        return _collection(annotation, value, path)
    return _scalar(annotation, given, path)


def _collection(annotation: Any, value: Any, path: str) -> Any:
    """The given items as those of the annotated list, tuple or dict."""
    kind, options = get_origin(annotation), get_args(annotation)
    if kind is dict and isinstance(value, Mapping):
        _check_colons(value, path)
        return {str(key): typed(options[1], v, f"{path}.{key}") for key, v in value.items()}
    if kind is dict or isinstance(value, Mapping):
        raise ConfigError(f"{path} must be {in_words(annotation)}, got {shown(value)}")
    one_type = kind is list or options[1:] == (...,)
    items = options[:1] * len(value) if one_type else options
    if len(items) != len(value):
        raise ConfigError(f"{path} must be a list of {len(items)}, got {shown(value)}")
    pairs = enumerate(zip(items, value, strict=True))
    return kind(typed(item, v, f"{path}[{i}]") for i, (item, v) in pairs)


def _check_colons(given: Mapping[Any, Any], path: str) -> None:
    """Refuse `{a:1}`, which to YAML is the key `a:1` without a value."""
    for key, value in given.items():
        name, colon, rest = str(key).partition(":")
        if colon and _value(value) is None:
            place = f"{path}: " if path else ""
            raise ConfigError(f"{place}write `{name}: {rest}`, with a space after the colon")


def _scalar(annotation: Any, given: Any, path: str) -> Any:
    """The given value as a bool, int, float, str, Path or None; else the error that says so."""
    value = _value(given)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is type(None) and value is None:
        return None
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is float and number:
        return float(value)
    if annotation is int and number and value == value // 1:  # 1e3 is an int to a person
        return int(value)
    if annotation in (str, Path):
        if isinstance(value, str | Path):
            return annotation(value)
        if isinstance(given, Argument) and (value is not None or not given.text):
            return annotation(given.text)  # `name=007` is the text as typed, not 7
    raise ConfigError(f"{path} must be {in_words(annotation)}, got {shown(value)}")


def _anything(value: Any, path: str) -> Any:
    """A value of no declared type, searched for what no setting may hold."""
    if isinstance(value, Mapping):
        return {str(key): typed(Any, item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [typed(Any, item, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def _first(options: Sequence[Any], given: Any, path: str) -> Any:
    """The given value as the first of several types that it fits."""
    errors = []
    for option in options:
        try:
            return typed(option, given, path)
        except ConfigError as error:
            errors.append((option, error))
    value = _value(given)
    if isinstance(value, Mapping | list):  # the error of the type that looks inside says more
        for option, reason in errors:
            inside = dict if dataclasses.is_dataclass(option) else get_origin(option)
            if inside in (dict, list, tuple):
                raise reason
    wanted = " or ".join(in_words(option) for option in options)
    raise ConfigError(f"{path} must be {wanted}, got {shown(value)}")


def _instance(schema: Any, given: Any, path: str, start: Any = None) -> Any:
    """The dataclass with the given settings; the rest from `start`, else from its defaults."""
    settings = given if isinstance(given, Mapping) else untyped(given)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    hints = get_type_hints(schema)
    prefix = f"{path}." if path else ""
    _check_colons(settings, path)
    for key in settings:
        if key not in fields:
            close = hint(str(key), list(fields), "settings")
            raise ConfigError(f"unknown setting {prefix + str(key)!r}{close}")
    values = {}
    for name, field in fields.items():
        default = default_of(field) if start is None else getattr(start, name)
        value = settings.get(name, default)
        inner = _value(value)
        if isinstance(inner, Mapping) and dataclasses.is_dataclass(default):
            value = _instance(type(default), inner, prefix + name, default)
        values[name] = typed(hints[name], value, prefix + name)
    try:
        return schema(**values)
    except LetheError:
        raise
    except ValueError as error:  # a check of the dataclass itself, in __post_init__
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The field's default, or `MISSING`."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING


def meanings(schema: type) -> dict[str, str]:
    """The first sentence of each setting's docstring, in one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for setting, told in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(setting, ast.AnnAssign) and isinstance(told, ast.Expr):
            assert isinstance(setting.target, ast.Name)
            text = " ".join(str(ast.literal_eval(told.value)).split())
            found[setting.target.id] = text.partition(". ")[0].removesuffix(".")
    return found


def untyped(value: Any) -> Any:
    """The value as YAML has it: dataclasses as mappings, tuples as lists, paths as text."""
    if isinstance(value, Argument):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: untyped(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {key: untyped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [untyped(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def in_words(annotation: Any) -> str:
    """The type in words, such as `an int or null`."""
    kind, options = get_origin(annotation), get_args(annotation)
    if kind in (Union, types.UnionType):
        return " or ".join(in_words(option) for option in options)
    if kind is Literal:
        return " or ".join(shown(option) for option in options)
    if kind in (list, tuple):
        return "a list"
    if kind is dict or dataclasses.is_dataclass(annotation):
        return "a mapping"
    return "null" if annotation is type(None) else NAMES.get(annotation, str(annotation))


def shown(value: Any) -> str:
    """The value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(untyped(value))


def hint(key: str, allowed: Sequence[str], noun: str = "") -> str:
    """What a mistyped name may have meant, and all that is allowed."""
    written = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(key.lower(), written, n=1)
    meant = f"; did you mean {written[close[0]]!r}?" if close else ""
    return f"{meant} ({noun}: {', '.join(allowed) or 'none'})" if noun else meant

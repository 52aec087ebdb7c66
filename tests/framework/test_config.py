"""Composing, checking, saving and building configs, and the one line that each mistake gives."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from framework.config import Setting, build, choices, compose, describe, load, part_of, save
from framework.errors import ConfigError, LetheError

HERE = "a_laboratory"


@dataclass
class Wording:
    style: Literal["plain", "chat"] = "plain"
    separator: str = " "


class Part:
    """What a section builds: it remembers its config and its context."""

    def __init__(self, config: Any, model: str = "") -> None:
        self.config = config
        self.model = model


class Ascent(Part):
    @dataclass
    class Config:
        retain_weight: float = 1
        seed: int | None = None


class Npo(Ascent):
    @dataclass
    class Config(Ascent.Config):
        beta: float = 0.1
        layers: list[int] = field(default_factory=lambda: [1, 2])

        def __post_init__(self) -> None:
            if self.beta <= 0:
                raise ValueError(f"beta must be > 0, got {self.beta}")
            if self.beta > 1000:
                raise LetheError("trainer.beta is beyond what fp32 holds")


class Questions(Part):
    @dataclass
    class Config:
        path: str
        wording: Wording = field(default_factory=lambda: Wording(separator="\n"))
        betas: tuple[float, float] = (0.9, 0.999)
        rate: float | Literal["auto"] = "auto"
        where: Path = Path("data")


class NoConfig(Part):
    Config = None


@dataclass
class Run:
    name: str
    steps: int = 10
    resume: Literal["auto", "off"] = "auto"
    note: str | None = None
    share: bool = False


FILES = {
    "train.yaml": (
        "trainer: ascent\nbenchmark: questions\nperturbation: none\nname: first\nsteps: 5\n"
    ),
    "trainer/ascent.yaml": f"class: {HERE}.Ascent\n",
    "trainer/npo.yaml": f"# NPO\nclass: {HERE}.Npo\nbeta: 1e-2\n",
    "benchmark/questions.yaml": f"class: {HERE}.Questions\npath: rows.jsonl\n",
    "perturbation/none.yaml": "class: null\n",
    "perturbation/sam.yaml": f"class: {HERE}.Ascent\n",
}


@pytest.fixture(autouse=True)
def a_laboratory(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module under a name that a config can import."""
    module = ModuleType(HERE)
    vars(module).update({c.__name__: c for c in (Ascent, Npo, Questions, NoConfig)})
    monkeypatch.setitem(sys.modules, HERE, module)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path / "configs" / name, text)
    return tmp_path / "configs"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(configs: Path, *overrides: str, base: Path | None = None) -> DictConfig:
    return compose("train", overrides, configs=configs, schema=Run, base=base)


def mistake(configs: Path, *overrides: str, base: Path | None = None) -> str:
    """The one line that these overrides give."""
    with pytest.raises(ConfigError) as caught:
        run(configs, *overrides, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a config holds


def test_every_default_is_filled_in(configs):
    assert OmegaConf.to_container(run(configs)) == {
        "name": "first",
        "steps": 5,
        "resume": "auto",
        "note": None,
        "share": False,
        "trainer": {
            "name": "ascent",
            "class": f"{HERE}.Ascent",
            "retain_weight": 1.0,
            "seed": None,
        },
        "benchmark": {
            "name": "questions",
            "class": f"{HERE}.Questions",
            "path": "rows.jsonl",
            "wording": {"style": "plain", "separator": "\n"},
            "betas": [0.9, 0.999],
            "rate": "auto",
            "where": "data",
        },
        "perturbation": {"name": "none", "class": None},
    }


def test_a_choice_exchanges_the_whole_section_wherever_it_stands(configs):
    config = run(configs, "trainer.retain_weight=2", "trainer=npo")
    assert OmegaConf.to_container(config.trainer) == {
        "name": "npo",
        "class": f"{HERE}.Npo",
        "retain_weight": 2.0,
        "seed": None,
        "beta": 0.01,
        "layers": [1, 2],
    }


def test_of_two_overrides_the_later_wins(configs):
    assert run(configs, "steps=1", "steps=2").steps == 2
    assert run(configs, "trainer=npo", "trainer=ascent").trainer.name == "ascent"


def test_a_class_of_one_s_own_needs_no_file(configs):
    config = run(configs, f"trainer.class={HERE}.Npo", "trainer.beta=3")
    assert (config.trainer.name, config.trainer.beta) == ("ascent", 3.0)


def test_a_choice_may_be_a_number(configs):
    write(configs / "perturbation/2.yaml", "class: null\n")
    assert run(configs, "perturbation=2").perturbation.name == "2"
    write(configs / "train.yaml", FILES["train.yaml"].replace("none", "2"))
    assert run(configs).perturbation.name == "2"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.retain_weight=1e-5", "trainer.retain_weight", 1e-5),
        ("trainer.retain_weight=3", "trainer.retain_weight", 3.0),
        ("trainer.retain_weight=.inf", "trainer.retain_weight", float("inf")),
        ("trainer.seed=7", "trainer.seed", 7),
        ("trainer.seed=null", "trainer.seed", None),
        ("steps=1e3", "steps", 1000),
        ("share=true", "share", True),
        ("name=007", "name", "007"),
        ("name=12e4567", "name", "12e4567"),
        ("name='quoted'", "name", "quoted"),
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("name={prompt}: [", "name", "{prompt}: ["),
        ("name=Q: {prompt}", "name", "Q: {prompt}"),
        ("resume=off", "resume", "off"),
        ("note=off", "note", "off"),
        ("note=null", "note", None),
        ("benchmark.rate=1e-4", "benchmark.rate", 1e-4),
        ("benchmark.betas=[0.5, 1]", "benchmark.betas", [0.5, 1.0]),
        ("benchmark.where=/tmp", "benchmark.where", "/tmp"),  # noqa: S108
        ("benchmark.wording.style=chat", "benchmark.wording.style", "chat"),
        ("benchmark.wording={style: chat}", "benchmark.wording.separator", "\n"),
    ],
)
def test_a_value_is_read_as_the_setting_s_type(configs, override, key, value):
    found = OmegaConf.select(run(configs, override), key)
    assert found == value
    assert type(found) is type(value) or isinstance(value, list)


def test_one_setting_of_a_nested_dataclass_keeps_the_others(configs):
    overrides = ["benchmark.wording={style: chat}", "benchmark.wording.separator=x"]
    assert run(configs, *overrides).benchmark.wording == {"style": "chat", "separator": "x"}
    assert run(configs, overrides[1]).benchmark.wording == {"style": "plain", "separator": "x"}


def test_a_floating_point_number_in_a_file_is_a_number(configs):
    assert run(configs, "trainer=npo").trainer.beta == 0.01


def test_a_config_cannot_be_changed(configs):
    with pytest.raises(ReadonlyConfigError):
        run(configs).trainer.seed = 3


# Starting from a config file


def test_a_saved_config_composes_to_itself(configs, tmp_path):
    overrides = ["trainer=npo", "trainer.layers=[]", "name=1e-5", "note='null'", "steps=1e3"]
    first = run(configs, *overrides)
    save(first, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == first
    again = run(configs, base=tmp_path / "config.yaml")
    assert again == first
    save(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


TEXT = st.text().filter(lambda text: "${" not in text and text != "???")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=TEXT,
    note=st.none() | TEXT,
    weight=st.floats(allow_nan=False),
    seed=st.none() | st.integers(),
    layers=st.lists(st.integers()),
)
def test_every_value_survives_saving(configs, name, note, weight, seed, layers):
    trainer = {"name": "npo", "class": f"{HERE}.Npo", "retain_weight": weight}
    given_values = {
        "name": name,
        "note": note,
        "trainer": trainer | {"seed": seed, "layers": layers},
    }
    base = write(configs / "base.yaml", yaml.safe_dump(given_values))
    first = run(configs, base=base)
    assert (first.name, first.note) == (name, note)
    assert first.trainer.retain_weight == weight
    assert (first.trainer.seed, first.trainer.layers) == (seed, layers)
    save(first, base)
    assert run(configs, base=base) == first


def test_overrides_apply_on_top_of_a_saved_config(configs, tmp_path):
    save(run(configs, "trainer=npo", "steps=7", "perturbation=sam"), tmp_path / "config.yaml")
    overrides = ["trainer.beta=5", "perturbation=none"]
    config = run(configs, *overrides, base=tmp_path / "config.yaml")
    assert (config.trainer.name, config.trainer.beta, config.steps) == ("npo", 5.0, 7)
    assert OmegaConf.to_container(config.perturbation) == {"name": "none", "class": None}


def test_a_number_as_a_setting_s_name_is_a_mistake_like_any_other(configs):
    base = write(configs / "base.yaml", f"trainer: {{name: npo, class: {HERE}.Npo, 3: 1}}\n")
    with pytest.raises(ConfigError, match=r"^unknown setting 'trainer\.3' \(settings: "):
        run(configs, base=base)


def test_a_saved_config_no_longer_depends_on_the_choices_files(configs, tmp_path):
    save(run(configs, "trainer=npo"), tmp_path / "config.yaml")
    (configs / "trainer/npo.yaml").unlink()
    assert run(configs, base=tmp_path / "config.yaml").trainer.beta == 0.01


def test_a_config_file_may_hold_choices_and_leave_out_the_rest(configs, tmp_path):
    base = write(tmp_path / "mine.yaml", "trainer: npo\nsteps: 3\n")
    config = run(configs, base=base)
    assert (config.trainer.name, config.steps, config.name) == ("npo", 3, "first")


# Building


def test_a_section_builds_its_class_with_its_config_and_the_context(configs):
    config = run(configs, "trainer=npo", "trainer.beta=0.5")
    trainer = build(config.trainer, model="llama")
    assert type(trainer) is Npo
    assert trainer.config == Npo.Config(beta=0.5)
    assert trainer.model == "llama"


def test_nested_settings_are_built_as_their_dataclasses(configs):
    benchmark = build(run(configs, "benchmark.wording.style=chat").benchmark)
    assert benchmark.config == Questions.Config(
        path="rows.jsonl", wording=Wording("chat", "\n"), betas=(0.9, 0.999), where=Path("data")
    )


def test_an_absent_part_builds_nothing(configs):
    assert build(run(configs).perturbation, model="llama") is None


def test_the_class_and_its_config_can_be_had_without_building(configs):
    config = run(configs, "trainer=npo")
    assert part_of(config.trainer) == (Npo, Npo.Config(beta=0.01))
    assert part_of(config.perturbation) == (None, None)


def test_a_section_may_be_a_plain_dict():
    assert build({"class": f"{HERE}.Npo", "beta": 2}).config.beta == 2.0


# Help


def test_the_choices_of_a_group_are_its_files(configs):
    assert choices(configs, "trainer") == ["ascent", "npo"]


def test_help_lists_groups_with_choices_and_settings_with_types(configs):
    assert describe(configs, "train", Run) == [
        Setting("trainer", "ascent", ("ascent", "npo")),
        Setting("benchmark", "questions", ("questions",)),
        Setting("perturbation", "none", ("none", "sam")),
        Setting("name", "first", ("a str",)),
        Setting("steps", "5", ("an int",)),
        Setting("resume", "auto", ("'auto' or 'off'",)),
        Setting("note", "null", ("a str or null",)),
        Setting("share", "false", ("a bool",)),
    ]


def test_help_tells_a_setting_by_the_first_sentence_of_its_docstring(configs):
    write(configs / "told.yaml", "{}\n")
    assert describe(configs, "told", Told) == [
        Setting("rows", "3", ("an int",), "Of each objective in a step, at least 1"),
        Setting("silent", "0", ("an int",)),
    ]


@dataclass
class Told:
    rows: int = 3
    """Of each objective in a step,
    at least 1. More than fit are cut."""
    silent: int = 0


def test_help_says_which_settings_are_required(configs):
    write(configs / "train.yaml", "trainer: npo\n")
    assert Setting("name", "required", ("a str",)) in describe(configs, "train", Run)


# Mistakes

ASCENT = "(settings: retain_weight, seed)"
ENTRY = "(settings: trainer, benchmark, perturbation, name, steps, resume, note, share)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer=npoo"],
            "no trainer is called 'npoo'; did you mean 'npo'? (choices: ascent, npo)",
        ),
        (["trainer=xyz"], "no trainer is called 'xyz' (choices: ascent, npo)"),
        (["trainer=../train"], "no trainer is called '../train' (choices: ascent, npo)"),
        (["trainer="], "no trainer is called '' (choices: ascent, npo)"),
        (["trainr=npo"], f"unknown setting 'trainr'; did you mean 'trainer'? {ENTRY}"),
        (["trainr.beta=1"], f"unknown setting 'trainr'; did you mean 'trainer'? {ENTRY}"),
        (["beta=1"], f"unknown setting 'beta' {ENTRY}"),
        (["trainer=npo", "beta=1"], "unknown setting 'beta'; it is trainer.beta"),
        (["trainer.steps=1"], "unknown setting 'trainer.steps'; it is steps"),
        (
            ["seed=1", "perturbation=sam"],
            "unknown setting 'seed'; it is trainer.seed or perturbation.seed",
        ),
        (["--steps=1"], f"unknown setting '--steps'; did you mean 'steps'? {ENTRY}"),
        (
            ["trainer.retain_wight=1"],
            "unknown setting 'trainer.retain_wight'; did you mean 'retain_weight'? " + ASCENT,
        ),
        (["trainer.zzz=1"], f"unknown setting 'trainer.zzz' {ASCENT}"),
        (["trainer.seed.x=1"], "trainer.seed must be an int or null, got {'x': 1}"),
        (
            ["benchmark.wording.stile=chat"],
            (
                "unknown setting 'benchmark.wording.stile'; did you mean 'style'? "
                "(settings: style, separator)"
            ),
        ),
        (
            ["perturbation.rho=1"],
            (
                "perturbation=none has no setting 'rho'; choose perturbation=<choice> first "
                "(choices: none, sam)"
            ),
        ),
        (["trainer.beta=1"], "trainer=ascent has no setting 'beta', which is one of trainer=npo"),
        (
            ["trainer.BETA=1"],
            (
                "trainer=ascent has no setting 'BETA'; "
                "did you mean 'beta', which is one of trainer=npo?"
            ),
        ),
        (["trainer=NPO"], "no trainer is called 'NPO'; did you mean 'npo'? (choices: ascent, npo)"),
        (
            ["trainer.name=x"],
            "trainer.name cannot be set; type trainer=<choice> (choices: ascent, npo)",
        ),
        (["trainer"], "'trainer' is not of the form key=value, such as trainer=npo"),
        (["=npo"], "'=npo' is not of the form key=value, such as trainer=npo"),
        (
            ["trainer..beta=1"],
            "'trainer..beta=1' is not of the form key=value, such as trainer=npo",
        ),
        (["trainer.retain_weight=abc"], "trainer.retain_weight must be a float, got 'abc'"),
        (["trainer.retain_weight=true"], "trainer.retain_weight must be a float, got true"),
        (["trainer.retain_weight="], "trainer.retain_weight must be a float, got null"),
        (["trainer.seed=1.5"], "trainer.seed must be an int or null, got 1.5"),
        (["trainer.seed=[1"], "trainer.seed must be an int or null, got '[1'"),
        (["steps=.inf"], "steps must be an int, got inf"),
        (["steps=.nan"], "steps must be an int, got nan"),
        (["steps='3'"], "steps must be an int, got '3'"),
        (["share=1"], "share must be a bool, got 1"),
        (["name=null"], "name must be a str, got null"),
        (
            ["name=${oc.env:HOME}"],
            "name must not hold '${' (nothing is interpolated), got '${oc.env:HOME}'",
        ),
        (["name=???"], "name must be given: a str"),
        (["resume=never"], "resume must be 'auto' or 'off', got 'never'"),
        (
            ["benchmark.wording.style=x"],
            "benchmark.wording.style must be 'plain' or 'chat', got 'x'",
        ),
        (["benchmark.wording=x"], "benchmark.wording must be a mapping, got 'x'"),
        (["benchmark.rate=fast"], "benchmark.rate must be a float or 'auto', got 'fast'"),
        (["benchmark.betas=[1]"], "benchmark.betas must be a list of 2, got [1]"),
        (["benchmark.betas=[1, a]"], "benchmark.betas[1] must be a float, got 'a'"),
        (["benchmark.betas=1"], "benchmark.betas must be a list, got 1"),
        (["trainer=npo", "trainer.layers=[1, a]"], "trainer.layers[1] must be an int, got 'a'"),
        (["trainer=npo", "trainer.layers={a: 1}"], "trainer.layers must be a list, got {'a': 1}"),
        (["trainer=npo", "trainer.beta=-1"], "trainer: beta must be > 0, got -1.0"),
        (
            ["trainer.class=Npo"],
            "trainer.class must be like my_package.my_module.MyClass, got 'Npo'",
        ),
        (
            ["trainer.class=nowhere.at_all.Mine"],
            "trainer.class: cannot import 'nowhere.at_all.Mine': No module named 'nowhere'",
        ),
        (
            [f"trainer.class={HERE}.Npoo"],
            f"trainer.class: '{HERE}' has no 'Npoo'; did you mean 'Npo'?",
        ),
        (
            [f"trainer.class={HERE}.NoConfig"],
            f"trainer.class: '{HERE}.NoConfig' has no nested dataclass `Config`",
        ),
    ],
)
def test_a_mistake_gives_one_line_that_says_what_to_type(
    configs: Path, overrides: Sequence[str], message: str
):
    assert mistake(configs, *overrides) == message


def test_an_error_of_the_class_itself_is_left_as_it_is(configs):
    with pytest.raises(LetheError, match=r"^trainer\.beta is beyond what fp32 holds$"):
        run(configs, "trainer=npo", "trainer.beta=1e6")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.yaml", None, "no config file at {path}"),
        ("train.yaml", "- a\n- b\n", "{path} must hold `key: value` lines"),
        (
            "train.yaml",
            "steps: [1, 2\nname: x\n",
            (
                'cannot read {path}: while parsing a flow sequence in "{path}", line 1, column 8 '
                "did "
                "not find expected ',' or ']' in \"{path}\", line 2, column 5"
            ),
        ),
        (
            "train.yaml",
            "trainer: npoo\n",
            "no trainer is called 'npoo'; did you mean 'npo'? (choices: ascent, npo)",
        ),
        ("train.yaml", "trainer: npo\n", "name must be given: a str"),
        ("train.yaml", "name: 7\n", "name must be a str, got 7"),
        (
            "train.yaml",
            "name: a ${b}\n",
            "name must not hold '${{' (nothing is interpolated), got 'a ${{b}}'",
        ),
        (
            "trainer/ascent.yaml",
            "seed: 1\n",
            "{path} must hold `class: <dotted path>`, or `class: null` for none",
        ),
        (
            "trainer/ascent.yaml",
            "name: x\nclass: null\n",
            "{path} must not hold `name`, which is the file's own name",
        ),
        (
            "trainer/ascent.yaml",
            f"class: {HERE}.Ascent\nsed: 1\n",
            "unknown setting 'trainer.sed'; did you mean 'seed'? (settings: retain_weight, seed)",
        ),
        (
            "benchmark/questions.yaml",
            f"class: {HERE}.Questions\n",
            "benchmark.path must be given: a str",
        ),
        (
            "benchmark/questions.yaml",
            f"class: {HERE}.Questions\npath: ???\n",
            "benchmark.path must be given: a str",
        ),
    ],
)
def test_a_mistake_in_a_file_gives_one_line(configs, file, text, message):
    path = configs / file
    path.unlink()
    if text is not None:
        path.write_text(text.replace("{{", "{").replace("}}", "}"))
    assert mistake(configs) == message.format(path=path)


def test_a_required_setting_of_a_file_can_be_given_by_an_override(configs):
    write(configs / "benchmark/questions.yaml", f"class: {HERE}.Questions\npath: ???\n")
    assert run(configs, "benchmark.path=mine.jsonl").benchmark.path == "mine.jsonl"


def test_a_missing_config_file_is_named(configs, tmp_path):
    assert mistake(configs, base=tmp_path / "x.yaml") == f"no config file at {tmp_path / 'x.yaml'}"
    with pytest.raises(ConfigError, match=r"^no config file at .*x\.yaml$"):
        load(tmp_path / "x.yaml")
    write(tmp_path / "run" / "config.yaml", "name: first\n")
    assert mistake(configs, base=tmp_path / "run") == (
        f"no config file at {tmp_path / 'run'}; did you mean {tmp_path / 'run' / 'config.yaml'}?"
    )


def test_a_config_file_that_is_not_of_this_entry_is_refused(configs, tmp_path):
    base = write(tmp_path / "config.yaml", "optimizer: adamw\n")
    assert mistake(configs, base=base) == f"unknown setting 'optimizer' {ENTRY}"


def test_a_section_of_a_config_file_must_say_what_it_is(configs, tmp_path):
    base = write(tmp_path / "config.yaml", "trainer: {beta: 1}\n")
    assert (
        mistake(configs, base=base)
        == "trainer must be a choice, or hold `name`, `class` and settings"
    )


# What a config from somewhere else could do


def test_a_class_of_another_kind_is_refused(configs: Path) -> None:
    kinds = {"trainer": Ascent, "perturbation": Questions}
    found = compose("train", [], configs=configs, schema=Run, kinds=kinds)
    assert found.trainer["class"] == f"{HERE}.Ascent"

    with pytest.raises(ConfigError) as caught:
        compose("train", ["perturbation=sam"], configs=configs, schema=Run, kinds=kinds)
    assert str(caught.value) == (
        f"perturbation.class: '{HERE}.Ascent' is no Questions; choose perturbation=<choice> "
        "(choices: none, sam)"
    )


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", ".hidden", "a b", ""])
def test_a_name_that_could_leave_the_output_folder_is_refused(configs: Path, name: str) -> None:
    base = configs.parent / "given.yaml"
    save(
        OmegaConf.create({**run(configs), "benchmark": {**run(configs).benchmark, "name": name}}),
        base,
    )

    assert mistake(configs, base=base) == (
        f"benchmark.name must be letters, digits and .+-_, got {name!r}"
    )

"""`launch.sweep`: what is run, what is left alone, what happens to the rest when one run fails."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import muse_folder
import pytest
import torch
from tiny import module

from framework.config import choices
from launch.settings import CONFIGS
from launch.sweep_configs import Configs
from launch.sweep_file import read_sweep

RULE = "select: {forget: [forget/rouge], retain: [retain/rouge]}"
QUICK = "trainer: finetune, finetune_on: target, max_steps: 2, save_every: 1"  # needs no target
FAILS = "trainer: finetune, finetune_on: target, max_steps: 3, optimizer.learning_rate: 1.0e+38"
METRICS = ("forget/rouge", "retain/rouge")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweeps of this file lie."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture
def sweep(shell, place: Path):
    """`launch.sweep` on a file of this text; a sweep's folder is named after its file."""

    def run(name: str, text: str, *options: str):
        file = place / f"{name}.yaml"
        file.write_text(text)
        settings = [text for text in shell.small() if not text.startswith("cache=")]
        where = [f"cache={shell.cache}", "--output", str(place / name)]
        return shell.run("sweep", str(file), *options, *where, *settings)

    return run


@pytest.fixture
def first(sweep, place: Path):
    """A sweep in which one variant's runs cannot succeed, run once: what it left on the screen."""
    said = place / "first.json"
    if not said.exists():
        text = f"variants:\n  fails: {{{FAILS}}}\n  good: {{{QUICK}, epochs: [1, 2]}}"
        said.write_text(json.dumps(sweep("first", text, "--local", "--jobs", "2")))
    return json.loads(said.read_text())


def changed(folder: Path) -> dict[str, int]:
    """When each file of finished runs was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("seed*/*")}


def by_hand(folder: Path, forget: float, *, finished: bool = True) -> None:
    """A run as it would be left, that measured this."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"finished": finished, "steps": 2}))
    models: dict[str, Any] = {
        role: {"metrics": dict.fromkeys(METRICS, 1.0) | {"forget/rouge": value}}
        for role, value in (("target", 1.0), ("gold", 0.0))
    }
    measured = {
        "headline": METRICS,
        "directions": {"forget/rouge": "gold", "retain/rouge": "higher"},
        "metrics": {"forget/rouge": forget, "retain/rouge": 1.0},
    }
    (folder / "evaluation.json").write_text(json.dumps(measured | models))


def test_a_run_that_fails_is_told_and_the_others_go_on(first, place: Path) -> None:
    code, _, said = first
    runs = place / "first"

    assert code == 1
    assert "1 of the runs failed" in said
    assert "  fails seed0: " in said
    assert f"(see {runs / 'fails/seed0/log.txt'})" in said
    assert [(runs / "good" / f"epochs={n}" / "seed0" / "model").is_dir() for n in (1, 2)] == [
        True,
        True,
    ]
    assert {path.name for path in (runs / "report").iterdir()} >= {"report.md", "runs.csv"}


def test_what_is_finished_is_left_alone_and_what_failed_is_tried_again(
    first, sweep, place: Path
) -> None:
    finished, failed = place / "first" / "good", place / "first" / "fails" / "seed0"
    text = (place / "first.yaml").read_text()
    before, attempts = changed(finished), (failed / "log.txt").read_text()

    ended = sweep("first", text, "--local", "--jobs", "2")

    assert ended.code == 1
    assert "1 of 3 runs" in ended.err
    assert changed(finished) == before
    assert len((failed / "log.txt").read_text()) > len(attempts)


def test_a_run_is_what_launch_train_makes_of_the_same_settings(
    first, shell, weights, place: Path
) -> None:
    settings = [text.replace(": ", "=") for text in QUICK.split(", ")]
    shell.train(f"output={place / 'alone'}", "epochs=2", "seed=0", *settings)
    together = place / "first" / "good" / "epochs=2" / "seed0"

    a, b = weights(place / "alone"), weights(together)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (place / "alone", together)
    ]
    assert len(lines[0]) == 3
    for one, other in zip(*lines, strict=True):
        measured = {"time", "train/tokens_per_second", "train/peak_memory_gib"}
        assert {k: v for k, v in one.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }


def test_the_list_says_what_would_be_run_and_what_is_finished(first, sweep, place: Path) -> None:
    text = (place / "first.yaml").read_text()

    ended = sweep("first", text)

    assert ended.code == 0
    cells = [[c.strip() for c in x.split("│")[1:-1]] for x in ended.out.splitlines() if "│" in x]
    assert cells == [
        ["0", "fails", "", "0", "3", "begun"],
        ["1", "good", "epochs=1", "0", "2", "finished"],
        ["2", "good", "epochs=2", "0", "2", "finished"],
    ]
    assert "3 runs, 7 steps; 2 finished" in ended.err


@pytest.mark.parametrize("file", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_variant_of_the_released_sweeps_can_be_run(file: Path, tmp_path: Path) -> None:
    extra = []
    if "muse" in file.stem:  # texts and a model as they would be fetched
        module().save_pretrained(tmp_path / "model")
        folder = muse_folder.write(tmp_path / "muse")
        extra = [f"benchmark.path={folder}", f"model.path={tmp_path / 'model'}"]
    sweep = read_sweep(file, folder=None, extra=extra)

    first = [replace(variant, settings=variant.settings[:1]) for variant in sweep.variants]
    Configs(replace(sweep, variants=tuple(first)))  # raises what is wrong


def test_the_study_compares_every_method() -> None:
    sweep = read_sweep(CONFIGS / "sweep" / "methods_mini.yaml", folder=None)
    overrides = {text for v in sweep.variants for text in v.settings[0].overrides}
    groups = ("trainer", "weighting", "perturbation", "selection", "averaging")
    missing = {f"{g}={c}" for g in groups for c in choices(CONFIGS, g)} - overrides
    # ULD's trainer makes an assistant and forgets nothing by itself
    assert {name for name in missing if not name.endswith("=none")} == {"trainer=uld"}


def test_every_mistake_is_told_before_anything_runs(sweep, place: Path) -> None:
    text = (
        f"settings: {{{QUICK}}}\nvariants:\n"
        "  right: {}\n  typo: {trainr: npo}\n  choice: {trainer: nop, max_steps: [1, 2]}\n"
        "  range: {epochs: -1}\n  again: {epochs: -1}\n"
    )

    ended = sweep("mistakes", text, "--local")

    assert (ended.code, ended.out) == (2, "")
    first, second, third = ended.err.splitlines()
    assert first.startswith("error: typo: unknown setting 'trainr'; did you mean 'trainer'?")
    assert second.startswith("error: choice: no trainer is called 'nop'; did you mean 'npo'?")
    assert third == "error: range, again: epochs must be a number > 0, got -1"
    assert not (place / "mistakes").exists()


def test_settings_that_changed_since_a_run_was_made_are_told(first, sweep, place: Path) -> None:
    text = (place / "first.yaml").read_text().replace("max_steps: 2", "max_steps: 5")

    ended = sweep("first", text, "--local")
    (place / "first.yaml").write_text(text.replace("max_steps: 5", "max_steps: 2"))

    assert ended.code == 2
    assert "was begun with max_steps=2, not 5" in ended.err


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            RULE.replace("forget/rouge", "forget/roug"),
            "select: mini_small has no headline metric 'forget/roug'; did you mean 'forget/rouge'?",
        ),
        (RULE, "say where they were measured: target=<run> gold=<run>"),
        (f"{RULE}\nsettings: {{evaluate: false}}", "evaluate=false leaves nothing to select by"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_told_before_anything_runs(
    sweep, rule: str, message: str
) -> None:
    known = "" if "say where" in message else ", target: x, gold: x"
    text = f"{rule}\nvariants: {{a: {{{QUICK}{known}}}}}"

    ended = sweep("rules", text, "--local")

    assert ended.code == 2
    assert message in ended.err or "there is no evaluation at x" in ended.err


@pytest.mark.parametrize("how", ["--local", "--index=3"])
def test_the_setting_with_the_best_score_runs_on_the_other_seeds(
    first, sweep, place: Path, how: str
) -> None:
    name = how.strip("-")
    reference = place / "first" / "good" / "epochs=1" / "seed0"
    text = (
        f"settings: {{{QUICK}, target: {reference}, gold: {reference}}}\n"
        f"variants: {{a: {{epochs: [1, 2, 3]}}}}\nseeds: [0, 1]\n{RULE}"
    )
    for setting, forget in (("epochs=1", 0.5), ("epochs=2", 0.1), ("epochs=3", 0.7)):
        by_hand(place / name / "a" / setting / "seed0", forget)

    ended = sweep(name, text, how)

    assert ended.code == 0, ended.err
    made = sorted(
        str(path.parent.relative_to(place / name)) for path in place.glob(f"{name}/a/*/*/model")
    )
    assert made == ["a/epochs=2/seed1"]


def test_a_choice_waits_for_its_candidates(first, sweep, place: Path) -> None:
    reference = place / "first" / "good" / "epochs=1" / "seed0"
    text = (
        f"settings: {{{QUICK}, target: {reference}, gold: {reference}}}\n"
        f"variants: {{a: {{epochs: [1, 2]}}}}\nseeds: [0, 1]\n{RULE}"
    )

    none = sweep("waits", text, "--index", "2")
    beyond = sweep("waits", text, "--index", "3")
    report = sweep("waits", text, "--report")

    assert "none of them is finished; run those first: --index 0, --index 1" in none.err
    assert "--index must be from 0 to 2, got 3" in beyond.err
    assert "no run of waits" in report.err
    assert [ended.code for ended in (none, beyond, report)] == [2, 2, 2]


def test_an_interrupt_ends_the_runs_and_the_same_command_goes_on(sweep, place: Path) -> None:
    pausing = "max_steps: 6, trainer.class: pausing.Pausing"  # it does not end by itself meanwhile
    text = f"settings: {{{QUICK}}}".replace("max_steps: 2", pausing)
    run = place / "cut" / "seed0"
    metrics = run / "metrics.jsonl"

    def interrupt() -> None:
        while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    cut = sweep("cut", text, "--local", "--jobs", "1")
    watcher.join()
    finished = (run / "model").exists()
    again = sweep("cut", text, "--local", "--jobs", "1")

    assert cut.code == 128 + signal.SIGINT
    assert "interrupted at [0/1]" in cut.err
    assert not finished
    assert again.code == 0, again.err
    assert "at step" in (run / "log.txt").read_text()  # where it was resumed
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [*range(1, 7), 6]  # the last line holds the evaluation

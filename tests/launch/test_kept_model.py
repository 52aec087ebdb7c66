"""What a run leaves in model/: the last model, the best that was measured, what time allowed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import lume_folder
import pytest

import launch.train
from framework import build
from framework.evaluation.benchmark import Evaluation
from framework.time_limit import TimeLimit
from launch.kept_model import _of_sample, _sample
from launch.settings import RunSettings, parse

STEPS = ["max_steps=6", "optimizer.schedule=linear", "optimizer.learning_rate=1e-2"]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever the clock is looked at."""

    def limit(minutes: float | None) -> TimeLimit:
        return TimeLimit(minutes, clock=itertools.count().__next__)

    monkeypatch.setattr(launch.train, "TimeLimit", limit)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(shell, runs: Path) -> Path:
    """A run of six steps, made once."""
    if not (runs / "whole").exists():
        shell.train(f"output={runs / 'whole'}", *STEPS, "evaluate=false", "save_every=0")
    return runs / "whole"


def test_the_best_of_the_models_that_were_measured_is_the_runs(
    shell, whole: Path, weights: Callable, evaluation: Callable, tmp_path: Path
) -> None:
    own = [text for text in shell.small() if not text.startswith(("benchmark", "model"))]
    own += ["benchmark=lume", f"benchmark.path={lume_folder.make(tmp_path / 'lume')}"]
    own += ["benchmark.max_new_tokens=3", "model=pretrained", f"model.path={whole}", "save_every=0"]
    watched = ["evaluate_every=2", "evaluate_rows=6", "keep_best=retain/probability"]
    run = tmp_path / "run"
    ended = shell.run("train", *own, *STEPS, *watched, f"output={run}")
    assert ended.code == 0, ended.err

    name = "eval/lume_6_rows/retain/probability"
    found = {line["step"]: line[name] for line in lines(run) if name in line}
    assert list(found) == [2, 4, 6]
    assert found[2] > max(found[4], found[6]), "else this test says nothing"
    assert json.loads((run / "best.json").read_text())["step"] == 2
    assert json.loads((run / "run.json").read_text())["step_of_model"] == 2
    assert "measuring the model of step 2" in ended.err.splitlines()
    assert len(evaluation(run)["rows"]["forget/rouge"]) == 12  # the result is measured on all rows

    again = shell.run("eval", f"run={run}", f"output={tmp_path / 'again'}")
    assert again.code == 0, again.err
    assert evaluation(tmp_path / "again")["metrics"] == evaluation(run)["metrics"]

    best = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps({**best, "value": 2.0}))  # which nothing reaches
    (run / "run.json").unlink()
    watched[1] = "evaluate_rows=12"
    quick = ["evaluate=false", "resume=auto", f"output={run}"]
    ended = shell.run("train", *own, *STEPS, *watched, *quick)
    assert ended.code == 0, ended.err
    found_now = json.loads((run / "best.json").read_text())
    assert found_now["evaluate_rows"] == 12
    assert found_now["value"] <= 1


def test_a_sample_is_set_beside_what_others_have_on_its_rows(shell) -> None:
    given = shell.small("output=x", "evaluate_rows=3")
    config, _ = parse(given, entry="train", schema=RunSettings, about="")
    benchmark = build(config.benchmark)
    few = _sample(config, benchmark)
    forget, chosen = ({row.id for row in x.splits()["forget"]} for x in (benchmark, few))
    holdout, other = ({row.id for row in few.splits()[x]} for x in ("holdout", "retain"))
    rows = {
        "forget/nll": {row: 1.0 if row in chosen else 3.0 for row in forget},
        "holdout/nll": dict.fromkeys(holdout, 2.0),
        "world/told": dict.fromkeys(other, 1.0),  # of rows of another split
    }
    whole = Evaluation("mini", {"mia/auc": 0.3, "model_utility": 0.5}, rows)
    gold = _of_sample({"gold": whole}, few)["gold"]

    assert gold.rows["forget/nll"].keys() == chosen != forget
    assert gold.rows["world/told"].keys() == other
    assert gold.metrics == {"mia/auc": 1.0}  # all of the sample's are lower
    assert few.training_examples("target") == benchmark.training_examples("target")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_limit_that_is_not_reached_changes_nothing(
    tuning: str, shell, weights: Callable, ticking, tmp_path: Path
) -> None:
    without, run = tmp_path / "without", tmp_path / "run"
    settings = [*STEPS, f"tuning={tuning}", "evaluate=false", "save_every=0"]
    shell.train(f"output={without}", *settings)
    shell.train(f"output={run}", *settings, "time_limit=100")

    assert same(weights(run), weights(without))
    assert {p.name for p in run.iterdir()} == {p.name for p in without.iterdir()}


def test_a_run_that_time_cut_leaves_its_model_and_goes_on_later(
    shell, whole: Path, weights: Callable, evaluation: Callable, ticking, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [f"output={run}", *STEPS, "save_every=100"]
    ended = shell.train(*arguments, "time_limit=0.4")

    record = json.loads((run / "run.json").read_text())
    taken = record["steps_taken"]
    assert record["finished"]
    assert 1 < taken < 6
    assert record["step_of_model"] == taken
    said = f"time_limit: {taken} of 6 steps are taken; resume=auto goes on from there"
    assert said in ended.err.splitlines()
    assert evaluation(run)["metrics"]
    assert not same(weights(run), weights(whole))

    shell.train(*arguments, "time_limit=100", "resume=auto")
    assert json.loads((run / "run.json").read_text())["steps_taken"] == 6
    assert same(weights(run), weights(whole))


def test_a_run_that_time_cut_without_a_checkpoint_keeps_its_model(
    shell, weights: Callable, ticking, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [f"output={run}", *STEPS, "save_every=0", "evaluate=false"]
    shell.train(*arguments, "time_limit=0.4")
    left = weights(run)

    ended = shell.train(*arguments, "time_limit=100", "resume=auto")
    assert ended.err == (
        f"{run} was cut by its time limit and has no checkpoint to go on from; nothing is left to "
        "do\n"
    )
    assert same(weights(run), left)


@pytest.mark.usefixtures("target")
def test_no_time_at_all_is_one_line(shell, ticking, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = shell.mistake("train", *shell.small(f"output={run}", *STEPS, "time_limit=0.01"))

    assert said.startswith("time_limit=0.01 leaves no time for a step: getting ready took ")
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["keep_best=forget_quality"], "keep_best chooses among the models that are measured dur"),
        (
            ["keep_best=forget/rouge", "evaluate_every=2"],
            "keep_best must be a metric of benchmark=mini_small of which higher or lower is bett",
        ),
        (["time_limit=0"], "time_limit must be > 0, got 0"),
        (["evaluate_rows=0"], "evaluate_rows must be at least 1 row or null, got 0"),
    ],
)
def test_what_cannot_be_kept_or_watched_is_one_line(
    given: list[str], said: str, shell, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    found = shell.mistake("train", *shell.small(f"output={run}", "max_steps=1"), *given)

    assert found.startswith(said)
    assert not run.exists()

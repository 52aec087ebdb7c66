"""Real runs as W&B, TensorBoard and the dashboard show them, read back by those tools' means."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_backend import Backend

from framework.checkpoint import Checkpoints
from framework.tracking import Tracker
from launch.dashboard import PANELS

DUAL = ("trainer=npo", "weighting=primal_dual", "weighting.level=0.5", "batch_size=1")
BLUR = ("trainer=npo", "weighting=blur", "batch_size=1", "max_steps=3")
OWN = {"step", "time"}


# wandb-workspaces is still written for pydantic 1
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


@pytest.fixture(autouse=True)
def _wandb_reads_its_environment_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def offline(shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, str]:
    """An offline run of npo x primal_dual that keeps its model, and what it said."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    upload = ("tracker=wandb", "tracker.upload=[model,evaluation]")
    ended = shell.train(*DUAL, "max_steps=4", *upload, f"output={tmp_path / 'dual'}")
    return tmp_path / "dual", ended.err


def test_an_offline_run_holds_every_metric_of_every_step_and_the_dashboard_shows_them(
    offline, shell, tmp_path: Path
) -> None:
    run, said = offline
    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert f"wandb sync {path.parent}" in said
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    found = [json.loads(line) for line in shown.stdout.splitlines()]

    history = [each["history"]["item"] for each in found if each["type"] == "history"]
    known = [{k: v for k, v in each.items() if k[0] != "_"} for each in history]
    expected = [
        {name: value for name, value in line.items() if name not in OWN and value is not None}
        | {"global_step": line["step"]}
        for line in lines(run)
    ]
    numbers = [each for each in known if not any(k.startswith("eval/generations") for k in each)]
    assert numbers == expected
    duals = [line["train/retain/weight"] for line in lines(run) if "train/retain/weight" in line]
    assert len(duals) == 4
    assert duals == sorted(duals)
    assert duals[0] < duals[-1]  # the loss stays above the level, so they climb
    begun = next(each["run"] for each in found if each["type"] == "run")
    assert begun["job_type"] == "train"
    conditions = begun["config"]["update"]["conditions"]
    assert conditions["commit"] == json.loads((run / "run.json").read_text())["commit"]
    assert conditions["hardware"]
    kept = {each["artifact"]["type"] for each in found if each["type"] == "artifact"}
    assert kept == {"model", "evaluation"}

    shell.train(*BLUR, "tracker=tensorboard", f"output={tmp_path / 'blur'}")
    _tensorboard_has(tmp_path / "blur")
    names = {name for folder in (run, tmp_path / "blur") for line in lines(folder) for name in line}
    _dashboard_shows(shell, run, tmp_path, names)


def _tensorboard_has(run: Path) -> None:
    read = EventAccumulator(str(run / "tensorboard")).Reload()
    for line in lines(run):
        for name, value in line.items():
            if name not in OWN and value is not None:
                points = {point.step: point.value for point in read.Scalars(name)}
                assert points[line["step"]] == pytest.approx(value, rel=1e-6), name
    assert set(read.Tags()["tensors"]) == {"config/text_summary", "eval/generations/text_summary"}


def _dashboard_shows(shell, run: Path, folder: Path, names: set[str]) -> None:
    specs = []
    for file in (folder / "first.json", folder / "second.json"):
        assert shell.run("dashboard", str(run), f"--json={file}").code == 0
        specs.append(file.read_text())
    assert re.sub(r'"__id__": "\w+"', "", specs[0]) == re.sub(r'"__id__": "\w+"', "", specs[1])
    spec = json.loads(specs[0])
    assert (spec["project"], spec["displayName"]) == ("lethe", "Lethe: mini")
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [*PANELS]
    for section in sections:
        places = [tuple(panel["layout"].values()) for panel in section["panels"]]
        assert len({*places}) == len(places) > 0
        for panel in section["panels"]:
            assert panel["config"]["xAxis"] == "global_step"
            assert {*panel["config"]["metrics"]} <= names, panel["config"]["chartTitle"]


def test_an_online_run_is_taken_up_again_after_a_preemption(
    shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    online = (*DUAL, "max_steps=6", "save_every=2", "tracker=wandb", "resume=auto")
    saved = Checkpoints.save

    def save_and_warn(self: Checkpoints, *arguments: Any) -> Any:
        """Slurm's warning arrives at the first checkpoint."""
        monkeypatch.setattr(Checkpoints, "save", saved)
        os.kill(os.getpid(), signal.SIGUSR1)
        return saved(self, *arguments)

    with Backend() as backend:
        for name, value in backend.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(Checkpoints, "save", save_and_warn)
        first = shell.train(*online, f"output={run}")
        assert "SIGUSR1: stopped after step 2 of 6" in first.err
        (only,) = backend.runs.values()
        assert only["exits"] == [{"preempting": True, "exitcode": 1}]

        second = shell.train(*online, f"output={run}")
        assert f"resuming {run} at step 2" in second.err
        (only,) = backend.runs.values()  # no second run
        saved_view = shell.run("dashboard", str(run))

    assert only["name"] == (run / "wandb_id").read_text().strip()
    assert only["exits"][1:] == [{"preempting": False, "exitcode": 0}]
    drawn = [line for line in only["history"] if "train/retain/weight" in line]
    assert [line["global_step"] for line in drawn] == [1, 2, 3, 4, 5, 6]
    assert [line["train/retain/weight"] for line in drawn] == [
        line["train/retain/weight"] for line in lines(run) if "train/retain/weight" in line
    ]
    assert (only["jobType"], only["config"]["trainer"]["value"]["name"]) == ("train", "npo")
    (view,) = backend.views.values()
    assert saved_view.code == 0
    assert (view["projectName"], view["displayName"]) == ("lethe", "Lethe: mini")
    assert "train/cosine" in json.dumps(view["spec"])


@pytest.mark.filterwarnings("always::framework.view.TrackingWarning")
def test_an_outage_in_the_middle_leaves_a_whole_run_and_one_warning(
    shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    log = Tracker.log

    def log_and_fall_silent(self: Tracker, step: int, values: Any) -> None:
        """The server stops answering when the second step is logged."""
        if step == 2:
            backend.silent.set()
        log(self, step, values)

    with Backend() as backend:
        for name, value in backend.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(Tracker, "log", log_and_fall_silent)
        told = ("tracker=wandb", "tracker.finish_timeout=1", f"output={run}")
        ended = shell.train(*DUAL, "max_steps=4", *told)

    (warning,) = [line for line in ended.err.splitlines() if line.startswith("warning: W&B")]
    assert "has not taken all of this run within 1 s; upload with `wandb sync" in warning
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 4]
    assert (run / "evaluation.json").is_file()


def test_the_dashboard_that_cannot_be_saved_is_one_line(
    shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "log in with `wandb login`, or write it with --json" in shell.mistake("dashboard")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    told = shell.mistake("dashboard", f"--json={tmp_path / 'x.json'}")
    assert told.endswith("type pip install -c constraints.txt -e '.[dashboard]'")

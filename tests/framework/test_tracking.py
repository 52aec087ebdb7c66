"""Tracker: metrics.jsonl survives kills and resumes; W&B shows it, or stays out of the way."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framework.tensorboard import TensorBoard
from framework.tracking import Tracker, read_metrics
from framework.view import TrackingWarning
from framework.wandb_view import WandbView, _wants_online

RUN_CONFIG = {"trainer": {"class": "trainers.npo.NPO", "beta": 0.1}, "seed": 0}


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    wandb.teardown()  # else it goes on with the environment of an earlier test


def tracker(folder: Path, config: WandbView.Config | None = None) -> Tracker:
    view = None if config is None else WandbView(config)
    return Tracker(view, folder, run_config=RUN_CONFIG, name="npo-mini", job_type="train")


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wandb_records(folder: Path) -> list[dict[str, dict[str, object]]]:
    """Every record of the one offline W&B run in `folder`, read by W&B's own inspector."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    return [json.loads(line) for line in shown.stdout.splitlines()]


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_each_logged_step_is_one_flushed_line(tmp_path: Path) -> None:
    record = tracker(tmp_path)
    record.log(1, {"train/forget/loss": 2.5, "train/cosine": -0.25})

    (line,) = lines(tmp_path)  # not finished, and yet on the disk

    assert line.pop("time") == pytest.approx(time.time(), abs=60)
    assert line == {"step": 1, "train/forget/loss": 2.5, "train/cosine": -0.25}
    record.finish()


def test_numbers_that_are_not_finite_keep_their_name_and_become_null(tmp_path: Path) -> None:
    record = tracker(tmp_path)
    record.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": 0.0})
    record.finish()

    (line,) = lines(tmp_path)

    assert {name: line[name] for name in "abcde"} == dict.fromkeys("abcd") | {"e": 0.0}


def test_evaluations_are_named_after_their_benchmark(tmp_path: Path) -> None:
    record = tracker(tmp_path)
    record.log_evaluation(7, {"forget/rouge": 0.5, "privacy": None}, benchmark="mini")
    record.log_generations(7, [{"question": "?"}])
    record.finish()

    (line,) = lines(tmp_path)

    assert line["step"] == 7
    assert line["eval/mini/forget/rouge"] == 0.5
    assert line["eval/mini/privacy"] is None


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in range(1, 9):
        first.log(step, {"loss": float(step)})
    first.finish()

    resumed = tracker(tmp_path)
    resumed.rewind(5)
    for step in range(6, 11):
        resumed.log(step, {"loss": -float(step)})
    resumed.finish()

    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, -6, -7, -8, -9, -10]
    assert [path.name for path in tmp_path.iterdir() if "metrics" in path.name] == ["metrics.jsonl"]


def test_a_line_cut_off_by_a_kill_is_not_glued_to_the_next(tmp_path: Path) -> None:
    whole = '{"step": 1, "time": 0.0, "loss": 3.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 2, "ti')
    assert read_metrics(tmp_path / "metrics.jsonl") == (
        [{"step": 1, "time": 0.0, "loss": 3.0}],
        1,
    )

    record = tracker(tmp_path)
    record.log(2, {"loss": 2.0})
    record.finish()

    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_killed_process_leaves_every_line_it_logged(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from framework.tracking import Tracker\n"
        "tracker = Tracker(None, Path(sys.argv[1]), run_config={}, name='', job_type='')\n"
        "for step in range(100): tracker.log(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, timeout=280
    )

    assert killed.returncode == -signal.SIGKILL
    assert len(lines(tmp_path)) == 100


def test_without_a_config_wandb_is_not_touched(tmp_path: Path) -> None:
    for config in (None, WandbView.Config(mode="disabled")):
        record = tracker(tmp_path, config)
        record.log(1, {"loss": 1.0})
        record.finish()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "metrics.jsonl"]


def test_an_offline_wandb_run_shows_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    record = tracker(tmp_path, WandbView.Config(project="forgetting", tags=["npo"], group="paper"))
    record.log(3, {"train/forget/loss": 2.5, "train/cosine": None})
    record.log_evaluation(3, {"forget/rouge": 0.5}, benchmark="mini")
    record.log_generations(3, [{"question": "a < b?", "answer": "yes"}, {"question": "b"}])
    record.finish(exit_code=1)

    records = wandb_records(tmp_path)
    run = next(line["run"] for line in records if line["type"] == "run")
    history = [line["history"]["item"] for line in records if line["type"] == "history"]
    axes = [line["metric"] for line in records if line["type"] == "metric"]
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/eval/*.html")

    assert run["project"] == "forgetting"
    assert run["display_name"] == "npo-mini"
    assert run["job_type"] == "train"
    assert run["run_group"] == "paper"
    assert run["tags"] == ["npo"]
    assert run["run_id"] == (tmp_path / "wandb_id").read_text().strip()
    assert run["config"]["update"]["trainer"] == RUN_CONFIG["trainer"]
    shown = [{k: v for k, v in item.items() if not k.startswith("_")} for item in history]
    assert shown[0] == {"train/forget/loss": 2.5, "global_step": 3}
    assert shown[1] == {"eval/mini/forget/rouge": 0.5, "global_step": 3}
    assert shown[2]["global_step"] == 3
    assert "<td>a &lt; b?</td><td>yes</td>" in page.read_text()
    assert {axis.get("glob_name"): axis.get("step_metric") for axis in axes} == {
        None: None,
        "train/*": "global_step",
        "eval/*": "global_step",
        "attack/*": "strength",
    }
    assert records[-1]["exit"]["exit_code"] == 1


def test_a_second_process_continues_the_same_wandb_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from framework.tracking import Tracker\n"
        "from framework.wandb_view import WandbView\n"
        "view = WandbView(WandbView.Config(mode='offline'))\n"
        "tracker = Tracker(view, Path(sys.argv[1]), run_config={}, name='a', job_type='b')\n"
        "tracker.log(1, {'loss': 1.0}); tracker.finish()"
    )
    ids = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=280)
        ids.append((tmp_path / "wandb_id").read_text())
    found = [path.stem for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")]

    assert ids[0] == ids[1]
    assert set(found) == {"run-" + ids[0].strip()}


@pytest.mark.parametrize("key_is_in", ["environment", "netrc"])
def test_a_server_that_cannot_be_reached_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_is_in: str
) -> None:
    key = "local" + "0" * 40  # with a key, mode "auto" tries the server
    host = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
    if key_is_in == "environment":
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        (tmp_path / "home/.netrc").write_text(f"machine {host} login user password {key}\n")
        (tmp_path / "home/.netrc").chmod(0o600)
    started = time.monotonic()

    with pytest.warns(TrackingWarning, match="could not start online") as warned:
        record = tracker(tmp_path, WandbView.Config(init_timeout=1.0))
    record.log(1, {"train/forget/loss": 1.5})
    record.finish()

    assert len(warned) == 1
    assert time.monotonic() - started < 30
    assert lines(tmp_path)[0]["train/forget/loss"] == 1.5
    history = [r["history"]["item"] for r in wandb_records(tmp_path) if r["type"] == "history"]
    assert [item["train/forget/loss"] for item in history] == [1.5]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    for done, value in ((0, 1.0), (2, -1.0)):
        view = TensorBoard(TensorBoard.Config())
        record = Tracker(view, tmp_path, run_config=RUN_CONFIG, name="npo", job_type="train")
        record.rewind(done)
        for step in range(done + 1, 5):
            record.log(step, {"loss": value * step})
        record.finish()

    points = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")

    assert [(point.step, point.value) for point in points] == [(1, 1), (2, 2), (3, -3), (4, -4)]


def test_a_login_is_found_under_each_name_of_the_server(tmp_path: Path) -> None:
    """0.31 calls W&B's own server by a new name; logins of earlier versions are for the old one."""
    default = wandb.setup().settings.base_url
    for name, known in {"api.wandb.ai": True, urlsplit(default).netloc: True, "a.b": False}.items():
        (tmp_path / "home/.netrc").write_text(f"machine {name} login user password key\n")
        (tmp_path / "home/.netrc").chmod(0o600)
        assert _wants_online("auto", default) is known
    assert _wants_online("auto", "https://a.b")


def test_wandb_mode_of_the_environment_decides_for_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_API_KEY", "local" + "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")

    record = tracker(
        tmp_path, WandbView.Config(init_timeout=1.0)
    )  # no TrackingWarning: an error here
    record.finish()

    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_wandb_process_that_dies_does_not_stop_the_run(tmp_path: Path) -> None:
    program = (
        "import os, signal, subprocess, sys, warnings; from pathlib import Path\n"
        "from framework.tracking import Tracker\n"
        "from framework.wandb_view import WandbView\n"
        "view = WandbView(WandbView.Config(mode='offline'))\n"
        "tracker = Tracker(view, Path(sys.argv[1]), run_config={}, name='a', job_type='b')\n"
        "tracker.log(1, {'loss': 1.0})\n"
        "children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()\n"
        "core = [c for c in children if 'wandb-core' in Path(f'/proc/{c}/comm').read_text()]\n"
        "os.kill(int(core[0]), signal.SIGKILL); os.waitpid(int(core[0]), 0)\n"
        "with warnings.catch_warnings(record=True) as warned:\n"
        "    warnings.simplefilter('always')\n"
        "    for step in range(2, 2000): tracker.log(step, {'loss': 1.0})\n"
        "    tracker.log_generations(2000, [{'question': '?'}]); tracker.finish()\n"
        "print([w.category.__name__ for w in warned])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "['TrackingWarning']"
    assert len(lines(tmp_path)) == 1999


def test_wandb_that_cannot_be_imported_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "wandb", None
    )  # what Python does for a module it must not find

    with pytest.warns(TrackingWarning, match="cannot be imported"):
        record = tracker(tmp_path, WandbView.Config())
    record.log(1, {"loss": 1.0})
    record.finish()

    assert len(lines(tmp_path)) == 1


def test_only_rank_0_writes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import torch.distributed as dist\n"
        "from framework.tracking import Tracker\n"
        "folder, rank = Path(sys.argv[1]), int(sys.argv[2])\n"
        "store = dist.FileStore(str(folder / 'store'), 2)\n"
        "dist.init_process_group('gloo', store=store, rank=rank, world_size=2)\n"
        "from framework.wandb_view import WandbView\n"
        "view = WandbView(WandbView.Config(mode='offline'))\n"
        "tracker = Tracker(view, folder / 'run', run_config={}, name='a', job_type='b')\n"
        "tracker.log(rank, {'loss': 1.0}); tracker.rewind(5); tracker.finish()\n"
        "dist.barrier(); dist.destroy_process_group()"
    )
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(rank)])
        for rank in range(2)
    ]

    assert [rank.wait(timeout=280) for rank in ranks] == [0, 0]
    assert [line["step"] for line in lines(tmp_path / "run")] == [0]
    assert len(list(tmp_path.glob("run/wandb/offline-run-*"))) == 1


def test_the_installed_wandb_has_the_errors_that_are_caught() -> None:
    """Two of them live in private modules; a version without them would silently turn W&B off."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    for error in (HandleAbandonedError, MailboxClosedError, ServerResponseError, wandb.Error):
        assert issubclass(error, Exception)

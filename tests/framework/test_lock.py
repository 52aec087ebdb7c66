"""One run at a time in a folder: who is refused, who takes over, what is left."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from framework import lock
from framework.errors import RunExistsError
from framework.lock import LOCK, SILENCE, locked


@contextmanager
def other_run(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, whose the folder is; killed at the end, its lock left behind."""
    with subprocess.Popen(["sleep", "60"]) as process:
        status = Path(f"/proc/{process.pid}/stat").read_text()
        started = status.rpartition(")")[2].split()[19]
        with locked(folder):
            owner = entry(folder) | {"process": process.pid, "started": started}
        (folder / LOCK).write_text(json.dumps(owner))
        yield process
        process.kill()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of a run's life take tenths of a second here."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "SILENCE", 1.0)


def entry(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / LOCK).read_text()))


def elsewhere(folder: Path, *, silent: float, **changed: object) -> None:
    """A lock of a process on another machine, silent for so many seconds."""
    with locked(folder):
        owner = entry(folder) | {"machine": "n2", "place": "n2 boot pid:[1]", **changed}
    (folder / LOCK).write_text(json.dumps(owner))
    last = time.time() - silent
    os.utime(folder / LOCK, (last, last))


def test_a_folder_is_free_again_after_its_run(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert entry(tmp_path)["process"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_free_again_after_a_run_that_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), locked(tmp_path):
        raise OSError("disk")

    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with other_run(tmp_path) as other:
        with pytest.raises(RunExistsError) as refused, locked(tmp_path):
            pytest.fail("two runs in one folder")
        assert entry(tmp_path)["process"] == other.pid, "the first goes on"

    line = str(refused.value)
    assert line.startswith(f"{tmp_path} is in use: process {other.pid} on ")
    ago, told = line.rpartition(" (last sign of life ")[2].split(" s ago); ")
    assert ago.isdigit()
    assert told == "wait for it or end it, or choose another output=..."
    assert [path.name for path in tmp_path.iterdir()] == [LOCK], "a kill leaves the lock"

    with locked(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_another_program_has_now_is_no_owner(tmp_path: Path) -> None:
    with locked(tmp_path):
        owner = entry(tmp_path) | {"started": "1"}
    (tmp_path / LOCK).write_text(json.dumps(owner))

    with locked(tmp_path):
        assert entry(tmp_path)["started"] != "1"


def test_a_run_on_another_machine_is_not_disturbed_while_it_shows_life(tmp_path: Path) -> None:
    elsewhere(tmp_path, silent=5)

    with pytest.raises(RunExistsError, match="on n2 is at work in it since"), locked(tmp_path):
        pytest.fail("two runs in one folder")


DAY = 86_400.0


@pytest.mark.parametrize("silent", [SILENCE + 1, -DAY], ids=["long ago", "a clock a day ahead"])
@pytest.mark.parametrize("content", [None, "", "[1]"], ids=["owned", "empty", "no owner"])
def test_a_silent_run_on_another_machine_is_taken_over(
    silent: float, content: str | None, quick: None, tmp_path: Path
) -> None:
    elsewhere(tmp_path, silent=silent)
    if content is not None:  # what a power failure leaves
        (tmp_path / LOCK).write_text(content)
        last = time.time() - silent
        os.utime(tmp_path / LOCK, (last, last))

    with locked(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()


def test_a_clock_that_jumps_ahead_makes_no_live_run_a_dead_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock, "BEAT", 1.0)
    elsewhere(tmp_path, silent=DAY)
    # a sign of life, once it is waited for
    monkeypatch.setattr(lock, "say", lambda _: os.utime(tmp_path / LOCK))

    with pytest.raises(RunExistsError, match="on n2 is at work in it since"), locked(tmp_path):
        pytest.fail("two runs in one folder")


def test_a_lock_that_cannot_be_read_but_is_touched_is_somebody_s(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("")

    unreadable = pytest.raises(RunExistsError, match=r"in use: its run\.lock cannot be read")
    with unreadable, locked(tmp_path):
        pytest.fail("two runs in one folder")


def test_one_that_has_just_gone_silent_is_waited_for(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(tmp_path, silent=lock.SILENCE - 0.3)

    with locked(tmp_path):
        assert entry(tmp_path)["process"] == os.getpid()
    assert "waiting: process" in "".join(capsys.readouterr())


def test_the_earlier_start_of_a_requeued_job_is_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, silent=0, job="7")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(RunExistsError, match="of Slurm job 7"), locked(tmp_path):
        pytest.fail("another job's folder")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RunExistsError, match="of Slurm job 7"), locked(tmp_path):
        pytest.fail("another step of this start")

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(tmp_path):
        assert (entry(tmp_path)["job"], entry(tmp_path)["start"]) == ("7", 1)


def test_a_run_that_was_silent_too_long_ends_when_it_finds_another_at_work(tmp_path: Path) -> None:
    script = """
import json, pathlib, sys, time
from framework import lock
lock.BEAT = 0.1
folder = pathlib.Path(sys.argv[1])
with lock.locked(folder):
    owner = json.loads((folder / lock.LOCK).read_text())
    (folder / lock.LOCK).write_text(json.dumps(owner | {"machine": "n2", "token": "other"}))
    time.sleep(30)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert ended.returncode == 1
    assert "was taken over by process" in ended.stderr
    assert entry(tmp_path)["machine"] == "n2", "the other's lock stays"


def test_the_owner_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.02)
    before = time.time()
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        while (tmp_path / LOCK).stat().st_mtime == 0:
            time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime > before - 1  # file systems' clocks are coarse


def test_the_owner_goes_on_while_its_lock_cannot_be_read(tmp_path: Path) -> None:
    script = """
import pathlib, sys, time
from framework import lock
lock.BEAT = 0.02
read, looks = lock._read, []
lock._read = lambda file: (looks.append(file), read(file))[1]
folder = pathlib.Path(sys.argv[1])
with lock.locked(folder):
    (folder / lock.LOCK).rename(folder / "away")
    seen = len(looks)
    while len(looks) < seen + 3:
        time.sleep(0.01)
    (folder / "away").rename(folder / lock.LOCK)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=280)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, ""], ids=["owned", "empty"])
def test_of_many_that_find_a_dead_owner_one_takes_over(
    content: str | None, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock, "SILENCE", SILENCE)  # whoever takes over may be slow, and is not dead
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
        elsewhere(folder, silent=SILENCE + 1)
        if content is not None:
            (folder / LOCK).write_text(content)
            os.utime(folder / LOCK, (0, 0))
    all_tried = threading.Barrier(8 * len(folders), timeout=250)

    def start(folder: Path) -> str:
        result = "refused"
        with suppress(RunExistsError), locked(folder):
            result = "lost its lock"
            with suppress(FileNotFoundError):
                tokens = {entry(folder)["token"] for _ in range(200)}  # while others still try
                result = "won" if len(tokens) == 1 else result
            all_tried.wait()
            return result
        all_tried.wait()
        return result

    with ThreadPoolExecutor(8 * len(folders)) as pool:
        results = list(pool.map(start, [folder for folder in folders for _ in range(8)]))

    for number, folder in enumerate(folders):
        assert sorted(results[8 * number : 8 * number + 8]) == ["refused"] * 7 + ["won"]
        assert list(folder.iterdir()) == []


@pytest.mark.timeout(20)
def test_a_run_whose_turn_it_is_not_waits_before_it_looks_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with locked(tmp_path):
        dead = entry(tmp_path) | {"started": "1"}
    (tmp_path / LOCK).write_text(json.dumps(dead))
    waited = []
    with (tmp_path / LOCK).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def end_the_turn(seconds: float) -> None:
            waited.append(seconds)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", end_the_turn)
        with locked(tmp_path):
            assert entry(tmp_path)["process"] == os.getpid()

    assert waited == [lock.BEAT / 10]


def test_a_dead_owner_s_lock_is_left_to_the_run_that_is_taking_it(
    quick: None, tmp_path: Path
) -> None:
    elsewhere(tmp_path, silent=SILENCE + 1)
    dead = entry(tmp_path)
    with (tmp_path / LOCK).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        lock._remove(tmp_path / LOCK, dead)
        assert entry(tmp_path) == dead

    lock._remove(tmp_path / LOCK, {})
    assert entry(tmp_path) == dead, "another owner than the one that was looked at"
    lock._remove(tmp_path / LOCK, dead)
    assert list(tmp_path.iterdir()) == []
    lock._remove(tmp_path / LOCK, dead)

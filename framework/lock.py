"""Lock: a run's folder belongs to one run at a time, on any file system that the nodes share.

`run.lock` names its owner, who touches it every few seconds. It is taken over at once where the
owner is known to be dead: its process is gone from this machine, or it was an earlier start of this
Slurm job. Of another machine nothing is known but its silence.

Times are those of the file system, so that nodes' clocks may differ. That clock may jump, too: an
owner elsewhere counts as dead only after it was watched for a while and gave no sign of life.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import samestat
from pathlib import Path
from typing import Any

from .distributed import is_main, on_rank_zero
from .errors import RunExistsError
from .terminal import say

LOCK = "run.lock"
BEAT = 10.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one after which an owner on another machine counts as dead."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, `folder` is this run's; every rank must come here.

    Raises RunExistsError on every rank where another run is at work in it. An owner on another
    machine that has gone silent, or whose clock was another, is watched for two minutes at most.
    """
    owner = on_rank_zero(lambda: _acquire(folder / LOCK))
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder / LOCK, owner, stop), daemon=True)
    if is_main():
        beating.start()
    try:
        yield
    finally:
        stop.set()
        if is_main():
            beating.join()
            if _read(folder / LOCK) == owner:
                (folder / LOCK).unlink(missing_ok=True)


def _acquire(lock: Path) -> dict[str, Any]:
    """This process's entry, once it stands in `lock`."""
    own = {
        "machine": platform.node(),
        "place": _place(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "start": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }
    mine = lock.with_name(f"{LOCK}.{own['token']}")
    mine.write_text(json.dumps(own), encoding="utf-8")
    seen, since = 0.0, -1.0  # the owner's last sign, and from when on it was watched
    try:
        while not _linked(mine, lock):
            owner, times = _read(lock), _times(mine, lock)
            if times is None:  # it ended
                continue
            now, last = times
            first_look = since < 0
            if last != seen:
                seen, since = last, time.monotonic()
            watched, silent = time.monotonic() - since, now - last
            if _is_dead(owner):
                _remove(lock, owner)
            elif -BEAT <= silent <= 3 * BEAT:
                raise RunExistsError(
                    f"{lock.parent} is in use: {_told(owner, silent)}; wait for it or end it, or "
                    "choose another output=..."
                )
            elif watched > SILENCE or (watched > 2 * BEAT and silent > SILENCE):
                _remove(lock, owner)
            else:
                if first_look:
                    say(f"waiting: {_told(owner, silent)}")
                time.sleep(BEAT / 10)
    finally:
        mine.unlink(missing_ok=True)
    return own


def _linked(mine: Path, lock: Path) -> bool:
    """Whether `mine` became the lock: creating a link is atomic, on NFS too."""
    try:
        os.link(mine, lock)
    except FileExistsError:
        return False
    return True


def _remove(lock: Path, owner: dict[str, Any]) -> None:
    """Take a dead owner's lock away, and none that a faster run has put in its place meanwhile.

    Runs that find the same dead owner take turns, where the file system can lock files; one whose
    turn it is not waits a moment, to look again.
    """
    try:
        with lock.open("r+b" if os.access(lock, os.W_OK) else "rb") as taken:
            try:
                fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(BEAT / 10)
                return
            except OSError:  # a file system that locks no files: what is left is to look again
                pass
            if _read(lock) == owner and samestat(lock.stat(), os.fstat(taken.fileno())):
                lock.unlink()
    except FileNotFoundError:
        return


def _beat(lock: Path, owner: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        found = _read(lock)
        if found and found != owner:  # nothing: a file system that is away for a while
            stream = sys.__stderr__ or sys.stderr
            stream.write(
                f"error: {lock.parent} was taken over by process {found.get('process')} on "
                f"{found.get('machine')} while this one was silent; it ends, to disturb nothing\n"
            )
            os._exit(1)  # from a thread, whatever the others are at
        try:
            os.utime(lock)
        except OSError:  # others will see our silence
            continue


def _read(lock: Path) -> dict[str, Any]:
    """The owner; empty where there is none, or a power failure left a file without its content."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _times(mine: Path, lock: Path) -> tuple[float, float] | None:
    """Now, and the owner's last sign of life, by the file system's own clock; None: no owner."""
    try:
        os.utime(mine)
        return mine.stat().st_mtime, lock.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether an owner is known to be gone."""
    if owner.get("place") == _place():
        return _started(int(owner["process"])) != owner.get("started")
    job, start = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return job is not None and owner.get("job") == job and int(owner.get("start", 0)) < start


def _place() -> str:
    """What tells this machine, since it was started, and this container from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return platform.node()


def _started(process: int) -> str | None:
    """When a process of this machine was started, in ticks; None where there is none."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _alive(process)
    after_name = status.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else after_name[19]


def _alive(process: int) -> str | None:
    """Where there is no /proc: whether a process of that number runs at all."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _told(owner: dict[str, Any], silent: float) -> str:
    ago = f"(last sign of life {max(0.0, silent):.0f} s ago)"
    if not owner:
        return f"its {LOCK} cannot be read {ago}"
    job = f" of Slurm job {owner['job']}" if owner.get("job") else ""
    return (
        f"process {owner.get('process')} on {owner.get('machine')}{job} is at work in it since "
        f"{owner.get('since')} {ago}"
    )

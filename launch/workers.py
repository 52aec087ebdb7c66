"""Training runs in processes that are forked from one which has imported everything.

Python, torch and transformers take about five seconds to start, as long as a small run. Here they
are imported once, by a server process that computes nothing; each run is a fresh fork of it, shares
no state with another and gives what `python -m launch.train` gives, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

import torch

from .entry import run_entry
from .outcome import is_finished, make_folder
from .side_by_side import RunningRun, last_line
from .train import main

LOG = "log.txt"  # in the run's folder: what the run says
IMPORTED = [
    "launch.sweep_local",
    "framework.evaluation.mini",
    "safetensors.torch",
    "tokenizers",
    "transformers.models.llama.modeling_llama",
]
STOP_SECONDS = 5.0  # from asking a run to end to ending it


@dataclass
class Job:
    """One run in a process of its own."""

    name: str
    folder: Path
    overrides: Sequence[str]
    progress: RunningRun = field(init=False)

    def __post_init__(self) -> None:
        """Nothing of it is known yet."""
        self.progress = RunningRun(self.folder)


class Workers:
    """A context in which at most `count` runs go on at the same time; leaving it ends them."""

    def __init__(self, count: int) -> None:
        """`count`: at least 1."""
        self._context = multiprocessing.get_context("forkserver")
        self._running: dict[int, tuple[Job, ForkServerProcess]] = {}
        self._count = count
        cores = len(os.sched_getaffinity(0))
        # A sum's rounding depends on the number of threads: OMP_NUM_THREADS, where set, decides.
        self._threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores // count)

    def __enter__(self) -> Workers:  # noqa: PYI034 (typing.Self needs Python 3.11)
        """Start the server."""
        self._context.set_forkserver_preload(IMPORTED)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        forkserver.ensure_running()  # it and its forks ignore Ctrl-C: ending them is our work
        signal.signal(signal.SIGINT, before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.join(STOP_SECONDS)
            process.kill()
            process.join()

    @property
    def running(self) -> list[Job]:
        """The runs that go on."""
        return [job for job, _ in self._running.values()]

    def has_room(self) -> bool:
        """Whether another run may be started."""
        return len(self._running) < self._count

    def start(self, job: Job) -> None:
        """Begin or go on with a run; what it says is appended to log.txt in its folder."""
        slot = next(slot for slot in range(self._count) if slot not in self._running)
        make_folder(job.folder)
        process = self._context.Process(
            target=_train, args=(list(job.overrides), job.folder / LOG, self._threads, slot)
        )
        self._running[slot] = (job, process)
        process.start()

    def wait(self, seconds: float) -> list[tuple[Job, str | None]]:
        """The runs that end within `seconds`, each with why it failed, if it did."""
        sentinels = {process.sentinel: slot for slot, (_, process) in self._running.items()}
        ended = []
        for sentinel in connection.wait(list(sentinels), timeout=seconds):
            assert isinstance(sentinel, int)
            job, process = self._running.pop(sentinels[sentinel])
            process.join()
            ended.append((job, _failure(job.folder, process.exitcode or 0)))
        return ended


def _failure(folder: Path, code: int) -> str | None:
    """Why a run that has ended failed; None if it is finished."""
    if is_finished(folder):
        return None
    log = folder / LOG
    return f"killed by {signal.Signals(-code).name} (see {log})" if code < 0 else last_line(log)


def _train(overrides: list[str], log: Path, threads: int | None, slot: int) -> None:
    """The life of a run's process: `launch.train`, said to a file."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(slot)  # of several GPUs each run takes its own
    sys.argv = ["launch.train", *overrides]
    run_entry(main)


def _end_with_parent() -> None:
    """A run does not outlive its sweep, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

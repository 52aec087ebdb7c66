"""Two ranks that start when the tests do, and compute while others run: half their time is waiting.

A test file names its worker (`WORKER`) and what it asks of it (`ASKED`). One process group of two
does all that is asked (`worker.py`), and the fixture `session` holds what was written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
LIMIT = 1800
"""Seconds for everything; DeepSpeed may compile an operator at its first use."""


class Session(NamedTuple):
    """What the worker of a file wrote, where it worked, and what the ranks said."""

    results: dict[str, Any]
    folder: Path
    log: str

    def __getitem__(self, name: str) -> Any:
        assert name in self.results, f"the worker did not get so far:\n{self.log[-4000:]}"
        return self.results[name]


class Ranks:
    """Both processes, and the folder of what is asked of them and what they found."""

    def __init__(self, asked: dict[str, list[Any]]) -> None:
        self._place = TemporaryDirectory(prefix="two-ranks-")
        self._folder = Path(self._place.name)
        for worker, cases in asked.items():
            (self._folder / f"{worker}.json").write_text(json.dumps(cases))
        self._started = time.monotonic()
        self._launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--standalone", "--nproc_per_node", "2"),
                *(str(FOLDER / "worker.py"), str(self._folder)),
            ],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,  # no file: they find disks full meanwhile
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a test interrupts its own group
        )
        self._said = ""
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._launcher.stdout is not None
        with self._launcher.stdout as said:
            self._said = said.read()

    def found(self, worker: str) -> Session:
        """What the worker measured, when both processes have ended."""
        left = self._started + LIMIT - time.monotonic()
        try:
            code = self._launcher.wait(timeout=max(1, left))
        except subprocess.TimeoutExpired:  # what they said tells where, what they wrote counts
            code = self._stop()
        self._reader.join()
        log = f"exit code {code}\n{self._said}"
        file = self._folder / f"{worker}.results.json"
        assert file.is_file(), log[-4000:]
        return Session(json.loads(file.read_text()), self._folder, log)

    def end(self) -> None:
        """Stop them, done or not."""
        self._stop()
        self._reader.join()
        self._place.cleanup()

    def _stop(self) -> int:
        """End both; at SIGINT, since a SIGTERM in a build of DeepSpeed's leaves its lock behind."""
        self._launcher.send_signal(signal.SIGINT)
        return self._launcher.wait()


RANKS = pytest.StashKey[Ranks]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the ranks, where tests that are to run ask something of them."""
    modules = {item.module for item in session.items if "session" in item.fixturenames}
    if modules and not session.config.option.collectonly:
        asked = {module.WORKER: module.ASKED for module in modules}
        session.config.stash[RANKS] = Ranks(asked)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no process behind, however the tests ended."""
    if RANKS in config.stash:
        config.stash[RANKS].end()


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Session:
    """What this file's worker measured."""
    return request.config.stash[RANKS].found(request.module.WORKER)

"""Entry points run in this process as a shell would run them, on models that are made once."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from launch.entry import run_entry

SMALL = [
    "benchmark=mini_small",
    "benchmark.authors=6",
    "benchmark.biographies=2",
    "benchmark.stories=2",
    "benchmark.world=3",
    "benchmark.background=1",
    "benchmark.retain_rows=6",
    "benchmark.max_new_tokens=8",
    "benchmark.target.epochs=1",
    "model=tiny",
    "model.hidden_size=16",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=32",
    "model.vocabulary=400",
]
"""The model and benchmark of all launch tests: the target and gold models are made once."""


class Ended(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


class Shell:
    """Runs entry points and looks at what they leave."""

    def __init__(
        self, cache: Path, patch: pytest.MonkeyPatch, streams: pytest.CaptureFixture[str]
    ) -> None:
        self.cache = cache
        self._patch = patch
        self._streams = streams

    def small(self, *arguments: str) -> list[str]:
        """The arguments of a small run of `launch.train`."""
        return [*SMALL, f"cache={self.cache}", "tracker=none", "batch_size=4", *arguments]

    def run(self, entry: str, *arguments: str) -> Ended:
        """`python -m launch.<entry> <arguments>`, in this process."""
        self._patch.setattr(sys, "argv", [entry, *arguments])
        self._streams.readouterr()
        code = 0
        try:
            run_entry(importlib.import_module(f"launch.{entry}").main)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return Ended(code, *self._streams.readouterr())

    def train(self, *arguments: str) -> Ended:
        """A small run that must succeed."""
        ended = self.run("train", *self.small(*arguments))
        assert ended.code == 0, ended.err
        return ended

    def mistake(self, entry: str, *arguments: str) -> str:
        """The one line that a user is told."""
        ended = self.run(entry, *arguments)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1, ended.err
        return ended.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the target and gold models of all tests are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shell(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """A shell in which `launch.*` can be run."""
    monkeypatch.setenv("COLUMNS", "100")
    return Shell(cache, monkeypatch, capsys)


@pytest.fixture
def target(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's run of all small runs, made once: a run that must make it says so."""

    def found() -> list[Path]:
        return list(shell.cache.glob("mini_small-*/target"))

    if not found():
        first = tmp_path_factory.mktemp("first")
        shell.train(f"output={first}", "max_steps=1", "evaluate=false", "save_every=0")
    [folder] = found()
    return folder


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """Reads the exported weights of a run."""
    return lambda run: load_file(run / "model" / "model.safetensors")


@pytest.fixture
def evaluation() -> Callable[[Path], dict[str, Any]]:
    """Reads the evaluation of a run."""
    return lambda run: json.loads((run / "evaluation.json").read_text())

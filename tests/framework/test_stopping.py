"""Signals end a run between two steps: noted, agreed on, obeyed with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny
import torch

from framework.checkpoint import Checkpoints
from framework.engine import LocalEngine
from framework.loop import Loop, train
from framework.sampler import ForgetRetainSampler
from framework.stopping import Asked, Stopping
from framework.time_limit import TimeLimit
from framework.trainer import UnlearningTrainer


class Keeping(tiny.Watching):
    """Knows after which steps the model was to be written."""

    def __init__(self, measure: Callable[[int], object], limit: TimeLimit) -> None:
        super().__init__(measure)
        self.limit = limit
        self.kept: list[int] = []

    def keep(self, step: int) -> None:
        with self.limit.timed("model"):
            self.kept.append(step)


class Run:
    """A tiny run that signals itself after given steps."""

    def __init__(self, folder: Path) -> None:
        self.optimizer = tiny.optimizer("adamw", clip=None)
        self.engine: LocalEngine = tiny.local_engine(self.optimizer)
        self.trainer: UnlearningTrainer = tiny.trainer(
            self.engine, self.engine.model, [], method="grad_diff", optimizer=self.optimizer
        )
        self.sampler = ForgetRetainSampler(
            {"forget": tiny.rows(5, name="f"), "retain": tiny.rows(9, name="r")},
            batch_size=2,
            seed=0,
        )
        self.checkpoints = Checkpoints(folder, config="")

    def go(
        self,
        signals: Mapping[int, list[signal.Signals]],
        *,
        save_every: int = 0,
        limit: TimeLimit | None = None,
    ) -> signal.Signals | None:
        def after(step: int) -> None:
            for number in signals.get(step, []):
                os.kill(os.getpid(), number)

        self.watch = Keeping(after, TimeLimit(None) if limit is None else limit)
        with Stopping.listening() as stopping:
            return train(
                self.engine,
                self.trainer,
                self.sampler,
                Loop(5, save_every=save_every, evaluate_every=1),
                checkpoints=self.checkpoints,
                watch=self.watch,
                stopping=stopping,
                limit=limit,
            )


@pytest.mark.parametrize("asked", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    asked: signal.Signals, tmp_path: Path
) -> None:
    run = Run(tmp_path)

    assert run.go({2: [asked]}) is asked
    assert run.trainer.steps_done == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("minutes", "save_every", "kept", "saved"),
    [(60, 0, [1, 3], []), (60, 100, [1], ["step-00000003"]), (None, 0, [], ["step-00000003"])],
)
def test_under_a_time_limit_without_checkpoints_a_signal_leaves_the_model(
    minutes: float | None, save_every: int, kept: list[int], saved: list[str], tmp_path: Path
) -> None:
    run = Run(tmp_path)
    limit = TimeLimit(minutes)

    assert run.go({3: [signal.SIGTERM]}, save_every=save_every, limit=limit) is signal.SIGTERM
    assert run.watch.kept == kept  # under a limit always after the first step
    assert [path.name for path in tmp_path.iterdir()] == saved


def test_a_run_that_is_cut_twice_ends_like_one_that_is_not(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    assert whole.go({}) is None
    for step in (1, 3):
        run = Run(tmp_path / "cut")
        if newest := run.checkpoints.newest():
            run.checkpoints.restore(newest, run.engine, run.trainer)
        assert run.go({step: [signal.SIGUSR1]}) is signal.SIGUSR1
    last = Run(tmp_path / "cut")
    newest = last.checkpoints.newest()
    assert newest is not None
    last.checkpoints.restore(newest, last.engine, last.trainer)
    assert last.trainer.steps_done == 3
    assert last.go({}) is None

    found, expected = last.engine.state_dict(), whole.engine.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    run = Run(tmp_path)

    run.go({1: [signal.SIGUSR1]}, save_every=1)
    written = (tmp_path / "step-00000001" / "manifest.json").stat().st_mtime_ns

    again = Run(tmp_path)
    again.checkpoints.restore(tmp_path / "step-00000001", again.engine, again.trainer)
    with Stopping.listening() as stopping:
        os.kill(os.getpid(), signal.SIGUSR1)
        asked = train(
            again.engine,
            again.trainer,
            again.sampler,
            Loop(5),
            checkpoints=again.checkpoints,
            stopping=stopping,
        )
    assert asked is signal.SIGUSR1
    assert again.trainer.steps_done == 1
    assert (tmp_path / "step-00000001" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("order", [1, -1])
def test_of_both_signals_the_end_counts(order: int, tmp_path: Path) -> None:
    both = [signal.SIGUSR1, signal.SIGTERM][::order]

    assert Run(tmp_path).go({1: both}) is signal.SIGTERM


def test_outside_the_block_signals_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)

    with Stopping.listening() as stopping:
        assert stopping.agreed() is None
        assert signal.getsignal(signal.SIGTERM) != before[1]

    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_that_may_not_listen_goes_on_without() -> None:
    heard: list[signal.Signals | None] = []

    def work() -> None:
        with Stopping.listening() as stopping:
            heard.append(stopping.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert heard == [None]


def test_work_that_leaves_nothing_to_save_ends_where_the_signal_finds_it() -> None:
    with Stopping.listening() as stopping:

        def work() -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(10)

        with pytest.raises(Asked) as ended, stopping.at_once():
            work()
        assert ended.value.signal is signal.SIGUSR1

        os.kill(os.getpid(), signal.SIGTERM)  # afterwards it is only noted
        assert stopping.agreed() is signal.SIGTERM

        with pytest.raises(Asked) as ended, stopping.at_once():
            pytest.fail("a signal from before ended nothing")
        assert ended.value.signal is signal.SIGTERM

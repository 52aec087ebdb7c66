"""The loop: step after step over the sampler's rows, with logging, checkpoints and evaluation."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

from .checkpoint import Checkpoints
from .engine import Engine
from .parts import Plan
from .sampler import ForgetRetainSampler
from .stopping import Asked, Stopping
from .terminal import Progress, say
from .time_limit import TimeLimit
from .tracking import Tracker
from .trainer import Batches, UnlearningTrainer


@dataclass(frozen=True)
class Loop:
    """How long, and what happens every so many steps; 0 means never."""

    steps: int
    log_every: int = 1
    save_every: int = 0
    evaluate_every: int = 0


class Watch(Protocol):
    """What is done with the model while it is trained."""

    def measure(self, step: int) -> object:
        """Measure it as it is, every `evaluate_every` steps, and record what is found."""

    def was_measured(self, step: int) -> bool:
        """Whether an earlier start measured it after that step; the same on every rank."""

    def keep(self, step: int) -> object:
        """Write it as it is, now and then under a time limit: it may be the last."""


def train(
    engine: Engine,
    trainer: UnlearningTrainer,
    sampler: ForgetRetainSampler,
    loop: Loop,
    *,
    tracker: Tracker | None = None,
    checkpoints: Checkpoints | None = None,
    watch: Watch | None = None,
    stopping: Stopping | None = None,
    limit: TimeLimit | None = None,
    description: str = "unlearning",
) -> signal.Signals | None:
    """Go on from `trainer.steps_done` to `loop.steps`, or as far as `stopping` and `limit` let.

    The model after the last step is the caller's to measure and to write. Gives the signal that
    ended the run early, which then has a checkpoint of its last step, or under a time limit without
    `save_every` its model; else None.
    """
    model, first = trainer.model, trainer.steps_done
    limit = TimeLimit(None) if limit is None else limit
    heeded = nullcontext if stopping is None else stopping.heeded
    left = _Left(engine, trainer, loop, checkpoints, watch, limit, heeded, saved=first)
    trainer.begin(Plan(loop.steps, sampler.steps_per_epoch))
    limit.begin(done=first, steps=loop.steps)
    model.module.train()
    batches, size = _read_in(first, trainer, sampler, loop)
    left.taken_up()
    tokens, since = 0, time.perf_counter()
    with Progress(description, loop.steps, done=first) as bar:
        while trainer.steps_done < loop.steps and limit.room_for("step"):
            asked = stopping.agreed() if stopping is not None else None
            if asked is not None:
                left.at_a_signal()
                return asked
            rate = trainer.optimizer.learning_rate(trainer.steps_done, loop.steps)
            # with what is logged, or is settled: a GPU is waited for there, not in what comes next
            with limit.timed("step"):
                trainer.step(batches, learning_rate=rate)
                done = trainer.steps_done
                tokens += size
                # while a GPU takes the step, and before what is logged waits for it
                batches, size = _read_in(done, trainer, sampler, loop)
                shown: dict[str, float | str] = {}
                if _due(done, loop.log_every, loop.steps):
                    metrics = trainer.metrics()
                    metrics["train/epoch"] = sampler.epoch(done)
                    metrics["train/tokens_per_second"] = tokens / (time.perf_counter() - since)
                    tokens, since = 0, time.perf_counter()
                    shown = _shown(metrics, trainer.objectives)
                    if tracker is not None:
                        tracker.log(done, metrics)
                elif limit:
                    trainer.settle()
            bar.advance(1, **shown)
            limit.forecast(done)
            if left.after(done):
                since = time.perf_counter()
    if trainer.steps_done < loop.steps:
        left.at_the_limit()
    trainer.finish()  # after the last checkpoint, which holds the weights to go on from
    model.module.eval()
    return None


def _read_in(
    step: int, trainer: UnlearningTrainer, sampler: ForgetRetainSampler, loop: Loop
) -> tuple[Batches, int]:
    """What this rank reads in a step, and the tokens of all ranks' rows; beyond the end nothing."""
    if step >= loop.steps:
        return [], 0
    rows = sampler[step]
    size = sum(row.tokens for chosen in rows.values() for row in chosen)
    return trainer.micro_batches(rows, step), size


@dataclass
class _Left:
    """What a run leaves on the way and where it ends early: measurements, model, checkpoints."""

    engine: Engine
    trainer: UnlearningTrainer
    loop: Loop
    checkpoints: Checkpoints | None
    watch: Watch | None
    limit: TimeLimit
    heeded: Callable[[], AbstractContextManager[object]]
    """Inside, a signal raises Asked."""
    saved: int
    """The step of the newest checkpoint; at first, that at which this start began."""

    def taken_up(self) -> None:
        """Measure the model that an earlier start was asked to leave before it had."""
        done = self.trainer.steps_done
        if self.watch is None or not _due(done, self.loop.evaluate_every, None):
            return
        if 0 < done < self.loop.steps and not self.watch.was_measured(done):
            self._measure(done)

    def after(self, done: int) -> bool:
        """Do what is due after a step; whether anything was done."""
        # before the checkpoint: a resumed run does not come here again
        looked = done < self.loop.steps and self._look(done)
        due = self.checkpoints is not None and _due(done, self.loop.save_every, self.loop.steps)
        if due:
            with self.limit.timed("checkpoint"):
                self._save()
        return looked or due

    def at_a_signal(self) -> None:
        """Save the last step; where time is short and no checkpoints are wanted, its model."""
        done = self.trainer.steps_done
        if done == self.saved:
            return
        if self.watch is not None and self.limit and not self.loop.save_every:
            self.trainer.finish()
            self.watch.keep(done)
        else:
            self._save()

    def at_the_limit(self) -> None:
        """Say how far the run came; save its last step, where checkpoints are wanted."""
        done = self.trainer.steps_done
        told = f"time_limit: {done} of {self.loop.steps} steps are taken"
        if self.checkpoints is not None and self.loop.save_every:
            told += "; resume=auto goes on from there"
            if done > self.saved:
                self.trainer.settle()
                if self.watch is not None:  # first: how long a checkpoint takes may not be known
                    self.watch.keep(done)
                self._save()
        say(told)

    def _look(self, done: int) -> bool:
        """Write and measure the model where it is due and there is time; whether it did either."""
        if self.watch is None:
            return False
        kept = self.limit.model_due()
        measured = _due(done, self.loop.evaluate_every, None)
        if kept or measured:
            self.trainer.settle()
        if kept:  # first: how long an evaluation takes may not be known
            self.watch.keep(done)
        measured = measured and self._measure(done)
        return kept or measured

    def _measure(self, done: int) -> bool:
        """Measure the model where there is time; a signal ends it, to be done again by the next."""
        if self.watch is None or not self.limit.room_for("evaluation"):
            return False
        with suppress(Asked), self.limit.timed("evaluation"), self.heeded():
            self.watch.measure(done)
        return True

    def _save(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self.engine, self.trainer)
            self.saved = self.trainer.steps_done


def _shown(metrics: Mapping[str, float], objectives: Sequence[str]) -> dict[str, float | str]:
    """What a person watches: losses, dual variables, speed, memory."""
    shown: dict[str, float | str] = {n: metrics[f"train/{n}/loss"] for n in objectives}
    for name in objectives:
        if f"train/{name}/slack" in metrics:
            shown[f"{name} dual"] = metrics[f"train/{name}/weight"]
    shown["tokens/s"] = f"{metrics['train/tokens_per_second']:,.0f}"
    shown["memory"] = f"{metrics['train/peak_memory_gib']:.1f} GiB"
    return shown


def _due(done: int, every: int, last: int | None) -> bool:
    return every > 0 and (done % every == 0 or done == last)

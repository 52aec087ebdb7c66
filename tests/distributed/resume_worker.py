"""Interrupts runs under ZeRO, takes them up in new objects and compares with runs that went on.

A case is a dict (see `Case`); `worker.py` starts both ranks. Two further results are of failures
that one process alone meets: `full disk` and `other world size`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import torch

from framework import Tracker, distributed
from framework.averaging import WeightAveraging
from framework.checkpoint import Checkpoints
from framework.engine import Engine
from framework.errors import CheckpointError, WorldSizeError
from framework.kept import keep
from framework.loop import Loop, train
from framework.muon import Muon
from framework.optimizers import AdamW
from framework.parts import Weighting
from framework.sampler import ForgetRetainSampler
from framework.stopping import Stopping
from framework.tracking import METRICS_FILE, read_metrics
from framework.trainer import UnlearningTrainer
from framework.zero import ZeroEngine

STEPS, HALF = 10, 5
TOKENS = 40  # of a micro-batch: several a step
UNEVEN = 50  # of a pack: of what is measured one rank has a pack more
FORGET, RETAIN = tiny.rows(12, name="f"), tiny.rows(17, name="r")
MEASURED = {"train/tokens_per_second", "train/peak_memory_gib"}  # of the machine, not of the run


@dataclass(frozen=True)
class Case:
    """One run of ten steps; stage `none` is plain torch."""

    stage: str
    precision: str = "fp32"
    offload: str = "none"
    tuning: str = "full"
    tied: bool = False
    remembering: bool = False
    optimizer: str = "adamw"
    retain: str = "nll"

    @property
    def name(self) -> str:
        """What differs from the defaults, for test ids."""
        chosen = asdict(self)
        words = [f"zero-{self.stage}"]
        for field in fields(self)[1:]:
            value = chosen[field.name]
            if value != field.default:
                words.append(value if isinstance(value, str) else field.name)
        return "-".join(words)


class Run(NamedTuple):
    """What a run is made of."""

    engine: Engine
    trainer: UnlearningTrainer
    checkpoints: Checkpoints
    folder: Path


class State(NamedTuple):
    """Where a run is."""

    masters: dict[str, torch.Tensor]
    forward: dict[str, torch.Tensor]
    random: list[float]


def start(case: Case, folder: Path, *, seed: int = 0, weighting: Weighting | None = None) -> Run:
    """Everything new: NPO x BLUR x SAM, dropout on, warm-up and decay.

    A remembering run has GRU's running mean for BLUR, averages its weights and finds its rate.
    """
    settings = {"tuning": case.tuning, "tied": case.tied, "attention_dropout": 0.2}
    model = tiny.language_model(**settings, seed=seed)
    kind = {"adamw": AdamW, "muon": Muon}[case.optimizer]
    optimizer = kind(
        kind.Config(
            learning_rate=3e-3,
            warmup=0.3,
            schedule="cosine",
            weight_decay=0.1,
            automatic_every=3 if case.remembering else 0,
        )
    )
    if weighting is None:
        weighting = tiny.WEIGHTINGS["gru" if case.remembering else "blur"]()
    averaging = WeightAveraging(WeightAveraging.Config(start=0.2, every=2))
    engine: Engine
    if case.stage == "none":
        engine = tiny.LocalEngine(
            tiny.LocalEngine.Config(),
            model=model,
            optimizer=optimizer,
            precision=case.precision,  # type: ignore[arg-type]
        )
    else:
        engine = ZeroEngine(
            ZeroEngine.Config(stage=case.stage, offload=case.offload, bucket=20_000),  # type: ignore[arg-type]
            model=model,
            optimizer=optimizer,
            precision=case.precision,  # type: ignore[arg-type]
        )
    trainer = tiny.trainer(
        engine,
        tiny.language_model(**settings),  # before unlearning, whatever `seed` says
        [{"forget": FORGET, "retain": RETAIN}],
        method="npo",
        retain_loss=case.retain,
        weighting=weighting,
        perturbation=tiny.PERTURBATIONS["sam"](),
        averaging=averaging if case.remembering else None,
        optimizer=optimizer,
    )
    return Run(engine, trainer, Checkpoints(folder / "checkpoints", keep=2), folder)


def go_on(run: Run, *, save_every: int = 0) -> tuple[State, State, list[dict[str, Any]]]:
    """From where the run is to its end: its state at half and at the end, and its metrics."""
    half: list[State] = []

    def look(step: int) -> None:
        if step == HALF:
            half.append(state(run))

    tracker = Tracker(None, run.folder, run_config={}, name="", job_type="")
    tracker.rewind(run.trainer.steps_done)
    if run.trainer.steps_done == HALF:
        look(HALF)
    run.trainer.model.tokens_per_micro_batch = TOKENS
    train(
        run.engine,
        run.trainer,
        ForgetRetainSampler({"forget": FORGET, "retain": RETAIN}, batch_size=5, seed=3),
        Loop(steps=STEPS, save_every=save_every, evaluate_every=1),
        tracker=tracker,
        checkpoints=run.checkpoints,
        watch=tiny.Watching(look),
    )
    tracker.finish()
    distributed.barrier()
    metrics, _ = read_metrics(run.folder / METRICS_FILE)
    distributed.barrier()
    kept = [{k: v for k, v in m.items() if k not in {"time", *MEASURED}} for m in metrics]
    return half[0], state(run), kept


def state(run: Run) -> State:
    """Copies of the weights, and what would be drawn next."""
    forward = {name: weight.clone() for name, weight in run.engine.state_dict().items()}
    kept = random.getstate(), torch.get_rng_state()
    drawn = [random.random(), float(torch.rand(()))]
    random.setstate(kept[0])
    torch.set_rng_state(kept[1])
    return State(run.engine.master_weights(), forward, drawn)


def measure(
    case: Case, folder: Path, *, weighting: Callable[[], Weighting | None] = lambda: None
) -> dict[str, Any]:
    """Whether 10 steps are a checkpoint after 5, everything new, and 5 more, bit for bit."""
    shake(distributed.rank())
    whole = start(case, folder, weighting=weighting())
    half, right, metrics = go_on(whole, save_every=HALF)
    whole.engine.close()
    assert not same(half.masters, right.masters), "the second half moved nothing"
    shake(77)
    seed = 1 if case.tuning == "full" else 0  # what is frozen is not in a checkpoint
    second = start(case, folder, weighting=weighting(), seed=seed)
    second.checkpoints.restore(second.checkpoints.folder / f"step-{HALF:08d}", *second[:2])
    again, found, repeated = go_on(second)
    second.engine.close()
    return {
        "restored": same(again.masters, half.masters) and same(again.forward, half.forward),
        "masters": same(found.masters, right.masters),
        "forward": same(found.forward, right.forward),
        "metrics": repeated == metrics,
        "logged": [m["step"] for m in repeated],
        "random": again.random == half.random and found.random == right.random,
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all is equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shake(seed: int) -> None:
    """Put the random states of this process where `seed` says."""
    random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the kernel refuses to let a file grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(stage: str, rank: int, folder: Path) -> dict[str, Any]:
    """What every rank sees when the disk of `rank` is full at the second checkpoint."""
    run = start(Case(stage), folder)
    kept = run.checkpoints.save(run.engine, run.trainer)
    run.trainer.steps_done = 1
    message = ""
    try:
        with files_of_at_most(10_000 if distributed.rank() == rank else 1 << 40):
            run.checkpoints.save(run.engine, run.trainer)
    except CheckpointError as error:
        message = str(error)
    distributed.barrier()
    left = sorted(path.name for path in run.checkpoints.folder.iterdir())
    newest = run.checkpoints.newest()
    again = run.checkpoints.save(run.engine, run.trainer)
    run.engine.close()
    return {"message": message, "left": left, "newest": newest == kept, "again": again.name}


class Scoring:
    """Scores rows where a run is to be measured; on request rank 1 alone gets a signal there."""

    def __init__(self, run: Run, *, asked: bool) -> None:
        self.run, self.asked = run, asked
        self.passes = 0
        self.found: dict[int, list[float]] = {}

    def measure(self, step: int) -> None:
        """Note each row's score."""
        if self.asked and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

        def count(*_: object) -> None:
            self.passes += 1

        counting = self.run.trainer.model.module.register_forward_pre_hook(count)
        self.passes = 0
        try:
            scores = self.run.trainer.model.score_rows([*FORGET, *RETAIN])
        finally:
            counting.remove()
        self.found[step] = [score.nll for score in scores]

    def was_measured(self, step: int) -> bool:
        """Only in this start."""
        return step in self.found

    def keep(self, step: int) -> None:
        """Nothing is written."""


def asked_while_measured(stage: str, folder: Path) -> dict[str, Any]:
    """What a signal to rank 1 in an evaluation at half leaves, and what the next start makes of it.

    `passes`: forward passes of that evaluation, and of one that is not disturbed.
    """
    ended, found, weights, passes = [], [], [], []
    for name, asked in (("run", True), ("run", False), ("whole", False)):
        run = start(Case(stage), folder / name)
        run.trainer.model.tokens_per_micro_batch = UNEVEN
        newest = run.checkpoints.newest()
        if newest is not None:
            run.checkpoints.restore(newest, run.engine, run.trainer)
        scoring = Scoring(run, asked=asked)
        with Stopping.listening() as stopping:
            signalled = train(
                run.engine,
                run.trainer,
                ForgetRetainSampler({"forget": FORGET, "retain": RETAIN}, batch_size=5, seed=3),
                Loop(steps=STEPS, evaluate_every=HALF),
                checkpoints=run.checkpoints,
                watch=scoring,
                stopping=stopping,
            )
        ended.append((None if signalled is None else signalled.name, run.trainer.steps_done))
        found.append(scoring.found)
        weights.append(run.engine.master_weights())
        passes.append(scoring.passes)
        run.engine.close()
    return {
        "ended": ended,
        "passes": passes[:2],
        "measured": [sorted(each) for each in found],
        "same": found[1] == found[2] and same(weights[1], weights[2]),
    }


def other_world_size(folder: Path) -> str:
    """What every rank is told of a checkpoint that one process wrote."""
    folder = folder / f"rank{distributed.rank()}"
    with distributed.alone():
        alone = start(Case("none"), folder)
        written = alone.checkpoints.save(alone.engine, alone.trainer)
    try:
        alone.checkpoints.restore(written, alone.engine, alone.trainer)
    except WorldSizeError as error:
        return str(error)
    return ""


def kept_without_space(folder: Path) -> str:
    """What every rank is told where rank 0 cannot write a file that is kept beside the run."""
    try:
        with files_of_at_most(10_000):
            keep(folder / "kept.pt", lambda file: torch.save(torch.zeros(100_000), file), what="it")
    except CheckpointError as error:
        return str(error)
    return ""


def main(asked: Path, file: Path) -> None:
    """Run all cases; rank 0 writes everybody's results after each one."""
    cases = [Case(**case) for case in json.loads(asked.read_text())]
    results: dict[str, Any] = {}

    def record(name: str, result: Any) -> None:
        results[name] = distributed.all_gather_objects(result)
        if distributed.is_main():
            file.write_text(json.dumps(results))

    for case in cases:
        print(case.name, file=sys.stderr)  # noqa: T201 - the last one is where it broke
        record(case.name, measure(case, file.parent / case.name))
    record("other world size", other_world_size(file.parent / "alone"))
    for stage in "23":
        name = f"asked while measured, zero-{stage}"
        print(name, file=sys.stderr)  # noqa: T201
        record(name, asked_while_measured(stage, file.parent / name))
    record("kept file", kept_without_space(file.parent))
    for stage in "023":
        for rank in (0, 1):
            name = f"full disk of rank {rank}, zero-{stage}"
            print(name, file=sys.stderr)  # noqa: T201
            record(name, full_disk(stage, rank, file.parent / name))

"""Faults inside a step: a rank that fails, hangs or is stopped, NaN in a loss or in a gradient."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from runs import Run, Tally, must, tell

from framework.kept import read
from framework.zero import CHECKPOINT_TYPES

FAULTY = ["trainer.class=faulty.Faulty"]
HANG = 0.25
"""Minutes without a sign of life after which a rank ends itself."""
LAUNCHER = 120.0
"""Seconds that it takes at most on a busy machine to notice, to say so and to end the others."""
AT = 7


def all_of(tally: Tally, folder: Path, settings: list[str]) -> None:
    """Hangs under torchrun, a stopped process, NaN by policy, an error on one rank."""
    for zero, ranks in (("none", 1), ("2", 2), ("3", 2)):
        for fault in ("loss", "gradient") if zero != "3" else ("gradient",):
            for policy in ("skip", "stop"):
                own = [*settings, *FAULTY, f"zero={zero}", f"trainer.on_nonfinite={policy}"]
                run = Run(folder / f"nan-{zero}-{fault}-{policy}", *own, ranks=ranks)
                where = " on one rank" if ranks > 1 else ""
                kind = f"NaN in a {fault}{where}, zero={zero}, on_nonfinite={policy}"
                tally.fault(kind, lambda run=run, f=fault, p=policy: check_nan(run, f, p))
    for zero in "23":
        own = [*settings, f"zero={zero}", "perturbation=sam"]
        whole = Run(folder / f"error-whole-{zero}", *own, *FAULTY, ranks=2)
        whole.finish()
        run = Run(folder / f"error-{zero}", *own, *FAULTY, ranks=2)
        kind = f"an error on one rank where the model is shifted, zero={zero}"
        tally.fault(kind, lambda run=run, whole=whole: check_error(run, whole))
    whole = Run(folder / "hang-whole", *settings, "zero=2", ranks=2)
    whole.finish()
    own = [*settings, *FAULTY, "zero=2", f"hang_timeout={HANG}"]
    for name, check in (("hangs in a step", check_hang), ("is stopped", check_stopped)):
        run = Run(folder / name.replace(" ", "-"), *own, ranks=2)
        tally.fault(f"a rank that {name}, zero=2", lambda run=run, c=check: c(run, whole))


def check_nan(run: Run, fault: str, policy: str) -> None:
    """The step is skipped, or the run stops and says why; what it keeps is finite."""
    poison = {"FAULT": fault, "FAULT_STEP": str(AT), "FAULT_RANK": str(run.ranks - 1)}
    os.environ.update(poison)  # what is forked has it too
    try:
        codes = run.ended()
    finally:
        for name in poison:
            del os.environ[name]
    step = run.check_kept()
    for file in (run.checkpoints / f"step-{step:08d}").rglob("*.pt"):
        for tensor in tensors(read(file, types=CHECKPOINT_TYPES)):
            must(bool(torch.isfinite(tensor).all()), f"{file.name} of step {step} is poisoned")
    if policy == "skip":
        must(set(codes) == {0}, f"exit codes {codes}\n{run.told()}")
        finite = all(bool(weight.isfinite().all()) for weight in run.weights().values())
        must(finite, "the model that is left is not finite")
        skipped = [line["train/skipped_steps"] for line in run.steps()]
        must(skipped == [0.0] * AT + [1.0] * (len(skipped) - AT), f"skipped: {skipped}")
        return
    must(set(codes) == {2}, f"exit codes {codes}\n{run.told()}")
    must(step == AT - AT % 2, f"the newest checkpoint is of step {step}")
    told = f"error: the gradient became NaN or infinite at step {AT + 1} ("
    must(run.told().count(told) == 1, f"it says:\n{run.told()}")
    run.finish()  # without the fault


def check_error(run: Run, whole: Run) -> None:
    """It is told at once, and the other rank waits for nobody; then the run goes on."""
    fault = {"FAULT": "error", "FAULT_STEP": str(AT), "FAULT_RANK": "1"}
    os.environ.update(fault)
    try:
        codes = run.ended(seconds=60)
    finally:
        for name in fault:
            del os.environ[name]
    must(all(codes), f"exit codes {codes}")
    must("RuntimeError: the fault of one rank" in run.log(1).read_text(), run.told())
    told = run.log(0).read_text()
    must("peer" in told or "onnection" in told, f"the other rank says:\n{told}")
    go_on(run, whole)


def tensors(content: Any) -> Iterator[torch.Tensor]:
    """All floating-point tensors in a file."""
    if isinstance(content, torch.Tensor):
        if content.is_floating_point():
            yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from tensors(value)


def check_hang(run: Run, whole: Run) -> None:
    """Under torchrun the job ends in time, with the stack of each rank; then it goes on."""
    fault = {"FAULT": "hang", "FAULT_STEP": str(AT), "FAULT_RANK": "1"}
    with run.torchrun(**fault) as torchrun:
        while len(run.steps()) < AT and torchrun.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        try:
            code = torchrun.wait(60 * HANG + LAUNCHER)
        except subprocess.TimeoutExpired:
            torchrun.terminate()
            must(False, "the job still runs")
    tell(f"hang_timeout={HANG}: the job ended {time.monotonic() - began:.0f} s after the last step")
    told = run.told()
    must(code != 0, "exit code 0")
    must("for 0.25 minutes (hang_timeout)" in told, f"it says:\n{told}")
    must("faulty.py" in told and "in forget_loss" in told, f"no stack of rank 1:\n{told}")
    must("error on rank 0" in told or "Connection closed by peer" in told, f"rank 0:\n{told}")
    go_on(run, whole)


def check_stopped(run: Run, whole: Run) -> None:
    """A process that is stopped from outside cannot end itself: the other one does."""
    ranks = run.start()
    while len(run.steps()) < AT and ranks.poll():
        time.sleep(0.01)
    ranks.send(signal.SIGSTOP, 1)
    until = time.monotonic() + 60 * HANG + LAUNCHER
    while ranks.poll() and time.monotonic() < until:
        time.sleep(0.05)
    code = ranks.codes.get(0)
    ranks.send(signal.SIGKILL)
    ranks.wait(10)
    must(code == 1, f"rank 0 ended with {code}\n{run.told()}")
    must("error on rank 0: no step and no batch" in run.told(), f"it says:\n{run.told()}")
    go_on(run, whole)


def go_on(run: Run, whole: Run) -> None:
    """Without the fault the run comes to the undisturbed run's end."""
    run.check_kept()
    run.finish("hang_timeout=30")  # on a busy machine getting ready takes longer than HANG
    run.check_end(whole)

"""Unlearn, or fine-tune: one run, from its settings to a model, its numbers and its folder.

python -m launch.train trainer=npo benchmark=mini
python -m launch.train trainer=npo weighting=blur perturbation=sam optimizer.learning_rate=1e-4
torchrun --nproc_per_node 2 -m launch.train trainer=npo zero=2 benchmark=lume benchmark.path=DIR
python -m launch.train --config runs/x/config.yaml resume=auto
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from framework import Tracker, build, distributed
from framework.checkpoint import Checkpoints
from framework.config import load, save
from framework.errors import NonFiniteError, RunExistsError
from framework.evaluation.benchmark import Benchmark, Evaluation
from framework.lock import locked
from framework.loop import Loop, train
from framework.memory import device_memory
from framework.reference import CachedReference
from framework.stopping import Asked, Stopping
from framework.terminal import say
from framework.time_limit import TimeLimit
from framework.watchdog import watching

from .assembly import Assembly, assemble, check, check_after, shared_reference
from .dry_run import dry_run
from .entry import run_entry
from .fitted import fitted
from .kept_model import KeptModel, Watch, check_best
from .outcome import (
    evaluation_of,
    is_finished,
    make_folder,
    measure,
    provenance,
    record_run,
    references_of,
    show,
    tracker_of,
    was_cut,
    write_evaluation,
)
from .prepare import prepare, prepared
from .settings import (
    RunSettings,
    as_begun,
    check_same,
    is_sharded,
    label,
    needs_target,
    parse,
    run_name,
    steps_of,
)


def main(arguments: list[str]) -> None:
    """The whole run."""
    config, options = parse(arguments, entry="train", schema=RunSettings, about=__doc__ or "")
    limit = TimeLimit(config.time_limit)
    benchmark: Benchmark = build(config.benchmark)
    check(config, benchmark)
    check_after(config)
    check_best(config, benchmark)
    if options.dry_run:
        dry_run(config, benchmark)
        return
    folder = Path(config.output)
    config = as_begun_there(config, folder)
    if is_finished(folder) and not _goes_on(folder):
        if distributed.launcher_rank() == 0:
            cut = "was cut by its time limit and has no checkpoint to go on from"
            say(f"{folder} {cut if was_cut(folder) else 'is finished'}; nothing is left to do")
        return
    if needs_target(config):
        prepare(config, benchmark)
    if distributed.launched() or is_sharded(config):
        distributed.connect()
    make_folder(folder)
    with locked(folder), watching(config.hang_timeout):
        if distributed.is_main() and not (folder / "config.yaml").is_file():
            # left by a start that failed
            for name in ("preferred.json", "selection.pt"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "reference", ignore_errors=True)
        distributed.barrier()
        config = distributed.on_rank_zero(lambda: fitted(config, benchmark, device_memory()))
        parts = assemble(config, benchmark, folder=folder)
        if distributed.is_main():
            save(config, folder / "config.yaml")
        with Stopping.listening() as stopping:
            asked = run(config, parts, folder, stopping, limit)
    if asked is not None:
        ended_early(asked, parts.trainer.steps_done)


def run(
    config: DictConfig, parts: Assembly, folder: Path, stopping: Stopping, limit: TimeLimit
) -> signal.Signals | None:
    """Train, keep the model, measure it; gives the signal that ended this early, if one did."""
    started = time.time()
    loop = Loop(
        steps=steps_of(config, parts.sampler.steps_per_epoch),
        log_every=config.log_every,
        save_every=config.save_every,
        evaluate_every=config.evaluate_every,
    )
    record_run(folder, config, steps=loop.steps)
    references = reference_evaluations(config, parts.benchmark)
    tracker = tracker_of(config, folder, name=run_name(config), job_type="train")
    checkpoints = Checkpoints(
        folder / "checkpoints", keep=config.keep_checkpoints, config=OmegaConf.to_yaml(config)
    )
    exit_code = 1
    try:
        resume(config, checkpoints, parts, tracker)
        kept = KeptModel(config, parts, folder, limit)
        watch = Watch(config, parts, references, tracker, kept)
        asked = train(
            parts.engine,
            parts.trainer,
            parts.sampler,
            loop,
            tracker=tracker,
            checkpoints=checkpoints,
            watch=watch,
            stopping=stopping,
            limit=limit,
            description=label(config),
        )
        done = parts.trainer.steps_done
        if asked is None:
            asked = finish(config, watch, done, stopping)
        if asked is not None:
            if asked is signal.SIGUSR1:
                tracker.preempting()
            say(f"{asked.name}: {stopped(done, loop.steps, checkpoints)}")
            return asked
        if config.evaluate:
            try:
                # without a checkpoint of the last step there is nothing to go on from
                with stopping.at_once() if config.save_every else nullcontext():
                    measure_result(config, parts, kept, references, tracker)
            except Asked as ended:
                say(f"{ended}: stopped while measuring; resume=auto measures the model again")
                return ended.signal
            tracker.keep("evaluation", folder / "evaluation.json", name=folder.name)
        tracker.keep("model", folder / "model", name=folder.name)
        seconds = time.time() - started
        record_run(
            folder, config, steps=loop.steps, seconds=seconds, taken=done, step_of_model=kept.step
        )
        tell_taken(config, parts)
        say(f"run: {folder}")
        exit_code = 0
        return None
    except KeyboardInterrupt:  # ends it at once, wherever it is
        say(f"SIGINT: {stopped(parts.trainer.steps_done, loop.steps, checkpoints)}")
        raise
    except NonFiniteError as error:  # in this folder, other settings are refused
        other = f"--config {folder}/config.yaml output=DIR"
        raise NonFiniteError(f"{error}; in another output: {other} and what you change") from error
    finally:
        tracker.finish(exit_code)
        parts.engine.close()


def finish(
    config: DictConfig, watch: Watch, step: int, stopping: Stopping
) -> signal.Signals | None:
    """Put the run's model in its place; gives the signal that ends the run before it is measured.

    Only where the last step has a checkpoint to go on from.
    """
    try:
        with stopping.heeded() if config.save_every else nullcontext():
            watch.finish(step)
    except Asked as ended:
        return ended.signal
    return stopping.agreed() if config.evaluate and config.save_every else None


def stopped(done: int, steps: int, checkpoints: Checkpoints) -> str:
    """What is said of a run that a signal ended after `done` of its `steps`."""
    saved = checkpoints.complete()
    if not saved:
        return f"stopped after step {done} of {steps}; there is no checkpoint"
    last = int(saved[-1].name.removeprefix("step-"))
    place = "there" if last == done else f"step {last}"
    return f"stopped after step {done} of {steps}; resume=auto goes on from {place}"


def measure_result(
    config: DictConfig,
    parts: Assembly,
    kept: KeptModel,
    references: Mapping[str, Evaluation],
    tracker: Tracker,
) -> None:
    """Measure the model that the run leaves, on all rows; show it."""
    benchmark, name = parts.benchmark, label(config)
    measured = measure(benchmark, kept.model(), references)
    tracker.log_evaluation(parts.trainer.steps_done, measured.metrics, benchmark=benchmark.name)
    tracker.log_generations(parts.trainer.steps_done, measured.generations[:100])
    measured_with = provenance(config, benchmark, kept.folder.parent)
    write_evaluation(kept.folder.parent, measured, references, benchmark, name, measured_with)
    show(benchmark, name, measured, references)


def tell_taken(config: DictConfig, parts: Assembly) -> None:
    """Say what of the model before unlearning was not read, since another run had read it.

    At the end: what a user is told of a mistake is one line.
    """
    if isinstance(parts.reference, CachedReference) and parts.reference.taken:
        what = " and ".join(parts.reference.taken)
        say(f"reference: {what} taken from {shared_reference(config)}, where another run left them")


def _goes_on(folder: Path) -> bool:
    """Whether the finished run in `folder` can take the steps that its time limit cut off."""
    return was_cut(folder) and bool(Checkpoints(folder / "checkpoints").complete())


def ended_early(asked: signal.Signals, step: int) -> None:
    """Leave word for the batch script, or leave with the exit code of an ended process.

    torchrun does not hand exit codes on, so a run that is to be continued says so in the file that
    LETHE_STOP_FILE names, and ends in peace. One that somebody ended has no such file.
    """
    note = os.environ.get("LETHE_STOP_FILE")
    if asked is signal.SIGUSR1:
        if note and distributed.is_main():
            Path(note).write_text(f"{step}\n", encoding="utf-8")
        return
    distributed.disconnect()
    raise SystemExit(128 + asked)


def as_begun_there(config: DictConfig, folder: Path) -> DictConfig:
    """The config, as far as it is fitted that of the folder's run.

    Refuses to write over a run, or to go on with one under other settings.
    """
    if not (folder / "config.yaml").is_file():
        return config
    if config.resume == "never":
        raise RunExistsError(
            f"{folder} already holds a run; choose another output=..., or go on with it: "
            "resume=auto"
        )
    earlier = load(folder / "config.yaml")
    check_same(config, earlier)
    return as_begun(config, earlier)


def resume(config: DictConfig, checkpoints: Checkpoints, parts: Assembly, tracker: Tracker) -> None:
    """Take up the newest complete checkpoint; without one the run begins at its beginning."""
    found = checkpoints.newest() if config.resume == "auto" else None
    if found is not None:
        checkpoints.restore(found, parts.engine, parts.trainer)
        say(f"resuming {config.output} at step {parts.trainer.steps_done}")
    tracker.rewind(parts.trainer.steps_done)


def reference_evaluations(config: DictConfig, benchmark: Benchmark) -> dict[str, Evaluation]:
    """What the target and gold models measured, where they are known."""
    known: dict[str, Evaluation] = {}
    if needs_target(config):
        for role, made in prepared(config, benchmark).items():
            known[role] = evaluation_of(made)
    return references_of(config, benchmark, known)


if __name__ == "__main__":
    run_entry(main)

"""Checkpoints: everything a run needs to go on bit for bit, complete or not there at all.

    checkpoints/step-00000120/   engine.pt or engine/   parameters and optimizer, by the engine
                                 rank-00000.pt          random states of each process
                                 vectors-00000.pt       its share of running means, if there are any
                                 state.pt               trainer and parts (duals, averages, ...)
                                 config.yaml            the run's resolved config
                                 manifest.json          size and SHA-256 of every file; written last

A checkpoint is written under another name and renamed when every file of every rank is on disk, so
a kill or a full disk in the middle leaves the checkpoint before it. The sampler needs no state: its
position is the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .distributed import (
    all_gather_objects,
    barrier,
    broadcast_object,
    is_main,
    on_all_ranks,
    rank,
    world_size,
)
from .engine import Engine, check_fingerprint, fingerprint
from .errors import CheckpointError, WorldSizeError
from .kept import read
from .terminal import say
from .trainer import UnlearningTrainer

MANIFEST = "manifest.json"
FORMAT = 3
"""Counted up when the files of before cannot be taken up: another one is refused."""
UNSEALED = 1
"""The first format, whose manifest does not vouch for itself."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int = 1, config: str = "") -> None:
        """`keep`: how many of the newest stay on disk, > 0; `config`: the run's, as YAML."""
        self.folder = folder
        self.keep = keep
        self.config = config
        self._sound: Path | None = None  # what was read and found whole need not be read again

    def save(self, engine: Engine, trainer: UnlearningTrainer) -> Path:
        """Write a checkpoint of the steps done so far; every rank takes part.

        Raises CheckpointError on every rank, and leaves the earlier ones, when any rank cannot
        write; NonFiniteError, as `trainer.settle` does, before anything is written.
        """
        trainer.settle()
        final = self.folder / f"step-{trainer.steps_done:08d}"
        partial = final.with_name(final.name + ".partial")
        self._together(lambda: _fresh(partial) if is_main() else None, partial)
        self._together(lambda: self._write(partial, engine, trainer), partial)
        hashes = self._together(lambda: _hashes(partial), partial)
        about = {
            "format": FORMAT,
            "world_size": world_size(),
            "fingerprint": fingerprint(trainer.model),
            "files": {name: value for share in hashes for name, value in share.items()},
        }
        about["seal"] = _seal(about)
        self._together(lambda: _finish(partial, final, about) if is_main() else None, partial)
        if is_main():
            self._clear(final)
        barrier()
        return final

    def _clear(self, last: Path) -> None:
        """Keep `last` and those before it; remove older ones, and what a kill or damage left."""
        # of a later step is only what was found damaged: the run has gone back behind it
        kept = [folder for folder in self.complete() if folder <= last][-self.keep :]
        for folder in set(self.folder.glob("step-*")) - set(kept):
            # from here on it is no checkpoint, however much is left
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, engine: Engine, trainer: UnlearningTrainer) -> None:
        engine.save(folder)
        torch.save(_random_states(), folder / f"rank-{rank():05d}.pt")
        vectors = {name: vector.shards for name, vector in trainer.vectors().items()}
        if vectors:
            torch.save(vectors, folder / f"vectors-{rank():05d}.pt")
        if is_main():
            torch.save(trainer.state_dict(), folder / "state.pt")
            (folder / "config.yaml").write_text(self.config, encoding="utf-8")

    def _together(self, work: Callable[[], Any], partial: Path) -> list[Any]:
        """Every rank's result, or one CheckpointError on all of them."""
        result, failure = None, None
        try:
            result = work()
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            failure = f"rank {rank()}: {_reason(error)}"
        failures = [text for text in all_gather_objects(failure) if text is not None]
        if failures:
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
            left = "earlier checkpoints are untouched; " if self.complete() else ""
            raise CheckpointError(
                f"the checkpoint {partial.with_suffix('').name} could not be written to "
                f"{self.folder} ({failures[0]}); {left}free some space and start again with "
                "resume=auto"
            )
        return all_gather_objects(result)

    def newest(self) -> Path | None:
        """The newest sound checkpoint, the same on every rank; None when none was ever written.

        Damaged ones are passed over, saying so. Raises CheckpointError when all are damaged: to
        start over without a word would lose the run.
        """
        complete = broadcast_object(self.complete() if is_main() else [])
        reasons = []
        for folder in reversed(complete):
            found = self._damage(folder)
            if not found:
                return folder
            reasons.append(f"{folder.name}: {found}")
            say(f"the checkpoint {folder} is damaged ({found}) and passed over")
        if reasons:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged ({reasons[0]}); remove that folder "
                "to begin the run again"
            )
        return None

    def _damage(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, or None; the ranks share out the reading."""
        if folder != self._sound:
            found = [text for text in all_gather_objects(damage(folder, shared=True)) if text]
            if found:
                return found[0]
            self._sound = folder
        return None

    def complete(self) -> list[Path]:
        """Those that were written to the end, sound or not, the newest last."""
        return sorted(path.parent for path in self.folder.glob(f"step-*[0-9]/{MANIFEST}"))

    def restore(self, folder: Path, engine: Engine, trainer: UnlearningTrainer) -> None:
        """Take up the run where `folder` left it, bit for bit.

        Raises WorldSizeError for another number of processes, CheckpointError for damage, another
        model or another version's files.
        """
        found = self._damage(folder)
        if found:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged ({found}); remove it, then resume=auto takes "
                "the one before"
            )
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} was written by another version of Lethe (format {manifest['format']}, "
                f"this one reads {FORMAT}); finish the run with that one, or begin it anew in "
                "another output folder"
            )
        check_fingerprint(manifest["fingerprint"], trainer.model, folder)
        ranks = manifest["world_size"]
        if ranks != world_size():
            raise WorldSizeError(
                f"{folder} was written by {_processes(ranks)}, this run has {world_size()}; start "
                f"it with {ranks} (torchrun --nproc_per_node {ranks}), or a new run from the model"
            )
        engine.load(folder)
        trainer.load_state_dict(on_all_ranks(lambda: read(folder / "state.pt", device=None)))
        vectors = folder / f"vectors-{rank():05d}.pt"
        shards = on_all_ranks(lambda: read(vectors) if vectors.is_file() else {})
        if shards:
            trainer.load_vectors({name: engine.vector(found) for name, found in shards.items()})
        _restore_random_states(on_all_ranks(lambda: read(folder / f"rank-{rank():05d}.pt")))


def damage(folder: Path, *, shared: bool = False) -> str | None:
    """What is wrong with a checkpoint's files, or with this rank's share of them; else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    # a flipped bit in it could pass for another model or another number of processes
    if manifest.pop("seal", None) != _seal(manifest) and manifest.get("format") != UNSEALED:
        return f"{MANIFEST} has changed since it was written"
    names = sorted(files)
    for name in names[rank() :: world_size()] if shared else names:
        size, digest = files[name]
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _digest(path) != digest:
            return f"{name} has changed since it was written"
    return None


def _reason(error: OSError | RuntimeError) -> str:
    """Why a file could not be written, on one line."""
    text = str(error).splitlines()[0]
    if "unexpected pos" in text or "iostream error" in text:
        return "torch could not write a whole file, as on a full disk"
    return text


def _processes(n: int) -> str:
    return "1 process" if n == 1 else f"{n} processes"


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _hashes(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of this rank's share of all ranks' files, which it also syncs to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    mine = files[rank() :: world_size()]
    for path in mine:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {str(path.relative_to(folder)): (path.stat().st_size, _digest(path)) for path in mine}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's own content, its seal left out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _finish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    with (partial / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    parent = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])

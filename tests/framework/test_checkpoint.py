"""Checkpoints on disk: complete or not there; the newest that holds; what is said of the rest."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch

from framework.checkpoint import MANIFEST, Checkpoints, damage
from framework.engine import LocalEngine
from framework.errors import CheckpointError
from framework.trainer import UnlearningTrainer

FILES = ["config.yaml", "engine.pt", "rank-00000.pt", "state.pt"]


class Run:
    """A tiny run whose checkpoints lie in a folder."""

    def __init__(self, folder: Path, *, keep: int = 1, **model: object) -> None:
        self.optimizer = tiny.optimizer("adamw", clip=None)
        self.engine: LocalEngine = tiny.local_engine(self.optimizer, **model)
        self.trainer: UnlearningTrainer = tiny.trainer(
            self.engine, self.engine.model, [], method="grad_diff", optimizer=self.optimizer
        )
        self.checkpoints = Checkpoints(folder, keep=keep, config="seed: 0\n")

    def step(self) -> Path:
        """One more step and its checkpoint."""
        tiny.train(self.trainer, tiny.step_rows(1), tokens=1000)
        return self.checkpoints.save(self.engine, self.trainer)

    def restore(self, folder: Path) -> None:
        self.checkpoints.restore(folder, self.engine, self.trainer)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the kernel refuses to let a file grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_named_after_its_step_and_lists_its_files(tmp_path: Path) -> None:
    written = Run(tmp_path).step()

    assert written == tmp_path / "step-00000001"
    assert names(written) == sorted([*FILES, MANIFEST])
    manifest = json.loads((written / MANIFEST).read_text())
    assert manifest["world_size"] == 1
    assert {name: size for name, (size, _) in manifest["files"].items()} == {
        name: (written / name).stat().st_size for name in FILES
    }
    assert damage(written) is None


def test_there_is_no_newest_where_nothing_was_written(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").newest() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    run = Run(tmp_path, keep=keep)
    written = [run.step() for _ in range(4)]

    assert names(tmp_path) == [path.name for path in written[-keep:]]
    assert run.checkpoints.newest() == written[-1]


def test_a_step_is_written_over_its_older_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    before = run.engine.master_weights()
    tiny.train(run.trainer, tiny.step_rows(1), tokens=1000)
    run.trainer.steps_done = 1
    written = run.checkpoints.save(run.engine, run.trainer)
    after = run.engine.master_weights()
    run.restore(written)

    assert names(tmp_path) == ["step-00000001"]
    now = run.engine.master_weights()
    assert all(torch.equal(now[name], after[name]) for name in now)
    assert not all(torch.equal(now[name], before[name]) for name in now)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def flip_in_manifest(path: Path) -> None:
    """One bit, as a bad disk does; what it says now is a manifest of three processes."""
    written = path.read_text()
    assert '"world_size": 1' in written
    path.write_text(written.replace('"world_size": 1', '"world_size": 3'))


DAMAGES: list[tuple[Callable[[Path], None], str, str]] = [
    *((cut, name, f"{name} has ") for name in FILES),
    *((flip, name, f"{name} has changed since it was written") for name in FILES),
    *((remove, name, f"{name} is missing") for name in FILES),
    (cut, MANIFEST, f"{MANIFEST} cannot be read: "),
    (remove, MANIFEST, f"{MANIFEST} cannot be read: "),
    (flip_in_manifest, MANIFEST, f"{MANIFEST} has changed since it was written"),
]


@pytest.mark.parametrize(
    ("harm", "name", "said"), DAMAGES, ids=[f"{h.__name__}-{n}" for h, n, _ in DAMAGES]
)
def test_the_newest_is_passed_over_when_it_is_damaged(
    harm: Callable[[Path], None], name: str, said: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, keep=2)
    good, bad = run.step(), run.step()
    harm(bad / name)

    found = damage(bad)
    assert found is not None
    assert found.startswith(said)
    assert run.checkpoints.newest() == good
    with pytest.raises(CheckpointError) as refused:
        run.restore(bad)
    assert str(refused.value).startswith(f"the checkpoint {bad} is damaged ({said}")
    assert "\n" not in str(refused.value)


def test_what_was_cut_off_while_it_was_written_is_never_taken(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    good, later = run.step(), run.step()
    later.rename(tmp_path / "step-00000009.partial")

    assert run.checkpoints.newest() == good


def test_what_kills_left_is_removed_by_the_next_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    half = run.step().rename(tmp_path / "step-00000009.partial")
    torn = tmp_path / "step-00000007"
    torn.mkdir()
    (torn / "engine.pt").write_bytes(b"its manifest was removed before the kill")
    written = run.step()

    assert names(tmp_path) == [written.name]
    assert not half.exists()


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_a_sound_one(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    good, bad = run.step(), run.step()
    flip(bad.rename(tmp_path / "step-00000009") / "engine.pt")
    again = Checkpoints(tmp_path, keep=1)
    run.restore(good)
    tiny.train(run.trainer, tiny.step_rows(1), tokens=1000)
    written = again.save(run.engine, run.trainer)

    assert names(tmp_path) == [written.name]
    assert again.newest() == written


def test_what_is_left_of_a_write_that_was_cut_off_is_written_over(tmp_path: Path) -> None:
    leftover = tmp_path / "step-00000001.partial"
    leftover.mkdir(parents=True)
    (leftover / "rank-00001.pt").write_bytes(b"of a process that this run does not have")
    written = Run(tmp_path).step()

    assert names(tmp_path) == [written.name]
    assert names(written) == sorted([*FILES, MANIFEST])


@pytest.mark.parametrize("room", [0, 100, 5_000, 50_000])
def test_a_write_without_room_is_an_error_and_leaves_what_was(room: int, tmp_path: Path) -> None:
    run = Run(tmp_path)
    good = run.step()
    before = run.engine.master_weights()
    with pytest.raises(CheckpointError) as refused, files_of_at_most(room):
        run.step()

    said = str(refused.value)
    assert said.startswith(f"the checkpoint step-00000002 could not be written to {tmp_path} (")
    assert said.endswith(
        "earlier checkpoints are untouched; free some space and start again with resume=auto"
    )
    assert "\n" not in said
    assert names(tmp_path) == [good.name]
    assert run.checkpoints.newest() == good
    run.restore(good)
    now = run.engine.master_weights()
    assert all(torch.equal(now[name], before[name]) for name in now)
    assert run.step() == tmp_path / "step-00000002"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(CheckpointError, match=r"could not be written to .*taken"):
        Run(tmp_path / "taken").step()


@pytest.mark.parametrize(
    "other", [{"hidden_size": 16}, {"num_hidden_layers": 1}, {"tuning": "lora"}]
)
def test_a_checkpoint_of_another_model_is_refused(other: dict[str, object], tmp_path: Path) -> None:
    written = Run(tmp_path).step()

    with pytest.raises(CheckpointError, match=r"is a checkpoint of another model .* resume with"):
        Run(tmp_path, **other).restore(written)


def rewritten(folder: Path, **changes: object) -> None:
    """A checkpoint whose manifest says something else, and vouches for it."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    del manifest["seal"]
    if manifest["format"] != 1:  # of before there were seals
        seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        manifest["seal"] = seal
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [1, 2, 4])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    version: int, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    written = run.step()
    rewritten(written, format=version)

    with pytest.raises(CheckpointError, match=r"by another version of Lethe .* begin it anew in "):
        run.restore(written)


def test_a_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    written = run.step()
    (written / "engine.pt").unlink()
    files = json.loads((written / MANIFEST).read_text())["files"]
    rewritten(written, files={name: files[name] for name in files if name != "engine.pt"})

    with pytest.raises(
        CheckpointError, match=r"written by another engine .* resume with the `zero`"
    ):
        run.restore(written)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    written = run.step()
    with (written / "engine.pt").open("ab") as file:
        file.write(b"!")

    with pytest.raises(CheckpointError) as refused:
        Checkpoints(tmp_path).newest()
    assert str(refused.value).startswith(
        f"every checkpoint in {tmp_path} is damaged (step-00000001: engine.pt has "
    )
    assert str(refused.value).endswith("; remove that folder to begin the run again")

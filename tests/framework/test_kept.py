"""Files that are kept for a restart: whole or not at all, and one line where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import CheckpointError
from framework.kept import keep


def test_a_file_appears_whole(tmp_path: Path) -> None:
    seen: list[bool] = []

    def save(partial: Path) -> None:
        partial.write_text("first half, ")
        seen.append((tmp_path / "kept.json").exists())
        partial.write_text("both halves")

    keep(tmp_path / "kept.json", save, what="the text")

    assert seen == [False]
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept.json", "both halves")]


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_what_was(tmp_path: Path) -> None:
    file = tmp_path / "kept.pt"
    file.write_text("before")

    def save(_: Path) -> None:
        raise RuntimeError("unexpected pos 64 vs 0\nand more")

    with pytest.raises(CheckpointError) as refused:
        keep(file, save, what="the text")

    assert str(refused.value) == (
        f"the text could not be written to {file} (unexpected pos 64 vs 0); free some space"
    )
    assert file.read_text() == "before"

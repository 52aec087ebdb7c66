"""Files that are computed once before training and kept in the run's folder for its restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .distributed import on_rank_zero
from .errors import CheckpointError


def keep(file: Path, save: Callable[[Path], object], *, what: str) -> None:
    """Have rank 0 write `file` with `save`; it appears whole or not at all.

    Every rank must call this. Raises CheckpointError on all of them where rank 0 cannot write.
    """

    def write() -> None:
        partial = file.with_suffix(".partial")
        try:
            save(partial)
            partial.replace(file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{what} could not be written to {file} ({reason}); free some space"
            ) from error

    on_rank_zero(write)

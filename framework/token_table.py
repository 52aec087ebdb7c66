"""Numbers of every counted token of some rows: read off a model once, kept in a file or in memory.

    rows     q q a a | q b b b          two rows, 2 and 3 counted tokens
    values   [ a a   |   b b b ]        one number, or one vector, of each

A file is a safetensors file that appears whole, with a key in its header that says of what the
values are. It stays on disk: a micro-batch takes its own rows out, and nothing else is in memory.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .data import Row, Rows, sent
from .distributed import all_gather_objects, on_rank_zero
from .errors import CheckpointError, ConfigError
from .language_model import LanguageModel
from .memory import GIB, in_words
from .terminal import say

Pieces = Sequence[tuple[int, Tensor]]
"""Values of tokens that follow one another, and the number of the first."""
LARGE = GIB // 4
"""Bytes from which on a file's size is said before it is written."""
NOT_KEPT = (
    "a loss of this method reads the model before unlearning at row {}, of which this was not kept "
    "(`asks_reference_for` has it kept of forget rows); type trainer.reference=frozen to keep the "
    "whole model"
)
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls them."""


class Values(Protocol):
    """Values of tokens end to end, in memory or on disk."""

    def __getitem__(self, tokens: slice, /) -> Tensor:
        """Those of some tokens, in memory."""


class TokenTable:
    """The values of every counted token of the rows, found by a row's name and a place in it."""

    def __init__(self, rows: Sequence[Row], values: Values, device: torch.device) -> None:
        """`values`: of the counted tokens of `rows`, which have no preferred ones, end to end."""
        self._values, self._device = values, device
        self._nothing = values[0:0].new_zeros(1, *values[0:0].shape[1:])
        self._places: dict[str, tuple[int, int, Tensor]] = {}
        start = 0
        for row in rows:
            counted = torch.tensor(row.weights) > 0
            end = start + int(counted.sum())
            # at the position that predicts a token: the token's number in its row; else -1
            number = torch.where(counted.roll(-1), counted.cumsum(0), -1)
            assert row.id not in self._places, f"two rows of the id {row.id}"
            self._places[row.id] = (start, end, number)
            start = end

    def of(self, rows: Rows) -> Tensor:
        """[S, ...] the values of the tokens that the scored positions predict; 0 where unknown.

        The host waits for nothing: what the rows have is sent, and put in order on the device.
        """
        unknown = [name for name in rows.ids if name not in self._places]
        if unknown:
            raise ConfigError(NOT_KEPT.format(unknown[0]))
        places = [self._places[name] for name in rows.ids]
        parts = [self._values[begin:end] for begin, end, _ in places if end > begin]
        values = sent(torch.cat([*parts, self._nothing]), self._device)
        numbers = sent(torch.cat([number for *_, number in places]), self._device)
        tokens = [len(number) for *_, number in places]
        counts = [end - begin for begin, end, _ in places]
        before = torch.tensor([[0, *tokens[:-1]], [0, *counts[:-1]]]).cumsum(1)
        first = sent(before, self._device)
        number = numbers[first[0][rows.row_of] + rows.position_ids[rows.scored]]
        return values[torch.where(number < 0, -1, first[1][rows.row_of] + number)]


def counted_tokens(rows: Sequence[Row]) -> int:
    """How many tokens have a value."""
    return sum(weight > 0 for row in rows for weight in row.weights)


def read_off(
    model: LanguageModel, rows: Sequence[Row], function: Callable[[Rows], Tensor]
) -> Generator[Pieces, None, None]:
    """What `function` gives of each row's counted tokens, every row read once, some at a time.

    Every rank must go through all of it: each reads its share, and has everyone's.
    """
    counts = [sum(weight > 0 for weight in row.weights) for row in rows]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    asked = [Row(str(i), row.input_ids, row.weights) for i, row in enumerate(rows) if counts[i] > 0]
    with model.evaluating():
        packs = model.packs(asked, "reference")
        while True:
            pack = next(packs, None)
            mine = None if pack is None else (pack.ids, function(pack).cpu())
            everyone = [found for found in all_gather_objects(mine) if found is not None]
            if not everyone:
                return
            pieces = []
            for names, values in everyone:
                numbers = [int(name) for name in names]
                own = values.split([counts[i] for i in numbers])
                pieces += [(starts[i], part) for i, part in zip(numbers, own, strict=True)]
            yield pieces


def in_memory(found: Iterator[Pieces], tokens: int) -> Tensor:
    """The values of `tokens` tokens."""
    values: Tensor | None = None
    for pieces in found:
        for start, own in pieces:
            if values is None:
                values = own.new_zeros(tokens, *own.shape[1:])
            values[start : start + len(own)] = own
    assert values is not None
    return values


def write(found: Iterator[Pieces], tokens: int, file: Path, key: str) -> None:
    """Have rank 0 write the values of `tokens` tokens as they come; `file` appears whole.

    Every rank must call this. Raises CheckpointError on all of them where rank 0 cannot write.
    """
    partial = file.with_suffix(".partial")
    begin: list[int] = []

    def on_disk(pieces: Pieces) -> None:
        with _told(file):
            if not begin:
                begin.append(_begin(partial, tokens, pieces[0][1], key))
            with partial.open("r+b") as out:
                for start, own in pieces:
                    data = own.contiguous().view(torch.uint8).numpy()
                    out.seek(begin[0] + start * data.nbytes // len(own))
                    out.write(data.tobytes())

    def in_place() -> None:
        with _told(file):
            _synced(partial)
            partial.replace(file)

    for pieces in found:
        on_rank_zero(functools.partial(on_disk, pieces))
    on_rank_zero(in_place)


def _begin(file: Path, tokens: int, like: Tensor, key: str) -> int:
    """Write the header of values like these; gives its length."""
    size = tokens * prod(like.shape[1:]) * like.element_size()
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise CheckpointError(
            f"what is kept of the model before unlearning needs {in_words(size)} in "
            f"{file.parent}, where {in_words(free)} are free; free some space, or set "
            "trainer.reference=frozen to keep the whole model instead"
        )
    if size >= LARGE:
        say(f"reference: {in_words(size)} of the model before unlearning go to {file.parent}")
    about = {"dtype": NAMES[like.dtype], "shape": [tokens, *like.shape[1:]]}
    header = json.dumps(
        {"__metadata__": {"key": key}, "values": {**about, "data_offsets": [0, size]}}
    ).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + size)
    return 8 + len(header)


def opened(file: Path, key: str) -> Values:
    """The values in `file`; raises CheckpointError where they are of something else, or broken."""
    try:
        stored: Any = safe_open(file, framework="pt")
        values: Values = stored.get_slice("values")
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file} cannot be read ({reason}); remove it") from error
    if (stored.metadata() or {}).get("key") != key:
        raise CheckpointError(
            f"{file} holds the reference of other rows or weights; resume with the model and the "
            "settings in the run's config.yaml, or choose another output folder"
        )
    return values


def take(shared: Path, file: Path, key: str) -> bool:
    """Put what other runs share in `shared` into `file`, if it is there and whole."""
    try:
        if not shared.is_file():
            return False
        opened(shared, key)
    except CheckpointError as error:
        say(f"reference: read anew, for {error}")
        return False
    except OSError:  # no right to look there: `share` will tell
        return False
    with _told(file):
        _link(shared, file)
    return True


def share(file: Path, shared: Path) -> None:
    """Put `file` where other runs look; the run goes on where that is refused."""
    try:
        _link(file, shared)
    except OSError as error:
        say(f"reference: not kept for other runs in {shared.parent} ({error.strerror})")


def _link(old: Path, new: Path) -> None:
    """One file under two names, or two where they lie on two disks; appears whole."""
    new.parent.mkdir(parents=True, exist_ok=True)
    partial = new.with_suffix(f".{os.getpid()}.partial")
    try:
        try:
            os.link(old, partial)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(old, partial)
            _synced(partial)
        partial.replace(new)
    finally:  # a rename onto another name of the same file leaves both
        partial.unlink(missing_ok=True)


def _synced(file: Path) -> None:
    """On disk: under its own name a file of holes would pass for a whole one."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """A disk's errors, told with the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the reference could not be written to {file} ({error.strerror}); free some space"
        ) from error

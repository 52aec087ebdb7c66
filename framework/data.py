"""Rows: what a model reads. Text becomes a `Row` once; a micro-batch is a packed `Rows`.

A packed micro-batch lays its rows end to end without padding:

    tokens     [ a a a a | b b | c c c ]          T = 9 tokens of B = 3 rows
    positions  [ 0 1 2 3 | 0 1 | 0 1 2 ]          attention never crosses a bar
    scored     the positions whose *next* token counts, S of them: only there are logits computed

A row may bring a second answer to its prompt, `preferred`. The two are one row of a step and travel
together: all given rows come first, then their preferred answers as rows of their own, in the same
order. Means are then over the given rows; `Rows.split` takes a number per row apart.

The rows of several objectives can be laid into one pack and read in one pass: each objective's
`Rows` then is a member of it. The members hold the very same tokens, and each its own scored
positions, rows and totals.

Shapes: `B` rows (`R` with preferred answers: B or 2B), `T` tokens, `S` scored tokens of one
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError

MORE_THAN_SCORED = (
    "a loss of this method reads more than its rows' scored positions, and other rows are read in "
    "the same tokens; give the method `reads_scored` that returns False"
)


@dataclass(frozen=True)
class Example:
    """A question (or the head of a text) and its answer (or the rest), as text.

    `id` is the row's name for life. `fields` carries what a benchmark keeps beside the answer:
    `paraphrased_prompt`, `paraphrased_answer`, `perturbed_answers`, ... `continues` says that the
    answer is a piece of a longer text and does not end where it is cut.
    """

    id: str
    prompt: str
    answer: str
    task: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An example as tokens.

    `weights[t]` says how much token t counts as a target, in [0, 1]: 0 on the prompt and at
    t = 0, which nothing predicts. The label mask and token selection are this one thing.
    """

    id: str
    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    preferred: Row | None = None
    """The same prompt with the answer to prefer, for methods that learn one in place of another."""

    def __post_init__(self) -> None:
        """Check the invariants that every later indexing relies on."""
        assert len(self.input_ids) == len(self.weights) >= 2, self.id
        assert self.weights[0] == 0, self.id
        assert self.preferred is None or self.preferred.preferred is None, self.id

    def __len__(self) -> int:
        """Tokens, prompt and answer."""
        return len(self.input_ids)

    @cached_property
    def given(self) -> Row:
        """The row without its preferred answer."""
        return self if self.preferred is None else replace(self, preferred=None)

    @property
    def tokens(self) -> int:
        """Tokens that are read with the row: its own and those of its preferred answer's row."""
        return len(self) + (0 if self.preferred is None else len(self.preferred))

    @cached_property
    def weight(self) -> float:
        """The token weight of the row: its number of answer tokens unless a selection cut some."""
        return sum(self.weights)

    @cached_property
    def token_ids(self) -> np.ndarray:
        """`input_ids` as an array: what packs are made of, step after step."""
        return np.array(self.input_ids)

    @cached_property
    def sort_key(self) -> bytes:
        """What sorts rows by their tokens."""
        return self.token_ids.astype(">u4").tobytes()

    @cached_property
    def counted(self) -> np.ndarray:
        """Which of the tokens count."""
        return np.flatnonzero(np.array(self.weights) > 0)

    @cached_property
    def counted_weights(self) -> np.ndarray:
        """[counted] fp32, how much each counts."""
        weights: np.ndarray = np.array(self.weights, dtype=np.float32)[self.counted]
        return weights


def laid_out(rows: Sequence[Row]) -> list[Row]:
    """The rows as they are read: all given ones, then their preferred answers."""
    preferred = [row.preferred for row in rows if row.preferred is not None]
    assert len(preferred) in (0, len(rows)), "some rows have a preferred answer, others none"
    return [row.given for row in rows] + preferred


@dataclass(frozen=True)
class StepTotals:
    """What a whole optimizer step holds, all ranks and micro-batches: the divisors of means."""

    rows: int
    weight: float
    tokens: int
    """Of the rows that are counted, prompts too."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> StepTotals:
        """Totals of a step's rows; a row without any counted token is not counted."""
        weights = [row.weight for row in rows]
        lengths = [len(row) for row, weight in zip(rows, weights, strict=True) if weight > 0]
        return cls(rows=len(lengths), weight=sum(weights), tokens=sum(lengths))


@dataclass(frozen=True)
class Keys:
    """What each row of a packed micro-batch reads, where rows share their beginnings."""

    lengths: tuple[int, ...]
    """How many tokens each row reads: what it shares, then its own."""
    positions: Tensor
    """[K] where they lie in the packed sequence, row after row."""
    boundaries: Tensor
    """[R + 1] int32, where the rows begin and end among them."""


@dataclass(frozen=True)
class Rows:
    """One packed micro-batch, or a member of one, on the device of the model.

    The first five fields are the pack's, and the very same objects in all its members.
    """

    lengths: tuple[int, ...]
    """How many tokens of each row the pack holds: those that it does not share with another."""
    input_ids: Tensor
    """[T] token ids, the rows end to end."""
    position_ids: Tensor
    """[T] positions, counted from 0 in each row."""
    boundaries: Tensor
    """int32, where rows begin and end."""
    keys: Keys | None
    """Where rows share their beginnings (`shared.py`), what each reads; None: its own tokens."""
    ids: tuple[str, ...]
    """[R] the rows' names."""
    scored: Tensor
    """[S] positions in the packed sequence whose next token counts."""
    targets: Tensor
    """[S] those next tokens."""
    weights: Tensor
    """[S] fp32, how much each counts."""
    row_of: Tensor
    """[S] the row, 0 to R - 1, that each belongs to."""
    totals: StepTotals
    paired: bool
    """Whether the second half of the rows are the preferred answers of the first."""

    @classmethod
    def pack(
        cls,
        rows: Sequence[Row],
        *,
        totals: StepTotals | None = None,
        device: torch.device | None = None,
    ) -> Rows:
        """Lay `rows` end to end. `totals` defaults to those of these rows alone."""
        totals = StepTotals.of(rows) if totals is None else totals
        return pack_members([(rows, totals)], device=device)[0]

    def __len__(self) -> int:
        """R, the number of rows that are read: B, and B preferred answers where there are any."""
        return len(self.ids)

    @property
    def given(self) -> int:
        """B, the number of rows that were given: those that means are over."""
        return len(self.ids) // 2 if self.paired else len(self.ids)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers per row [2B] -> (those of the given rows, those of their preferred answers)."""
        assert self.paired, "rows without preferred answers"
        assert values.shape == (len(self),), values.shape
        return values[: self.given], values[self.given :]

    def token_mean(self, losses: Tensor) -> Tensor:
        """This micro-batch's share of the step's mean over tokens, `losses` [S] -> scalar.

        The weighted sum divided by the token weight of the whole step. Shares of all
        micro-batches and ranks add up to the mean, however the step was cut. Tokens of preferred
        answers are not counted.
        """
        assert losses.shape == self.weights.shape, losses.shape
        weighted = losses * self.weights
        if self.paired:
            weighted = weighted * (self.row_of < self.given)
        return weighted.sum() / max(self.totals.weight, 1e-30)

    def row_mean(self, losses: Tensor) -> Tensor:
        """This micro-batch's share of the step's mean over rows, `losses` [B] -> scalar.

        Rows without any counted token contribute nothing and are not counted.
        """
        assert losses.shape == (self.given,), losses.shape
        counted = self.row_weights[: self.given] > 0
        return (losses * counted).sum() / max(self.totals.rows, 1)

    @property
    def row_weights(self) -> Tensor:
        """[R] token weight of each row: its number of answer tokens unless a selection cut some."""
        return self.row_sum(torch.ones_like(self.weights))

    def within_rows(self, values: Tensor) -> Tensor:
        """The weighted mean over each row's own scored tokens, `values` [S] -> [R]; of none, 0."""
        return self.row_sum(values) / self.row_weights.clamp_min(1e-9)

    def row_sum(self, values: Tensor) -> Tensor:
        """The weighted sum over each row's scored tokens, `values` [S] -> [R]."""
        assert values.shape == self.weights.shape, values.shape
        weighted = values * self.weights
        return weighted.new_zeros(len(self)).index_add(0, self.row_of, weighted)

    def everywhere(self) -> Rows:
        """The same rows, all positions scored alike: prompts, and what follows a last token, too.

        For losses of logits alone: `targets` means nothing at a row's last position.
        """
        # a token that rows share is of no one row, and other members' positions are not its own
        if self.keys is not None or len(self.lengths) != len(self):
            raise ConfigError(MORE_THAN_SCORED)
        tokens, counted = len(self.input_ids), self.row_weights > 0
        owner = torch.arange(len(self), device=self.input_ids.device)
        owner = owner.repeat_interleave(self.boundaries.diff(), output_size=tokens)
        return replace(
            self,
            scored=torch.arange(tokens, device=self.input_ids.device),
            targets=self.input_ids.roll(-1),
            weights=counted[owner].float(),
            row_of=owner,
            totals=replace(self.totals, weight=float(self.totals.tokens)),
        )


def pack_members(
    members: Sequence[tuple[Sequence[Row], StepTotals]],
    *,
    order: Sequence[int] | None = None,
    shared: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> list[Rows]:
    """The members of one pack, each of its rows and its step's totals.

    `order`: how the rows of all members, laid out one member after another, lie in the pack.
    `shared`: how many tokens each row of the pack has from the one before it. None: as they come,
    and nothing.
    """
    read = [laid_out(rows) for rows, _ in members]
    every = [row for rows in read for row in rows]
    order = range(len(every)) if order is None else order
    shared = [0] * len(every) if shared is None else shared
    pack, paths = _laid(every, order, shared)
    arrays: list[np.ndarray] = []
    start = 0
    for rows in read:
        assert rows, "a member holds at least one row"
        places = [path[row.counted - 1] for path, row in zip(paths[start:], rows, strict=False)]
        targets = [row.token_ids[row.counted] for row in rows]
        weights = [row.counted_weights for row in rows]
        owner = np.repeat(np.arange(len(rows)), [len(own) for own in places])
        if len(owner) == 0:  # an idle member still needs a graph: one token, of weight 0
            places, targets = [paths[start][:1]], [rows[0].token_ids[1:2]]
            weights, owner = [np.zeros(1, dtype=np.float32)], np.zeros(1, dtype=np.int64)
        arrays += [np.concatenate(places), np.concatenate(targets), np.concatenate(weights), owner]
        start += len(rows)
    tensors = iter(_moved([*pack.arrays, *arrays], device))
    shares = sum(shared) > 0
    ids, positions, boundaries = (next(tensors) for _ in range(3))
    keys = Keys(pack.read, next(tensors), next(tensors)) if shares else None
    return [
        Rows(
            lengths=pack.lengths,
            input_ids=ids,
            position_ids=positions,
            boundaries=boundaries,
            keys=keys,
            ids=tuple(row.id for row in rows),
            scored=next(tensors),
            targets=next(tensors),
            weights=next(tensors),
            row_of=next(tensors),
            totals=totals,
            paired=given[0].preferred is not None,
        )
        for rows, (given, totals) in zip(read, members, strict=True)
    ]


class _Pack(NamedTuple):
    """What the members of a pack have in common, still on the host."""

    lengths: tuple[int, ...]
    read: tuple[int, ...]
    """How many tokens each row reads: what it shares, then its own."""
    arrays: list[np.ndarray]
    """Token ids, positions, boundaries; then, of rows that share, the keys' two."""


def _laid(
    every: Sequence[Row], order: Sequence[int], shared: Sequence[int]
) -> tuple[_Pack, list[np.ndarray]]:
    """The pack, and where each row's tokens lie in it, the rows as they are in `every`."""
    rows = [every[i] for i in order]
    lengths = [len(row) - from_before for row, from_before in zip(rows, shared, strict=True)]
    ends = list(accumulate(lengths))
    paths: list[np.ndarray] = []
    for end, length, from_before in zip(ends, lengths, shared, strict=True):
        own = np.arange(end - length, end)
        paths.append(np.concatenate([paths[-1][:from_before], own]) if from_before else own)
    starts = np.array(ends) - lengths - shared
    positions = np.arange(ends[-1]) - np.repeat(starts, lengths)
    ids = np.concatenate([row.token_ids[n:] for row, n in zip(rows, shared, strict=True)])
    arrays = [ids, positions, _boundaries(lengths)]
    read = [len(row) for row in rows]
    if sum(shared):
        arrays += [np.concatenate(paths), _boundaries(read)]
    of_every = [paths[k] for k in np.argsort(order)]
    return _Pack(tuple(lengths), tuple(read), arrays), of_every


def _boundaries(lengths: Sequence[int]) -> np.ndarray:
    return np.array([0, *accumulate(lengths)], dtype=np.int32)


def _moved(arrays: Sequence[np.ndarray], device: torch.device | None) -> list[Tensor]:
    """The arrays on `device`, in one copy that the host does not wait for."""
    if device is None or device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    sizes = [-(-array.nbytes // 16) * 16 for array in arrays]  # kernels want them aligned
    whole = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    for array, part in zip(arrays, whole.split(sizes), strict=True):
        part[: array.nbytes].numpy()[:] = array.view(np.uint8)
    parts = sent(whole, device).split(sizes)
    dtypes = [torch.from_numpy(array[:0]).dtype for array in arrays]
    return [
        part[: array.nbytes].view(dtype)
        for array, part, dtype in zip(arrays, parts, dtypes, strict=True)
    ]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on `device`, by a copy that the host does not wait for."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def idle(row: Row) -> Row:
    """The row with every weight 0: what a rank without work reads, so that all ranks keep step."""
    preferred = None if row.preferred is None else idle(row.preferred)
    return replace(row, weights=(0.0,) * len(row), preferred=preferred)

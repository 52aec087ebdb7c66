"""Rows that begin alike, packed so that what they share is read once.

    rows      q q q a a    q q q b    q q q c c c         three answers to one question
    packed  [ q q q a a  | b  | c c c ]                   9 tokens instead of 14
    keys      q q q a a    q q q b    q q q c c c         what each row's tokens look at

Sorted by their tokens, a row shares with the one before it all that it shares with any. So a
question, the head of a chat template and the examples before a multiple choice are read once for
all rows of a pack, of whichever objective. Each row keeps its own scored positions, which may lie
among shared tokens; gradients of all rows flow through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .data import Row, Rows, StepTotals, laid_out, pack_members


def packs_of(rows: Sequence[Row], *, tokens: int, shares: bool = True) -> list[list[Row]]:
    """The rows, sorted by their tokens and cut into packs that read at most `tokens` tokens.

    A longer row travels alone. A pure function of its arguments.
    """
    packs: list[list[Row]] = []
    size = 0
    order, alike = by_beginning(rows)
    for i, common in zip(order, alike, strict=True):
        new = len(rows[i]) - (common if packs and shares else 0)
        if packs and size + new <= tokens:
            packs[-1].append(rows[i])
            size += new
        else:
            packs.append([rows[i]])
            size = len(rows[i])
    return packs


def pack(rows: Sequence[Row], *, device: torch.device | None = None) -> Rows:
    """The rows as one pack, what they share read once."""
    return pack_shared([(rows, StepTotals.of(rows))], device=device)[0]


def pack_shared(
    members: Sequence[tuple[Sequence[Row], StepTotals]], *, device: torch.device | None = None
) -> list[Rows]:
    """The members of one pack, what any of their rows share read once."""
    order, shared = by_beginning([row for rows, _ in members for row in laid_out(rows)])
    return pack_members(members, order=order, shared=shared, device=device)


def by_beginning(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The order of the rows by their tokens, and how many tokens each has from the one before it.

    The last token of a row is always its own: each row reads something.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].sort_key)
    shared = [0] * len(rows)
    for place in range(1, len(rows)):
        one, other = rows[order[place - 1]].token_ids, rows[order[place]].token_ids
        longest = min(len(one), len(other) - 1)
        differ = one[:longest] != other[:longest]
        first = int(differ.argmax()) if longest else 0
        shared[place] = first if longest and differ[first] else longest
    return order, shared

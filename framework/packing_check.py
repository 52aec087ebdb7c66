"""What a model reads right, found out on a few tokens: packed rows apart, shared, or in part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .data import Row, Rows
from .errors import ModelError
from .shared import pack

Logits = Callable[[Rows], Tensor]
OWN = Row("own", (2, 4, 6, 8, 1, 3), (0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
OTHERS = (1, 2, 3, 4, 5, 6, 7, 8), (8, 7, 6, 5, 4, 3, 2, 1)
FORK = Row("fork", (*OWN.input_ids[:4], 7, 5), OWN.weights)
TOLERANCE = 0.05
"""Of the largest logit: rounding stays far below, reading along comes far above."""


def check_apart(logits: Logits, device: torch.device, name: str) -> None:
    """Raise ModelError for a model, called `name`, that reads one packed row into the next."""
    first, second = (
        logits(Rows.pack([Row("other", ids, (0.0,) * len(ids)), OWN], device=device))
        for ids in OTHERS
    )
    known = first.isfinite() | second.isfinite()
    if not known.any():  # a collapsed model, of which nothing can be told
        return
    difference, size = (x[known].abs().max() for x in (first - second, first))
    if not difference <= TOLERANCE * size:
        raise ModelError(
            f"{name} does not keep packed rows apart: its attention, if it has one, is not "
            "transformers' exchangeable one; use another model family (Llama, OLMo, Qwen, Mistral, "
            "Phi, Gemma 3, GPT-2, GPT-NeoX)"
        )


def shared_as_apart(logits: Logits, device: torch.device) -> bool:
    """Whether rows that share their beginning are read as they are apart."""
    shared = logits(pack([OWN, FORK], device=device))
    apart = logits(Rows.pack([OWN, FORK], device=device))
    return _alike(shared, apart)


def few_as_all(few: Logits, every: Logits, device: torch.device) -> bool:
    """Whether a way to read scored positions alone gives there what reading all of them gives."""
    rows = Rows.pack([Row("other", OTHERS[0], (0.0,) * len(OTHERS[0])), OWN], device=device)
    try:
        found = few(rows)
    except (IndexError, RuntimeError) as error:  # tables of other tokens, which do not match
        if type(error) not in (IndexError, RuntimeError):  # of memory, a device, other ranks
            raise
        return False
    return _alike(found, every(rows))


def _alike(found: Tensor, right: Tensor) -> bool:
    known = right.isfinite()
    if not known.any():  # as in `check_apart`
        return True
    difference, size = (x[known].abs().max() for x in (found - right, right))
    return bool(difference <= TOLERANCE * size)

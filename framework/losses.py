"""Pure functions from logits to numbers per token: what objectives are written in.

Shapes: `S` scored tokens, `V` vocabulary. Everything in nats.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """[S] KL(reference || model) over the vocabulary, of logits [S, V] each; >= 0, 0 when equal."""
    return kl_div(
        log_softmax(logits, -1),
        log_softmax(reference_logits, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)

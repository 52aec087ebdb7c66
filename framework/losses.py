"""Pure functions of logits and hidden states, one number per token: what objectives are made of.

Shapes: `S` scored tokens, `V` vocabulary, `D` width. Losses of logits are in nats.
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


def raw_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """[S] the formula of `kl_divergence` on logits as they are: sum of exp(z_ref) (z_ref - z).

    No divergence: linear in z, without a lower bound.
    """
    return kl_div(logits, reference_logits, reduction="none", log_target=True).sum(-1)


def state_distance(states: Tensor, target: Tensor) -> Tensor:
    """[S] squared distance of hidden states [S, D] to a target [S, D] or [D], divided by D."""
    return (states.float() - target.float()).square().mean(-1)

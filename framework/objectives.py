"""The objectives of a run, and which parts go with them.

forget                          what to minimize on the forget rows
retain                          what to minimize on the retain rows
retain/<source>                 the same where each source of retain rows counts by itself
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigError
from .optimizers import Optimizer
from .parts import Perturbation, Weighting


def family(objective: str) -> str:
    """`forget`, or `retain` also where there are several: `retain/<source>`."""
    return objective.partition("/")[0]


def objectives_of(
    declared: Sequence[str], retain_loss: str, sources: Sequence[str] = ()
) -> tuple[str, ...]:
    """The objectives of a method that declares these, under its config.

    `sources`: the names of the retain sources, each an objective of its own; none: all are one.
    """
    retain = [f"retain/{source}" for source in sources] or ["retain"]
    chosen = {"forget": ["forget"], "retain": [] if retain_loss == "none" else retain}
    return tuple(name for kept in declared for name in chosen[kept])


def check_parts(
    objectives: tuple[str, ...],
    weighting: Weighting | None,
    perturbation: Perturbation | None,
    optimizer: Optimizer,
) -> None:
    """Raise ConfigError for parts that do not go together; the weighting takes on what it has."""
    if not objectives:
        raise ConfigError(
            "trainer.retain_loss=none leaves this method nothing to learn; type "
            "trainer.retain_loss=nll"
        )
    balances = weighting is not None and (weighting.needs_gram or weighting.needs_losses)
    if balances and len(objectives) < 2:
        raise ConfigError(
            f"the weighting {type(weighting).__name__} balances two objectives, but this run has "
            f"only {objectives[0]}; set weighting=none, or take a method with both, such as "
            "trainer=grad_diff, and trainer.retain_loss=nll"
        )
    if weighting is not None:
        weighting.balance(objectives)
    families = {family(name) for name in objectives}
    if optimizer.config.automatic_every and "retain" not in families:
        raise ConfigError(
            "optimizer.automatic_every fits the learning rate to the retain loss, which this run "
            "does not have; set optimizer.automatic_every=0, or take a method with one, such as "
            "trainer=grad_diff"
        )
    if perturbation is not None and not set(perturbation.objectives) & families:
        raise ConfigError(
            f"the perturbation {type(perturbation).__name__} perturbs the "
            f"{' and '.join(perturbation.objectives)} objective, which this run does not have; "
            "set perturbation=none"
        )

"""What a step's numbers warn of: each kind once per run, by the first rank, where they are logged.

RoundingWarning      the parameters' precision swallowed the perturbation, or the step itself
VanishingWarning     the forget gradient is zero: nothing more is forgotten
CancellingWarning    the weighted gradients cancel: the step goes nowhere
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class RoundingWarning(UserWarning):
    """The parameters' precision leaves little of a perturbation."""


class VanishingWarning(UserWarning):
    """An objective has no gradient any more."""


class CancellingWarning(UserWarning):
    """The objectives' weighted gradients add up to nothing."""


def warnings_of(
    metrics: Mapping[str, float], step: int, *, geometric: bool
) -> Iterator[UserWarning]:
    """What the numbers of `StepRecord.metrics` after `step` steps give cause for.

    `geometric`: whether the weights were made from the gradients themselves. Of other weights
    gradients cancel where the run has arrived.
    """
    norm, ratio, cosine = (
        metrics.get(f"train/perturbation/{name}", 1.0) for name in ("norm", "ratio", "cosine")
    )
    if min(ratio, cosine) < 0.5:  # not where a step was skipped: NaN is less than nothing
        yield RoundingWarning(
            f"most of the perturbation was rounded away at step {step}: realized norm {norm:.3g}, "
            f"{ratio:.2g} of what was asked for, at cosine {cosine:.2g} to it; set precision=fp32 "
            "or a larger perturbation"
        )
    if metrics.get("train/forget/gradient_norm") == 0:
        yield VanishingWarning(
            f"the forget gradient is zero at step {step}: the forget loss is saturated and nothing "
            "more is forgotten; end the run there (max_steps), or choose a loss that does not "
            "saturate, or check that the forget rows have tokens that count"
        )
    elif geometric and _cancel(metrics):
        yield CancellingWarning(
            f"the objectives' weighted gradients cancel at step {step}: they are parallel and "
            "opposed, so that nothing can be forgotten without harm to what is kept; check that "
            "forget and retain rows differ, or choose another weighting"
        )


def unfitted(step: int) -> RoundingWarning:
    """The automatic learning rate cannot read along a step that was rounded away."""
    return RoundingWarning(
        f"most of step {step} was rounded away in the parameters' precision, so that no learning "
        "rate can be fitted to it; set precision=fp32, or optimizer.automatic_every=0"
    )


def _cancel(metrics: Mapping[str, float]) -> bool:
    """Whether the direction is nothing but rounding of what it was added up from."""
    ending = "/gradient_norm"
    lengths = [
        abs(metrics[name.removesuffix(ending) + "/weight"]) * value
        for name, value in metrics.items()
        if name.endswith(ending) and name != "train/gradient_norm"
    ]
    return len(lengths) > 1 and metrics["train/gradient_norm"] < 1e-6 * sum(lengths)

"""What a step's numbers warn of: once, in one line, and not without cause."""

from __future__ import annotations

import warnings

import pytest
import tiny

from framework import Weighting
from framework.step_warnings import CancellingWarning, VanishingWarning, warnings_of
from trainers.blur import BLUR
from trainers.ngdiff import NormalizedGradients

(STEP,) = tiny.step_rows(1, n=1)


def bowls(a: tuple[float, ...], b: tuple[float, ...], weighting: Weighting) -> tiny.Bowls:
    """f = 1/2 |w - a|^2 and r = 1/2 |w - b|^2 at w = (3, 4)."""
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=0.0001)
    engine = tiny.point_engine(3.0, 4.0, optimizer=optimizer)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(), engine=engine, optimizer=optimizer, weighting=weighting
    )
    trainer.a, trainer.b = a, b
    tiny.train(trainer, [STEP], tokens=1000)
    return trainer


def test_parallel_gradients_under_ngdiff_are_warned_of_once():
    # g_f = (3, 4), g_r = (-6, -8): what is forgotten is what is to be kept
    trainer = bowls((0.0, 0.0), (9.0, 12.0), NormalizedGradients(NormalizedGradients.Config()))
    with pytest.warns(CancellingWarning, match="gradients cancel at step 1: ") as said:
        trainer.metrics()
    assert "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.metrics()


def test_a_saturated_forget_loss_under_blur_is_warned_of():
    trainer = bowls((3.0, 4.0), (0.0, 0.0), BLUR(BLUR.Config()))
    with pytest.warns(VanishingWarning, match="the forget gradient is zero at step 1: ") as said:
        trainer.metrics()
    assert "\n" not in str(said[0].message)


def test_gradients_that_do_not_cancel_are_no_cause():
    for b in ((0.0, 4.0), (9.0, 12.001)):
        trainer = bowls((0.0, 0.0), b, NormalizedGradients(NormalizedGradients.Config()))
        assert list(warnings_of(trainer.metrics(), 1, geometric=True)) == []


def test_a_step_that_was_skipped_is_no_cause():
    nan = float("nan")
    names = ("forget/gradient_norm", "forget/weight", "retain/gradient_norm", "retain/weight")
    numbers = {f"train/{name}": nan for name in (*names, "gradient_norm", "perturbation/ratio")}
    assert list(warnings_of(numbers, 3, geometric=True)) == []

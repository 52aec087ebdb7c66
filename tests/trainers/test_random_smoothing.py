"""Random smoothing against what probability says of a quadratic, and what it must leave alone."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch

from framework import ConfigError, Vector
from framework.step_warnings import RoundingWarning
from trainers.random_smoothing import RandomSmoothing

CURVATURES = torch.arange(400) % 10 + 1.0  # H, a diagonal


def smoothing(sigma: float, draws: int) -> RandomSmoothing:
    return RandomSmoothing(RandomSmoothing.Config(sigma=sigma, draws=draws))


def test_the_mean_is_the_gradient_and_the_variance_that_of_n_draws():
    # 1/2 w'Hw at w = 1: gradient H (1 + mean of n xi); its variance adds up to sigma^2 |H|_F^2 / n
    sigma, draws, times = 0.5, 4, 50
    engine = tiny.point_engine(*[1.0] * 400, optimizer=tiny.optimizer("sgd", clip=None))

    def gradient() -> Vector:
        return engine.gradient(
            [lambda: 0.5 * (CURVATURES * engine.model.module.weight.square()).sum()]
        )

    found = torch.stack(
        [
            smoothing(sigma, draws)
            .gradient(
                gradient, engine.shifted, lambda draw, time=time: engine.noise(9 * time + draw)
            )
            .shards[0]
            for time in range(times)
        ]
    )
    variance = sigma**2 * float(CURVATURES.square().sum()) / draws
    off = found - CURVATURES  # 20,000 independent numbers
    assert float(off.square().sum() / times) == pytest.approx(variance, rel=0.05)
    # over `times` repetitions the mean is that much closer
    assert float(off.mean(0).square().sum()) == pytest.approx(variance / times, rel=0.4)


def bowls(seed: int, perturbation: RandomSmoothing, precision: str = "fp32"):
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.point_engine(*[1.0] * 8, optimizer=optimizer, precision=precision)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(),
        engine=engine,
        optimizer=optimizer,
        perturbation=perturbation,
        seed=seed,
    )
    trainer.a = trainer.b = (1.0,) * 8  # then the forget gradient is the noise
    return trainer


def norms(seed: int, draws: int, steps: int = 4) -> list[float]:
    """The lengths of the smoothed gradients, steps of rate 0."""
    trainer, found = bowls(seed, smoothing(1.0, draws)), []
    for _ in range(steps):
        batch = tiny.packed(tiny.rows(1, name="f"))
        trainer.step([{"forget": batch}, {"retain": batch}], learning_rate=0.0)
        found.append(trainer.metrics()["train/forget/gradient_norm"])
    return found


def test_every_step_and_draw_has_fresh_noise_that_the_seed_repeats():
    one, two = norms(0, draws=1), norms(0, draws=2)
    assert len({*one, *two}) == 8
    assert norms(0, draws=1) == one
    assert set(norms(1, draws=1)).isdisjoint(one)


def test_without_noise_it_is_one_plain_gradient():
    readings = []
    gradient = Vector([torch.tensor([0.1, 0.7])])

    def read() -> Vector:
        readings.append(1)
        return gradient

    found = smoothing(0.0, 3).gradient(
        read, lambda _: pytest.fail("asked for"), lambda _: pytest.fail("asked for")
    )
    assert found is gradient
    assert readings == [1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sigma", [1e-4, 3.0])
def test_the_parameters_come_back_bit_for_bit(precision, sigma):
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None), precision=precision)
    before = {n: t.clone() for n, t in engine.model.module.state_dict().items()}
    batch = tiny.packed(tiny.rows(3, name="f"))
    smoothing(sigma, 3).gradient(
        lambda: engine.gradient([lambda: engine.model.token_log_probs(batch).sum()]),
        engine.shifted,
        engine.noise,
    )
    after = engine.model.module.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_noise_that_bf16_rounds_away_is_warned_of_once():
    # at 1 the next bf16 numbers are 2^-8 below and 2^-7 above
    trainer = bowls(0, smoothing(1e-4, 1), precision="bf16")
    trainer.a = (0.0,) * 8
    batch = tiny.packed(tiny.rows(1, name="f"))
    step = [{"forget": batch}, {"retain": batch}]
    trainer.step(step, learning_rate=0.0)
    told = r"most of the perturbation was rounded away at step 1: realized norm 0, 0 of what"
    with pytest.warns(RoundingWarning, match=told):
        trainer.metrics()
    trainer.step(step, learning_rate=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.metrics()


@pytest.mark.parametrize(
    ("sigma", "draws", "message"),
    [(-1.0, 3, r"sigma must be >= 0, got -1"), (0.1, 0, r"draws must be >= 1, got 0")],
)
def test_settings_outside_their_ranges_are_refused(sigma, draws, message):
    with pytest.raises(ConfigError, match=rf"perturbation\.{message}"):
        smoothing(sigma, draws)

"""SAM against numbers worked by hand, and what it must leave as it was."""

from __future__ import annotations

import pytest
import tiny
import torch

from framework import ConfigError, Vector
from trainers.sam import SAM


def bowl_engine(precision: str = "fp32", *values: float):
    """A point at `values` under plain torch."""
    optimizer = tiny.optimizer("sgd", clip=None)
    return tiny.point_engine(*values, optimizer=optimizer, precision=precision)


def no_noise(draw: int) -> Vector:
    """SAM asks for none."""
    raise AssertionError(draw)


def gradient_of_bowl(engine) -> Vector:
    """Of 1/2 |w|^2: w itself."""
    return engine.gradient([lambda: 0.5 * engine.model.module.weight.square().sum()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_is_taken_rho_away_along_the_gradient(precision):
    # w = (3, 4), rho = 0.5: v = (3, 4), delta = 0.5 (0.6, 0.8), gradient = (3.3, 4.4)
    engine = bowl_engine(precision, 3.0, 4.0)
    found = SAM(SAM.Config(rho=0.5)).gradient(
        lambda: gradient_of_bowl(engine), engine.shifted, no_noise
    )
    tolerance = 1e-6 if precision == "fp32" else 2**-8  # bf16 has 8 bits
    assert found.shards[0].tolist() == pytest.approx([3.3, 4.4], rel=tolerance)
    assert engine.model.module.weight.tolist() == [3.0, 4.0]


def test_the_norm_is_of_the_whole_model_not_of_each_shard():
    shifts = []
    gradient = Vector([torch.tensor([3.0]), torch.tensor([4.0])])

    class Recorded:
        def __init__(self, delta: Vector) -> None:
            shifts.append(torch.cat(delta.shards).tolist())

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    SAM(SAM.Config(rho=1.0)).gradient(gradient.clone, Recorded, no_noise)
    assert shifts == [pytest.approx([0.6, 0.8])]


def test_a_vanishing_gradient_shifts_nothing():
    engine = bowl_engine("fp32", 0.0, 0.0)
    found = SAM(SAM.Config(rho=0.5)).gradient(
        lambda: gradient_of_bowl(engine), engine.shifted, no_noise
    )
    assert found.shards[0].tolist() == [0.0, 0.0]


def test_a_negative_radius_is_refused():
    with pytest.raises(ConfigError, match=r"perturbation\.rho must be >= 0, got -1"):
        SAM(SAM.Config(rho=-1.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rho", [1e-6, 0.01, 3.0])
def test_the_parameters_come_back_bit_for_bit(precision, rho):
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None), precision=precision)
    before = {n: t.clone() for n, t in engine.model.module.state_dict().items()}
    batch = tiny.packed(tiny.rows(3, name="f"))
    inside = []

    def gradient() -> Vector:
        inside.append(engine.model.module.lm_head.weight.detach().clone())
        return engine.gradient([lambda: engine.model.token_log_probs(batch).sum()])

    SAM(SAM.Config(rho=rho)).gradient(gradient, engine.shifted, no_noise)
    assert not torch.equal(*inside)
    after = engine.model.module.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_parameters_come_back_when_the_second_gradient_fails(precision):
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None), precision=precision)
    before = {n: t.clone() for n, t in engine.model.module.state_dict().items()}
    batch = tiny.packed(tiny.rows(3, name="f"))
    readings = iter([1])

    def gradient() -> Vector:
        if next(readings, None) is None:
            raise InterruptedError
        return engine.gradient([lambda: engine.model.token_log_probs(batch).sum()])

    with pytest.raises(InterruptedError):
        SAM(SAM.Config(rho=3.0)).gradient(gradient, engine.shifted, no_noise)
    after = engine.model.module.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_only_the_forget_gradient_is_perturbed():
    # at (3, 4) with rho = 0.5: f = 1/2 |w|^2 gives (3.3, 4.4); r = 1/2 |w - (0, 4)|^2 gives (3, 0)
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=1.0)
    engine = tiny.point_engine(3.0, 4.0, optimizer=optimizer)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(),
        engine=engine,
        optimizer=optimizer,
        perturbation=SAM(SAM.Config(rho=0.5)),
    )
    trainer.a, trainer.b = (0.0, 0.0), (0.0, 4.0)
    tiny.train(trainer, tiny.step_rows(1), tokens=1000)
    assert engine.master_weights()["weight"].tolist() == pytest.approx([3 - 6.3, 4 - 4.4])
    metrics = trainer.metrics()
    assert metrics["train/forget/loss"] == pytest.approx(12.5)  # of the first reading, unperturbed
    assert metrics["train/perturbation/norm"] == pytest.approx(0.5)
    assert metrics["train/perturbation/ratio"] == pytest.approx(1)
    assert metrics["train/perturbation/cosine"] == pytest.approx(1)

"""RMU against numbers worked by hand (arXiv:2403.03218)."""

from __future__ import annotations

import math

import pytest
import table
import tiny
import torch

from framework import ConfigError, FrozenReference
from framework.method import reference_needed
from trainers.rmu import RMU, direction

WIDTH = 4
U = direction(0, WIDTH, torch.device("cpu"))


def at_distances(*squares: float, steering: float = 2.0) -> torch.Tensor:
    """Hidden states after token t whose mean square distance to the target is `squares[t]`."""
    return torch.stack([steering * U + math.sqrt(square) for square in squares])


def rmu(*, tuning: str = "full", **settings: object) -> RMU:
    """RMU on the tiny model, which is its own reference under LoRA."""
    optimizer = tiny.optimizer("adamw", clip=None)
    engine = tiny.local_engine(optimizer, tuning=tuning)
    before = engine.model if tuning == "lora" else tiny.language_model()
    config = RMU.Config(**settings)  # type: ignore[arg-type]
    parts = {"engine": engine, "optimizer": optimizer, "reference": FrozenReference(before)}
    return RMU(config, **parts)


# ---- the loss ------------------------------------------------------------------------------------


def test_states_at_the_target_are_what_it_wants():
    trainer = table.trainer(RMU, at_distances(0, 0, 0, 0, steering=6.5), steering=6.5)
    assert table.loss(trainer, table.row(0, 1, 2, 3)) == 0
    assert table.gradient(trainer, table.row(0, 1, 2, 3)) == [[0] * WIDTH] * WIDTH


ROWS = [table.row(0, 3), table.row(1, 1, 3)]  # one token at distance 1, two at distance 2


def test_a_rows_tokens_are_averaged_and_then_the_rows():
    # (1/1 + (2 + 2)/2) / 2 = 1.5; the mean over tokens would be 5/3
    trainer = table.trainer(RMU, at_distances(1, 2, 9, 9))
    for micro_batches in (1, 2):
        found = table.loss(trainer, *ROWS, micro_batches=micro_batches)
        assert found == pytest.approx(1.5, rel=1e-6)


def test_open_unlearnings_reduction_divides_every_row_by_every_length():
    # mean of the 2 x 2 matrix of sums (1, 4) over lengths (1, 2): (1 + 1/2 + 4 + 4/2) / 4
    trainer = table.trainer(RMU, at_distances(1, 2, 9, 9), reduction_parity=True)
    assert table.loss(trainer, *ROWS) == pytest.approx(1.875, rel=1e-6)
    # equal lengths: no difference
    assert table.loss(trainer, table.row(0, 3), table.row(1, 3)) == pytest.approx(1.5, rel=1e-6)


def test_the_gradient_points_from_the_target_to_the_state():
    # d/dh of |h - c u|^2 / D: 2 (h - c u) / D, h - c u = (1, 1, 1, 1)
    trainer = table.trainer(RMU, at_distances(1, 9, 9, 9))
    assert table.gradient(trainer, table.row(0, 3))[0] == pytest.approx([0.5] * 4, rel=1e-6)


# ---- the direction -------------------------------------------------------------------------------


def test_the_direction_has_length_one_and_no_negative_entry():
    u = direction(3, 1000, torch.device("cpu"))
    assert float(u.norm()) == pytest.approx(1, rel=1e-6)
    assert float(u.min()) >= 0
    assert float(u.std()) > 0.01  # not the diagonal


def test_the_direction_depends_on_seed_and_width_alone():
    cpu = torch.device("cpu")
    first = direction(3, 32, cpu)
    torch.manual_seed(99)
    assert torch.equal(first, direction(3, 32, cpu))
    assert not torch.equal(first, direction(4, 32, cpu))


# ---- the layer -----------------------------------------------------------------------------------


def test_nothing_above_the_layer_has_a_gradient():
    trainer = rmu(layer=1)
    batch = tiny.packed(tiny.rows(3, name="layer"))
    gradient = trainer.engine.gradient([lambda: trainer.forget_loss(batch)])
    names = trainer.engine.master_weights()
    reached = {n for n, g in zip(names, gradient.shards, strict=True) if g.abs().max() > 0}
    assert reached == {n for n in names if "embed_tokens" in n or "layers.0." in n}


def test_the_middle_layer_is_the_default():
    assert rmu().layer == 1  # of two
    assert table.trainer(RMU, torch.zeros(4, 4)).layer == 1  # of one


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(ConfigError, match=rf"from 1 to 2, the model's decoder blocks, got {layer}"):
        rmu(layer=layer).forget_loss(tiny.packed(tiny.rows(1, name="layer")))


def test_the_target_must_have_a_length():
    with pytest.raises(ConfigError, match=r"trainer\.steering must be > 0, got 0"):
        RMU.Config(steering=0.0)


# ---- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "layers", "lora"])
def test_it_steers_the_forget_rows_and_knows_what_it_does_to_the_others(tuning):
    trainer = rmu(tuning=tuning, layer=2)
    start = trainer.engine.master_weights()
    (step,) = tiny.step_rows(1)
    forget, retain = tiny.packed(step["forget"]), tiny.packed(step["retain"])
    assert trainer.retain_loss(retain).item() == 0
    kept = trainer.engine.gradient([lambda: trainer.retain_loss(retain)])
    assert float(kept.norm()) == 0
    before = trainer.forget_loss(forget).item()
    tiny.train(trainer, [step] * 5, tokens=1000)
    assert trainer.forget_loss(forget).item() < before
    assert 0 < trainer.retain_loss(retain).item() < before
    after = trainer.engine.master_weights()
    assert any(not torch.equal(start[name], after[name]) for name in start)


def test_only_its_own_retain_loss_and_kl_need_the_model_before_unlearning():
    needed = {
        kind: reference_needed(RMU, RMU.Config(retain_loss=kind))
        for kind in ("states", "kl", "nll", "none")
    }
    assert needed == {"states": "cached", "kl": "cached", "nll": None, "none": None}

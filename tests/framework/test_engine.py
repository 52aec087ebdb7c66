"""LocalEngine: gradients, shifts and steps, worked by hand on a point and on the tiny model."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import tiny
import torch

from framework import LocalEngine, Vector
from framework.engine import Loss, Shift, measure_shift
from framework.errors import CheckpointError
from framework.optimizers import Trained


def point(*values: float, precision: str = "fp32", rate: float = 1.0) -> LocalEngine:
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=rate)
    return tiny.point_engine(*values, optimizer=optimizer, precision=precision)


def weight_of(engine: LocalEngine) -> torch.Tensor:
    weight: torch.Tensor = engine.model.module.weight
    return weight


def vector(*numbers: float) -> Vector:
    return Vector([torch.tensor(numbers)], replicated=True)


# ---- gradient ------------------------------------------------------------------------------------


def test_a_gradient_is_the_sum_over_micro_batches():
    engine = point(1.0, 2.0)
    w = weight_of(engine)
    found = engine.gradient([lambda: w.square().sum(), lambda: 3 * w[0]])
    assert found.shards[0].tolist() == [5, 4]
    assert found.shards[0].dtype == torch.float32


def test_one_gradient_leaves_nothing_in_the_next():
    engine = point(1.0, 2.0)
    w = weight_of(engine)
    first = engine.gradient([lambda: w.square().sum()])
    second = engine.gradient([w.sum])
    assert first.shards[0].tolist() == [2, 4]
    assert second.shards[0].tolist() == [1, 1]


def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_gradient():
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None))
    embedding = engine.model.module.model.embed_tokens.weight
    found = engine.gradient([embedding.sum])
    sizes = [p.numel() for p in engine.model.module.parameters()]
    assert [len(shard) for shard in found.shards] == sizes
    assert found.shards[0].tolist() == [1] * sizes[0]
    assert all(not shard.any() for shard in found.shards[1:])


def test_in_bf16_gradients_add_up_in_fp32():
    # 1 + 10 * 0.001: in bf16 every addition would be rounded away
    engine = point(1.0, precision="bf16")
    w = weight_of(engine)
    found = engine.gradient([w.sum, *[lambda: 0.001 * w.sum()] * 10])
    assert found.shards[0].dtype == torch.float32
    assert found.shards[0].item() == pytest.approx(1.01, abs=1e-4)


# ---- shift ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_shift_is_undone_bit_for_bit(precision):
    # 0.1 + 0.7 - 0.7 is not 0.1 in floating point
    engine = point(0.1, 1e-8, -3.3, precision=precision)
    before = weight_of(engine).detach().clone()
    with engine.shifted(vector(0.7, 1.0, 1e5)):
        assert not torch.isclose(weight_of(engine), before).any()
    assert torch.equal(weight_of(engine), before)


def test_a_shift_is_undone_when_something_fails_inside():
    engine = point(0.1)
    with pytest.raises(InterruptedError), engine.shifted(vector(0.7)):
        raise InterruptedError
    assert weight_of(engine).tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_shift_that_fails_half_way_leaves_nothing_moved(precision):
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None), precision=precision)
    before = {n: w.clone() for n, w in engine.state_dict().items()}
    whole = engine.noise(0)
    cut = Vector([*whole.shards[:-1], whole.shards[-1][1:]], replicated=True)
    with pytest.raises(RuntimeError, match="size"), engine.shifted(cut):
        pass
    assert all(torch.equal(w, before[n]) for n, w in engine.state_dict().items())
    engine.step(whole, learning_rate=0.1)  # and the next shift starts from there
    before = {n: w.clone() for n, w in engine.state_dict().items()}
    with engine.shifted(whole):
        pass
    assert all(torch.equal(w, before[n]) for n, w in engine.state_dict().items())


def test_a_second_shift_starts_where_the_first_did():
    engine = point(1.0, 2.0)
    with engine.shifted(vector(10.0, 10.0)):
        shift = engine.shift(vector(0.0, 0.5))
        assert weight_of(engine).tolist() == [1, 2.5]
        assert float(shift.norm) == 0.5
    assert weight_of(engine).tolist() == [1, 2]


def test_in_fp32_all_of_a_shift_is_realised():
    engine = point(3.0, 4.0)
    with engine.shifted(vector(0.3, -0.4)) as shift:
        assert float(shift.norm) == pytest.approx(0.5)
        assert float(shift.ratio) == pytest.approx(1)
        assert float(shift.cosine) == pytest.approx(1)


def test_in_bf16_a_shift_below_the_spacing_of_the_weights_is_lost_and_the_report_says_so():
    # spacing of bf16: 2^-7 at 1, 2^-17 at 0.001; so of (1e-4, 1e-4) the second half is realised
    engine = point(1.0, 0.001, precision="bf16")
    with engine.shifted(vector(1e-4, 1e-4)) as shift:
        assert weight_of(engine)[0] == 1
        assert weight_of(engine)[1] > 0.001
        assert float(shift.ratio) == pytest.approx(0.5**0.5, rel=0.05)
        assert float(shift.cosine) == pytest.approx(0.5**0.5, rel=0.05)
    with engine.shifted(vector(1e-4, 0.0)) as shift:
        assert float(shift.norm) == float(shift.ratio) == float(shift.cosine) == 0


def test_a_shift_of_nothing_is_nothing_and_nothing_of_it_is_lost():
    engine = point(1.0)
    with engine.shifted(vector(0.0)) as shift:
        assert float(shift.norm) == 0
        assert float(shift.ratio) == float(shift.cosine) == 1
        assert weight_of(engine).item() == 1


# ---- step ----------------------------------------------------------------------------------------


def test_a_step_goes_against_the_direction_as_far_as_it_is_told():
    engine = point(1.0, 2.0)
    engine.step(vector(10.0, -1.0), learning_rate=0.5)
    assert weight_of(engine).tolist() == [-4, 2.5]
    assert weight_of(engine).grad is None


def test_in_bf16_updates_too_small_for_the_weights_add_up_in_the_masters():
    # at 1 the next bf16 number is 2^-8 = 0.0039 below: a step of 0.001 alone changes nothing
    engine = point(1.0, precision="bf16", rate=0.001)
    seen = []
    for _ in range(8):
        engine.step(vector(1.0), learning_rate=0.001)
        seen.append(weight_of(engine).item())
    assert seen[0] == 1
    assert weight_of(engine).dtype == torch.bfloat16
    assert engine.master_weights()["weight"].item() == pytest.approx(0.992)
    assert seen[-1] == pytest.approx(0.992, abs=2**-9)


def test_matrices_and_vectors_are_groups_apart():
    optimizer = tiny.optimizer("adamw", clip=None)
    matrix = Trained("m", torch.zeros(2, 2), (2, 2), table=False)
    bias = Trained("b", torch.zeros(2), (2,), table=False)
    decayed = {"params": [matrix.tensor]}
    not_decayed = {"params": [bias.tensor], "weight_decay": 0.0}
    assert optimizer.groups([matrix, bias]) == [decayed, not_decayed]
    assert optimizer.groups([matrix]) == [decayed]
    assert optimizer.groups([bias]) == [not_decayed]


# ---- save and load -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path, precision):
    plan, optimizer = tiny.step_rows(3), tiny.optimizer("adamw", clip=None)
    engines = [tiny.local_engine(optimizer, precision=precision, seed=seed) for seed in (0, 1)]
    trainers = [
        tiny.trainer(engine, engine.model, plan, method="grad_diff", optimizer=optimizer)
        for engine in engines
    ]
    tiny.train(trainers[0], plan[:2], tokens=40)
    engines[0].save(tmp_path)
    engines[1].load(tmp_path)
    for trainer in trainers:
        tiny.train(trainer, plan[2:], tokens=40)
    one, other = (engine.master_weights() for engine in engines)
    assert all(torch.equal(one[n], other[n]) for n in one)
    one, other = (engine.state_dict() for engine in engines)
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    optimizer = tiny.optimizer("sgd", clip=None)
    tiny.local_engine(optimizer).save(tmp_path)
    other = tiny.local_engine(optimizer, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="is a checkpoint of another model"):
        other.load(tmp_path)


def test_a_checkpoint_of_another_engine_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="was written by another engine"):
        point(1.0).load(tmp_path)


class _Watched(LocalEngine):
    """Notes at each gradient whether the shift that led there is still held."""

    held: list[bool]
    asked: weakref.ref[torch.Tensor] | None = None

    def shift(self, delta: Vector) -> Shift:
        self.asked = weakref.ref(delta.shards[0])
        return super().shift(delta)

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        if self._unshifted is not None:
            assert self.asked is not None
            self.held.append(self.asked() is not None)
        return super().gradient(losses)


@pytest.mark.parametrize("perturbation", ["sam", "random_smoothing", "gradient_penalty"])
def test_a_shift_takes_no_memory_while_the_gradient_there_is_taken(perturbation):
    optimizer, plan = tiny.optimizer("sgd", clip=None), tiny.step_rows(1)
    engine = _Watched(
        LocalEngine.Config(), model=tiny.language_model(), optimizer=optimizer, precision="fp32"
    )
    engine.held = []
    chosen = tiny.PERTURBATIONS[perturbation]()
    trainer = tiny.trainer(
        engine,
        tiny.language_model(),
        plan,
        method="grad_diff",
        optimizer=optimizer,
        perturbation=chosen,
    )
    tiny.train(trainer, plan, tokens=1000)
    assert engine.held
    assert not any(engine.held)


def test_a_shift_is_measured_alike_whole_and_in_pieces(monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    pieces = [(torch.randn(n, generator=drawn), torch.randn(n, generator=drawn)) for n in (3, 5, 4)]
    whole = measure_shift(pieces, replicated=True)
    monkeypatch.setattr("framework.engine.PIECE", 4)
    cut = measure_shift(pieces, replicated=True)
    asked, realised = (torch.cat(each).double() for each in zip(*pieces, strict=True))
    for found in (whole, cut):
        assert float(found.norm) == pytest.approx(float(realised.norm()))
        assert float(found.ratio) == pytest.approx(float(realised.norm() / asked.norm()))
        cosine = torch.cosine_similarity(asked, realised, dim=0)
        assert float(found.cosine) == pytest.approx(float(cosine))

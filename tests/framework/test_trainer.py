"""The trainer: one step, what it does with NaN, what it records, what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import tiny
import torch

from framework import ConfigError, FixedWeights, Gram, LocalEngine, Row, Rows, Weighting
from framework.checkpoint import Checkpoints
from framework.data import laid_out
from framework.engine import Loss
from framework.errors import NonFiniteError
from framework.method import asked_of_reference, reference_needed
from framework.micro_batches import micro_batches
from framework.modules import drops_out
from framework.objectives import family
from framework.parts import Weights
from framework.trainer import UnlearningTrainer
from framework.tuning import LoRA
from framework.vectors import Vector
from trainers.dpo import DPO
from trainers.finetune import Finetune
from trainers.grad_ascent import GradAscent, GradDiff
from trainers.npo import NPO
from trainers.rmu import RMU
from trainers.sam import SAM

PLAN = tiny.step_rows(4)


def made(
    kind: type[UnlearningTrainer] = GradDiff,
    *,
    engine: LocalEngine | None = None,
    clip: float | None = None,
    seed: int = 0,
    weighting: Weighting | None = None,
    perturbation: SAM | None = None,
    rate: float = 0.1,
    **settings: Any,
) -> UnlearningTrainer:
    optimizer = tiny.optimizer("sgd", clip=clip, learning_rate=rate)
    engine = tiny.local_engine(optimizer) if engine is None else engine
    return tiny.assemble(
        kind,
        kind.Config(**settings),
        engine,
        tiny.language_model(),
        PLAN,
        weighting=weighting,
        perturbation=perturbation,
        optimizer=optimizer,
        seed=seed,
    )


def bowls(
    *,
    clip: float | None = None,
    rate: float = 1.0,
    weighting: Weighting | None = None,
    **settings: Any,
) -> tiny.Bowls:
    """f = 1/2 |w - (0, 0)|^2, r = 1/2 |w - (0, 4)|^2 at w = (3, 4): gradients (3, 4) and (3, 0)."""
    optimizer = tiny.optimizer("sgd", clip=clip, learning_rate=rate)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(**settings),
        engine=tiny.point_engine(3.0, 4.0, optimizer=optimizer),
        optimizer=optimizer,
        weighting=weighting,
    )
    trainer.a, trainer.b = (0.0, 0.0), (0.0, 4.0)
    return trainer


def weights_of(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    return trainer.engine.master_weights()


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


# ---- one step by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("compare_every", [0, 1])
def test_the_direction_is_the_weighted_sum_of_the_gradients(compare_every):
    trainer = bowls(forget_weight=2.0, retain_weight=0.5, compare_every=compare_every)
    tiny.train(trainer, PLAN[:1], tokens=30)
    # 2 (3, 4) + 0.5 (3, 0) = (7.5, 8)
    assert weights_of(trainer)["weight"].tolist() == pytest.approx([3 - 7.5, 4 - 8])


def test_what_a_step_records():
    trainer = bowls(compare_every=1, rate=0.25)
    tiny.train(trainer, PLAN[:1], tokens=30)
    found = trainer.metrics()
    assert found.pop("train/peak_memory_gib") > 0
    assert found == {
        "train/forget/loss": pytest.approx(12.5),
        "train/retain/loss": pytest.approx(4.5),
        "train/forget/weight": 1,
        "train/retain/weight": 1,
        "train/forget/gradient_norm": pytest.approx(5),
        "train/retain/gradient_norm": pytest.approx(3),
        "train/cosine": pytest.approx(0.6),
        "train/gradient_norm": pytest.approx(52**0.5),  # of (6, 4)
        "train/learning_rate": 0.25,
        "train/skipped_steps": 0,
    }


def test_gradients_are_compared_every_so_many_steps():
    trainer = bowls(compare_every=3, rate=0.01)
    compared = []
    for _ in range(7):
        tiny.train(trainer, PLAN[:1], tokens=30)
        compared.append("train/cosine" in trainer.metrics())
    assert compared == [True, False, True, False, False, True, False]


def test_a_long_direction_is_clipped_to_the_norm():
    # (6, 4) has length 52^0.5; clipped to 2 and stepped by 1
    trainer = bowls(clip=2.0)
    tiny.train(trainer, PLAN[:1], tokens=30)
    scale = 2 / 52**0.5
    assert weights_of(trainer)["weight"].tolist() == pytest.approx([3 - 6 * scale, 4 - 4 * scale])
    assert trainer.metrics()["train/gradient_norm"] == pytest.approx(52**0.5)  # before clipping


def test_a_short_direction_is_not_stretched():
    trainer = bowls(clip=100.0, rate=0.5)
    tiny.train(trainer, PLAN[:1], tokens=30)
    assert weights_of(trainer)["weight"].tolist() == pytest.approx([0, 2])


def test_a_run_without_a_retain_loss_has_one_objective():
    trainer = bowls(retain_loss="none", rate=0.5)
    assert trainer.objectives == ("forget",)
    tiny.train(trainer, PLAN[:1], tokens=30)
    assert weights_of(trainer)["weight"].tolist() == pytest.approx([1.5, 2])
    assert "train/retain/loss" not in trainer.metrics()


def test_the_means_are_of_the_step_whatever_one_rank_reads():
    step = {"forget": tiny.rows(5, name="f"), "retain": tiny.rows(7, name="r")}
    batches = micro_batches(
        step, tokens=30, rank=0, world_size=1, shares=True, device=torch.device("cpu")
    )
    assert len(batches) > 1
    for name, rows in step.items():
        members = [batch[name] for batch in batches if name in batch]
        assert sum(map(len, members)) == len(rows)
        assert {member.totals.rows for member in members} == {len(rows)}
        assert {member.totals.weight for member in members} == {sum(row.weight for row in rows)}


# ---- one pass for all objectives -----------------------------------------------------------------


def with_heads(step: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The step's rows behind one head of 5 tokens that does not count, names and weights kept."""
    head, nothing = (40, 41, 42, 43, 44), (0.0,) * 5

    def behind(row: Row) -> Row:
        preferred = None if row.preferred is None else behind(row.preferred)
        return Row(row.id, head + row.input_ids, nothing + row.weights, preferred)

    return {name: [behind(row) for row in rows] for name, rows in step.items()}


TOGETHER: dict[str, tuple[type[UnlearningTrainer], tuple[str, ...]]] = {
    "token means": (GradDiff, ()),
    "a row mean": (NPO, ()),
    "pairs": (DPO, ()),
    "two retain sources": (NPO, ("a", "b")),
}


def joined(
    kind: type[UnlearningTrainer], sources: Sequence[str] = (), **settings: Any
) -> tuple[UnlearningTrainer, dict[str, list[Row]]]:
    """A trainer and a step of it, whose rows begin alike."""
    (step,) = map(with_heads, tiny.step_rows(1, n=6, prefers=kind.prefers))
    optimizer = tiny.optimizer("sgd", clip=None)
    run = tiny.assemble(
        kind,
        kind.Config(**{"compare_every": 0, "forget_weight": 0.7, "retain_weight": 3.0, **settings}),
        tiny.local_engine(optimizer),
        tiny.language_model(seed=1),
        [step],
        optimizer=optimizer,
        sources=sources,
    )
    run.model.tokens_per_micro_batch = 1000
    for i, name in enumerate(name for name in run.objectives if "/" in name):
        step[name] = step["retain"][i::2]
    return run, step


def reading(run: UnlearningTrainer) -> list[int]:
    """The tokens of each forward pass from now on."""
    passes: list[int] = []
    forward = run.model.forward

    def listening(**given: Any) -> Any:
        passes.append(given["input_ids"].numel())
        return forward(**given)

    run.model.forward = listening
    return passes


def plain_gradient(run: UnlearningTrainer, step: Mapping[str, Sequence[Row]]) -> Vector:
    """The step's direction, one objective after another, nothing shared."""
    losses = {"forget": run.forget_loss, "retain": run.retain_loss}
    weights = run.weighting.weights(None)

    def thunk(name: str) -> Loss:
        return lambda: losses[family(name)](tiny.packed(step[name])) * weights[name]

    return run.engine.gradient([thunk(name) for name in run.objectives])


def steps_as_plain(run: UnlearningTrainer, step: Mapping[str, Sequence[Row]], tokens: int) -> None:
    """Take the step; assert that it went along the plain gradient and recorded the plain losses."""
    right = plain_gradient(run, step)
    losses = {"forget": run.forget_loss, "retain": run.retain_loss}
    expected = {name: losses[family(name)](tiny.packed(step[name])) for name in run.objectives}
    before = weights_of(run)
    tiny.train(run, [step], tokens=tokens)
    after = weights_of(run)
    moved = torch.cat([((before[n] - after[n]) / 0.1).flatten() for n in before])
    whole = torch.cat([shard.flatten() for shard in right.shards])
    assert float((moved - whole).norm() / whole.norm()) <= 1e-5
    for name, loss in expected.items():
        assert run.metrics()[f"train/{name}/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("case", TOGETHER)
def test_what_is_read_together_has_the_losses_and_the_gradient_of_what_is_read_apart(case, tokens):
    steps_as_plain(*joined(*TOGETHER[case]), tokens)


SHARED: dict[str, tuple[type[UnlearningTrainer], dict[str, Any]]] = {
    "hidden states": (RMU, {"layer": 1}),
    "the retain rows' hidden states": (NPO, {"retain_loss": "states"}),
    "a frozen reference": (NPO, {"reference": "frozen"}),
    "a frozen reference's hidden states": (RMU, {"reference": "frozen", "layer": 2}),
}


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("case", SHARED)
def test_objectives_that_are_read_apart_share_beginnings_among_their_own_rows(case, tokens):
    run, step = joined(SHARED[case][0], **SHARED[case][1])
    steps_as_plain(run, step, tokens)
    passes = reading(run)
    tiny.train(run, [step], tokens=1000)
    assert passes == [distinct(step["forget"]), distinct(step["retain"])]


def distinct(rows: Sequence[Row]) -> int:
    """Tokens that are left where what rows begin with alike is read once."""
    every = laid_out(rows)
    return len({row.input_ids[:n] for row in every for n in range(1, len(row) + 1)})


def test_a_step_is_one_pass_over_what_its_rows_do_not_share():
    for kind, behind in ((NPO, 12), (DPO, 18)):
        run, step = joined(kind)
        rows = [row for part in step.values() for row in laid_out(part)]
        assert len(rows) == behind
        passes = reading(run)
        tiny.train(run, [step], tokens=1000)
        assert passes == [distinct(rows)]
        assert distinct(rows) <= sum(map(len, rows)) - 6 * (len(rows) - 1)  # heads and first tokens


class ReadsTwice(GradDiff):
    """Its forget loss asks the model about its rows twice."""

    def forget_loss(self, rows: Rows) -> torch.Tensor:
        largest = self.model.of_logits(rows, lambda logits, chunk: logits.amax(-1))
        return super().forget_loss(rows) + rows.token_mean(largest)


def test_a_micro_batch_is_one_pass_however_often_a_loss_reads_it_and_whoever_is_alone_in_it():
    run, step = joined(ReadsTwice)
    run.model.tokens_per_micro_batch = 40
    batches = run.micro_batches(step, 1)
    assert {tuple(batch) for batch in batches} >= {("forget",), ("forget", "retain")}
    passes = reading(run)
    run.step(batches, learning_rate=0.1)
    assert passes == [next(iter(batch.values())).input_ids.numel() for batch in batches]


def test_pairs_share_their_question():
    run, _ = joined(DPO)
    pairs = [
        Row(
            f"p{i}", (*q, 8, 9), (0.0,) * 5 + (1.0,) * 2, Row(f"q{i}", (*q, 7), (0.0,) * 5 + (1.0,))
        )
        for i, q in enumerate([(11, 12, 13, 14, 15), (21, 22, 23, 24, 25)])
    ]
    rows = {"forget": pairs, "retain": [Row("r", (31, 32, 33), (0.0, 1.0, 1.0))]}
    (batch,) = run.micro_batches(rows, 0)
    assert batch["forget"].input_ids.numel() == 2 * (5 + 2 + 1) + 3


def test_objectives_are_read_apart_where_gradients_are_compared_or_the_rate_is_fitted():
    run, step = joined(GradDiff, compare_every=3)
    together = [["forget", "retain"]]
    each = [["forget"], ["retain"]]
    found = [list(map(list, run.micro_batches(step, at))) for at in range(6)]
    assert found == [each, together, each, together, together, each]
    optimizer = tiny.optimizer("sgd", clip=None, automatic_every=2)
    fitted = GradDiff(GradDiff.Config(compare_every=0), engine=run.engine, optimizer=optimizer)
    assert list(map(list, fitted.micro_batches(step, 0))) == each
    assert list(map(list, fitted.micro_batches(step, 1))) == together


def test_a_frozen_reference_reads_no_rows_of_other_objectives():
    run, step = joined(NPO, reference="frozen")
    assert list(map(list, run.micro_batches(step, 1))) == [["forget"], ["retain"]]


# ---- NaN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compare_every", [0, 1])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_touches_a_weight(compare_every):
    trainer = made(tiny.BreaksOnce, compare_every=compare_every)
    tiny.train(trainer, PLAN[:1], tokens=30)
    before = weights_of(trainer)
    tiny.train(trainer, PLAN[1:2], tokens=30)
    with pytest.raises(NonFiniteError, match=r"step 2 \(forget loss -inf, retain loss [0-9.]+\)"):
        trainer.metrics()
    assert equal(before, weights_of(trainer))


def test_the_error_says_what_to_type():
    trainer = made(tiny.BreaksOnce)
    tiny.train(trainer, PLAN, tokens=30)
    with pytest.raises(NonFiniteError) as stopped:
        trainer.settle()
    message = str(stopped.value)
    assert "optimizer.learning_rate" in message
    assert "trainer.on_nonfinite=skip" in message
    assert "\n" not in message


@pytest.mark.parametrize("perturbation", [None, SAM(SAM.Config(rho=0.01))])
def test_a_step_that_is_not_finite_can_be_skipped_and_counted(perturbation):
    trainer = made(tiny.BreaksOnce, on_nonfinite="skip", perturbation=perturbation)
    seen, counted = [], []
    for step in PLAN:
        tiny.train(trainer, [step], tokens=30)
        seen.append(weights_of(trainer))
        counted.append(trainer.metrics()["train/skipped_steps"])
    assert counted == [0, 1, 1, 1]
    assert equal(seen[0], seen[1])
    assert not equal(seen[1], seen[2])
    assert all(torch.isfinite(w).all() for w in seen[-1].values())
    # the steps after it are those of a run that never saw it
    without = made(GradDiff, perturbation=perturbation)
    tiny.train(without, [PLAN[0], *PLAN[2:]], tokens=30)
    assert max(float((seen[-1][n] - w).abs().max()) for n, w in weights_of(without).items()) <= 1e-6


def test_nobody_looks_for_steps_and_the_weights_stay_those_before_the_first_bad_one():
    trainer = made(tiny.BreaksOnce)
    tiny.train(trainer, PLAN[:1], tokens=30)
    before = weights_of(trainer)
    tiny.train(trainer, PLAN[1:], tokens=30)  # the last two are finite
    assert trainer.steps_done == 4
    assert equal(before, weights_of(trainer))
    with pytest.raises(
        NonFiniteError, match=r"at step 2 \(forget loss -inf, retain loss [0-9.]+\)"
    ):
        trainer.finish()
    assert equal(before, weights_of(trainer))


def test_skipped_steps_are_counted_however_late_somebody_looks():
    trainer = made(tiny.BreaksOnce, on_nonfinite="skip")
    tiny.train(trainer, PLAN, tokens=30)
    assert trainer.metrics()["train/skipped_steps"] == 1
    tiny.train(trainer, PLAN[2:], tokens=30)
    assert trainer.metrics()["train/skipped_steps"] == 1


def test_a_checkpoint_is_not_written_over_a_step_that_was_not_finite(tmp_path):
    trainer = made(tiny.BreaksOnce)
    tiny.train(trainer, PLAN[:2], tokens=30)
    with pytest.raises(NonFiniteError, match="at step 2 "):
        Checkpoints(tmp_path).save(trainer.engine, trainer)
    assert list(tmp_path.iterdir()) == []


# ---- dropout -------------------------------------------------------------------------------------


def with_dropout(**settings: Any) -> UnlearningTrainer:
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, attention_dropout=0.5)
    engine.model.module.train()
    return made(GradDiff, engine=engine, **settings)


def test_the_same_seed_gives_the_same_dropout_and_another_seed_another():
    runs = []
    for seed in (0, 0, 1):
        trainer = with_dropout(seed=seed)
        tiny.train(trainer, PLAN[:2], tokens=30)
        runs.append(weights_of(trainer))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_both_readings_of_sam_see_the_same_dropout():
    # radius 0: the second reading must give the first one's gradient, to the bit
    plain, still = with_dropout(), with_dropout(perturbation=SAM(SAM.Config(rho=0.0)))
    for trainer in (plain, still):
        trainer.config.compare_every = 1
        tiny.train(trainer, PLAN[:2], tokens=30)
    assert equal(weights_of(plain), weights_of(still))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_rows_that_begin_alike_share_nothing_under_dropout(dropout):
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None), attention_dropout=dropout)
    run = made(GradDiff, engine=engine, compare_every=0)
    run.model.tokens_per_micro_batch = 1000
    (batch,) = run.micro_batches(with_heads(PLAN[0]), 1)
    assert (batch["forget"].keys is None) == (dropout > 0)
    assert batch["forget"].input_ids is batch["retain"].input_ids


def test_adapters_that_drop_out_share_nothing_either():
    tuning = LoRA(LoRA.Config(rank=4, alpha=8.0, dropout=0.1))
    assert drops_out(tuning.apply(tiny.module()))
    assert not drops_out(LoRA(LoRA.Config(rank=4, alpha=8.0)).apply(tiny.module()))


def test_micro_batches_and_steps_do_not_share_their_dropout():
    trainer = with_dropout(rate=1e-12)  # so that the weights stay as they are
    row = tiny.rows(1, name="same")[0]
    twins = [Row(f"{row.id}{i}", row.input_ids, row.weights) for i in range(2)]
    losses: list[float] = []
    original = trainer.forget_loss

    def listening(rows: Rows) -> torch.Tensor:
        value = original(rows)
        losses.append(value.item())
        return value

    trainer.forget_loss = listening
    step = {"forget": twins, "retain": twins}
    tiny.train(trainer, [step, step], tokens=len(row))
    assert len(set(losses)) == len(losses) == 4


# ---- parts ---------------------------------------------------------------------------------------


class Dual(Weighting):
    """Adds the retain loss to the retain weight at every step."""

    needs_losses: ClassVar[bool] = True

    def __init__(self) -> None:
        self.value = 1.0

    def weights(self, gram: Gram | None) -> Weights:
        del gram
        return {"forget": 1.0, "retain": self.value}

    def update(self, losses: Mapping[str, float]) -> None:
        self.value += losses["retain"]

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


def test_a_weighting_learns_from_the_losses_of_each_step():
    trainer = bowls(weighting=Dual(), rate=0.1, compare_every=0)
    tiny.train(trainer, PLAN[:1], tokens=30)
    # retain loss 4.5 at (3, 4); then w = (3, 4) - 0.1 (6, 4) = (2.4, 3.6), retain loss 2.96
    assert trainer.weighting.value == pytest.approx(5.5)
    tiny.train(trainer, PLAN[:1], tokens=30)
    assert trainer.metrics()["train/retain/weight"] == pytest.approx(5.5)
    assert trainer.weighting.value == pytest.approx(5.5 + 0.5 * (2.4**2 + 0.4**2))


def test_a_restart_finds_the_weighting_the_step_and_the_skipped_steps():
    trainer = bowls(weighting=Dual())
    tiny.train(trainer, PLAN[:2], tokens=30)
    trainer.skipped_steps = 3
    other = bowls(weighting=Dual())
    other.load_state_dict(trainer.state_dict())
    assert other.steps_done == 2
    assert other.skipped_steps == 3
    assert other.weighting.value == trainer.weighting.value


def test_a_weighting_given_wins_over_the_methods_own():
    trainer = bowls(weighting=FixedWeights({"forget": 0.0, "retain": 1.0}), forget_weight=7.0)
    tiny.train(trainer, PLAN[:1], tokens=30)
    assert weights_of(trainer)["weight"].tolist() == pytest.approx([0, 4])


def test_a_method_without_a_forget_loss_says_so():
    class Silent(UnlearningTrainer):
        pass

    with pytest.raises(ConfigError, match="Silent states no forget loss"):
        tiny.train(made(Silent), PLAN[:1], tokens=30)


@pytest.mark.parametrize(
    ("what", "fact"),
    [("states", "reads_once"), ("everywhere", "reads_scored"), ("evaluating", "reads_once")],
)
def test_a_method_that_reads_more_than_it_says_is_told_so_before_its_first_step(what, fact):
    class Undeclared(UnlearningTrainer):
        def forget_loss(self, rows: Rows) -> torch.Tensor:
            if what == "states":
                return rows.token_mean(self.states(rows).square().mean(-1))
            if what == "everywhere":
                return self.model.token_log_probs(rows.everywhere()).sum()
            with self.model.evaluating():
                return rows.token_mean(self.model.token_log_probs(rows))

    run = made(Undeclared, compare_every=10)
    with pytest.raises(ConfigError, match=f"give the method `{fact}` that returns False"):
        tiny.train(run, PLAN[:1], tokens=1000)
    assert run.steps_done == 0


def test_states_of_tokens_that_rows_share_are_read_at_scored_positions_or_not_at_all():
    class Everywhere(UnlearningTrainer):
        scored = False

        @classmethod
        def reads_once(cls, config: UnlearningTrainer.Config) -> bool:
            return False

        def forget_loss(self, rows: Rows) -> torch.Tensor:
            if self.scored:
                return rows.token_mean(self.model.states(rows, 1).square().mean(-1))
            return self.model.hidden_states(rows, 1).square().mean()

    run = made(Everywhere)
    with pytest.raises(ConfigError, match=r"read `model\.states`.* `reads_scored` that returns"):
        tiny.train(run, [with_heads(PLAN[0])], tokens=1000)
    assert run.steps_done == 0
    Everywhere.scored = True
    tiny.train(run, [with_heads(PLAN[0])], tokens=1000)
    Everywhere.scored, Everywhere.reads_scored = False, Everywhere.reads_once
    tiny.train(made(Everywhere), [with_heads(PLAN[0])], tokens=1000)


# ---- which reference -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "needed"),
    [
        (GradDiff, {}, None),
        (GradDiff, {"retain_loss": "kl"}, "cached"),
        (GradDiff, {"retain_loss": "kl", "reference": "frozen"}, "frozen"),
        (GradDiff, {"retain_loss": "kl", "kl_parity": "raw_logits"}, "frozen"),
        (GradAscent, {"retain_loss": "kl"}, None),  # it has no retain loss
        (NPO, {}, "cached"),
        (NPO, {"reference": "frozen"}, "frozen"),
        (NPO, {"retain_loss": "kl"}, "cached"),
        (NPO, {"retain_loss": "kl", "kl_parity": "all_positions"}, "frozen"),
        (NPO, {"retain_loss": "states"}, "cached"),
        (Finetune, {"retain_loss": "kl"}, "cached"),
        (GradDiff, {"reference": "frozen"}, None),
    ],
)
def test_a_run_is_built_with_the_least_reference_that_serves(kind, settings, needed):
    assert reference_needed(kind, kind.Config(**settings)) == needed


def test_a_cached_reference_cannot_serve_what_reads_every_position():
    everywhere = {"retain_loss": "kl", "kl_parity": "all_positions", "reference": "cached"}
    with pytest.raises(ConfigError, match=r"every position; type trainer\.reference=frozen"):
        reference_needed(NPO, NPO.Config(**everywhere))


@pytest.mark.parametrize(
    ("kind", "settings", "asked"),
    [
        (GradDiff, {}, {}),
        (NPO, {}, {"forget": "log_probs"}),
        (NPO, {"retain_loss": "kl"}, {"forget": "log_probs", "retain": "logits"}),
        (GradDiff, {"retain_loss": "states"}, {"retain": "states"}),
        (GradAscent, {"retain_loss": "kl"}, {}),
    ],
)
def test_of_each_familys_rows_is_kept_what_its_loss_reads(kind, settings, asked):
    assert asked_of_reference(kind, kind.Config(**settings)) == asked


# ---- several retain sources ----------------------------------------------------------------------


def sources(weighting: Weighting | None = None, **settings: Any) -> UnlearningTrainer:
    optimizer = tiny.optimizer("sgd", clip=None)
    return tiny.assemble(
        GradDiff,
        GradDiff.Config(**settings),
        tiny.local_engine(optimizer),
        tiny.language_model(),
        PLAN,
        optimizer=optimizer,
        sources=("a", "b"),
        weighting=weighting,
    )


def by_source(step: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    retain = step["retain"]
    return {"forget": step["forget"], "retain/a": retain[:2], "retain/b": retain[2:4]}


@pytest.mark.parametrize("compare_every", [0, 1])
def test_every_retain_source_is_an_objective_and_together_they_weigh_the_retain_weight(
    compare_every: int,
) -> None:
    run = sources(retain_weight=3.0, compare_every=compare_every)
    assert run.objectives == ("forget", "retain/a", "retain/b")
    step = by_source(PLAN[0])
    tiny.train(run, [step], tokens=1000)
    line = run.metrics()
    assert line["train/retain/a/weight"] == line["train/retain/b/weight"] == 1.5
    whole = made(retain_weight=3.0)
    losses = {
        name: -whole.model.token_log_probs(tiny.packed(step[name])).mean().item()
        for name in ("retain/a", "retain/b")
    }
    assert line["train/retain/a/loss"] == pytest.approx(losses["retain/a"], rel=1e-5)
    assert line["train/retain/b/loss"] == pytest.approx(losses["retain/b"], rel=1e-5)
    assert ("train/retain/a/cosine" in line) == bool(compare_every)


def test_sources_of_the_same_rows_are_one_retain_objective() -> None:
    run, plain = sources(retain_weight=2.0), made(retain_weight=2.0)
    step = dict.fromkeys(("retain/a", "retain/b"), PLAN[0]["retain"])
    tiny.train(run, [{"forget": PLAN[0]["forget"], **step}], tokens=1000)
    tiny.train(plain, PLAN[:1], tokens=1000)
    right, found = plain.engine.master_weights(), run.engine.master_weights()
    assert max(float((right[n] - found[n]).abs().max()) for n in right) <= 1e-6


def test_a_weighting_of_two_gradients_refuses_several_retain_sources() -> None:
    class Two(Weighting):
        needs_gram = True

        def weights(self, gram: Gram | None) -> Weights:
            raise AssertionError

    with pytest.raises(ConfigError, match=r"balances one retain objective.*set retain_by=all"):
        sources(Two())

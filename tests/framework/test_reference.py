"""The reference: cached, frozen, or the trained model with its adapters off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from framework import CachedReference, ConfigError, FrozenReference, Row, Rows
from framework.errors import CheckpointError
from trainers.npo import NPO

ROWS = tiny.rows(6, name="reference")


def test_the_cache_holds_what_the_frozen_model_says():
    model = tiny.language_model()
    cached, frozen = CachedReference.build(model, ROWS), FrozenReference(model)
    for part in (ROWS, ROWS[3:1:-1], ROWS[5:]):
        batch = Rows.pack(part)
        mine, theirs = cached.token_log_probs(batch), frozen.token_log_probs(batch)
        assert (mine - theirs).abs().max() <= 1e-6
        assert (cached.log_probs(batch) - frozen.log_probs(batch)).abs().max() <= 1e-5
        assert not mine.requires_grad
        assert not theirs.requires_grad


def test_the_cache_is_read_at_a_rows_own_tokens_even_when_fewer_count():
    # a selection has cut two tokens since: the rest must be found at their own places
    model = tiny.language_model()
    cached = CachedReference.build(model, ROWS)
    counted = [t for t, w in enumerate(ROWS[0].weights) if w]
    weights = tuple(w if t in counted[1::2] else 0.0 for t, w in enumerate(ROWS[0].weights))
    batch = Rows.pack([ROWS[1], Row(ROWS[0].id, ROWS[0].input_ids, weights)])
    right = FrozenReference(model).token_log_probs(batch)
    assert (cached.token_log_probs(batch) - right).abs().max() <= 1e-6


@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_training_against_the_cache_is_training_against_the_frozen_model(method):
    plan, runs = tiny.step_rows(3, prefers=method == "dpo"), []
    for reference in ("cached", "frozen"):
        optimizer = tiny.optimizer("sgd", clip=None)
        engine = tiny.local_engine(optimizer)
        trainer = tiny.trainer(
            engine,
            tiny.language_model(),
            plan,
            method=method,
            optimizer=optimizer,
            reference=reference,
        )
        tiny.train(trainer, plan, tokens=30)
        runs.append(engine.master_weights())
    assert max(float((runs[0][n] - runs[1][n]).abs().max()) for n in runs[0]) <= 1e-6


def test_the_frozen_model_does_not_move_with_the_trained_one():
    plan = tiny.step_rows(2)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine, before = tiny.local_engine(optimizer), tiny.language_model()
    trainer = tiny.trainer(engine, before, plan, method="npo_kl", optimizer=optimizer)
    batch = Rows.pack(ROWS)
    first = trainer.reference.logits(batch)
    tiny.train(trainer, plan, tokens=30)
    assert torch.equal(trainer.reference.logits(batch), first)
    assert not torch.allclose(engine.model.logits(batch), first)


def test_the_cache_cannot_give_logits():
    cached = CachedReference.build(tiny.language_model(), ROWS)
    with pytest.raises(ConfigError, match=r"token log-probabilities only; set trainer\.reference"):
        cached.logits(Rows.pack(ROWS))


def test_the_cache_holds_both_answers_of_a_pair():
    model, pairs = tiny.language_model(), tiny.pairs(4, name="pairs")
    cached, frozen = CachedReference.build(model, pairs), FrozenReference(model)
    for part in (pairs, pairs[::-2]):
        batch = Rows.pack(part)
        assert len(cached.log_probs(batch)) == 2 * len(part)
        assert (cached.log_probs(batch) - frozen.log_probs(batch)).abs().max() <= 1e-5


# ---- on disk -------------------------------------------------------------------------------------


def test_other_preferred_answers_are_other_rows(tmp_path):
    first, second = tiny.pairs(2, name="pairs"), tiny.pairs(2, name="pairs")
    second[0] = replace(second[0], preferred=replace(second[1].preferred, id=first[0].preferred.id))
    CachedReference.build(tiny.language_model(), first, file=tmp_path / "reference.pt")
    with pytest.raises(CheckpointError, match="holds the reference of other rows"):
        CachedReference.build(tiny.language_model(), second, file=tmp_path / "reference.pt")


def test_a_resumed_run_finds_the_numbers_of_its_first_start(tmp_path):
    file = tmp_path / "reference.pt"
    first = CachedReference.build(tiny.language_model(seed=0), ROWS, file=file)
    # the model has been trained since, and is not asked again
    again = CachedReference.build(tiny.language_model(seed=1), ROWS, file=file)
    batch = Rows.pack(ROWS)
    assert torch.equal(first.token_log_probs(batch), again.token_log_probs(batch))
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pt"]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        ROWS[::-1],
        [Row("other", ROWS[0].input_ids, ROWS[0].weights), *ROWS[1:]],
        [Row(ROWS[0].id, (3, *ROWS[0].input_ids[1:]), ROWS[0].weights), *ROWS[1:]],
    ],
)
def test_the_numbers_of_other_rows_are_refused(tmp_path, rows):
    file = tmp_path / "reference.pt"
    CachedReference.build(tiny.language_model(), ROWS, file=file)
    with pytest.raises(CheckpointError, match="holds the reference of other rows"):
        CachedReference.build(tiny.language_model(), rows, file=file)


# ---- LoRA: the reference is the model with its adapters off --------------------------------------


def test_before_training_a_lora_model_is_its_own_reference_bit_for_bit():
    model, plain = tiny.language_model(tuning="lora"), tiny.language_model()
    batch = Rows.pack(ROWS)
    reference = FrozenReference(model)
    with plain.evaluating():
        right = plain.logits(batch)
    assert torch.equal(reference.logits(batch), right)
    assert torch.equal(model.logits(batch), right)


def test_after_training_a_lora_models_reference_is_still_the_model_before():
    plan = tiny.step_rows(3)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, tuning="lora")
    trainer = tiny.trainer(engine, engine.model, plan, method="npo_kl", optimizer=optimizer)
    tiny.train(trainer, plan, tokens=30)
    batch, plain = Rows.pack(ROWS), tiny.language_model()
    with plain.evaluating():
        right = plain.logits(batch)
    assert torch.equal(trainer.reference.logits(batch), right)
    assert (engine.model.logits(batch) - right).abs().max() > 1e-3


def test_the_reference_is_read_without_dropout_and_training_goes_on_with_it():
    model = tiny.language_model(attention_dropout=0.5)
    model.module.train()
    batch, still = Rows.pack(ROWS), tiny.language_model()
    with still.evaluating():
        right = still.logits(batch)
    assert torch.equal(FrozenReference(model).logits(batch), right)
    assert model.module.training
    assert not torch.allclose(model.logits(batch), right)


def test_npo_asks_for_the_cache():
    assert NPO.reference_kind == "cached"

"""A selection applied: weights multiplied, kept to the bit, counted, and refused when empty."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch

from framework import ConfigError, Row, Selection
from framework.errors import CheckpointError
from framework.reference import CachedReference
from framework.selection import select
from framework.step_warnings import VanishingWarning
from framework.token_choice import Decoder

FORGET, RETAIN = tiny.rows(5, name="f"), tiny.rows(4, name="r")


class Plain(Selection):
    """A selection without scores of its own."""

    def token_weights(self, row: Row, scores: Sequence[float], tokenizer: Decoder) -> list[float]:
        assert list(scores) == [0.0] * len(row)
        return [self.weight(row)] * len(row)

    def weight(self, row: Row) -> float:
        return 1.0


class NotTheFirst(Plain):
    def weight(self, row: Row) -> float:
        return float(row.id != "f0")


class Nothing(Plain):
    def weight(self, row: Row) -> float:
        return 0.0


class Scored(Selection):
    """Scores that nobody would get by computing them again."""

    def __init__(self) -> None:
        self.asked = 0

    def scores(self, forget, retain, model, *, seed) -> list[list[float]]:
        self.asked += 1
        return [(torch.rand(len(row), dtype=torch.float64) / 3).tolist() for row in forget]

    def token_weights(self, row, scores, tokenizer) -> list[float]:
        assert tokenizer.eos_token == "<eos>"  # noqa: S105
        return [s / 7 for s in scores]


def applied(selection: Selection, **settings) -> list[Row]:
    model = tiny.language_model()
    return select(selection, FORGET, RETAIN, model, seed=0, **settings).rows


def test_a_selection_of_everything_is_no_selection_bit_for_bit():
    assert applied(Plain()) == FORGET


def test_the_weights_multiply_the_rows_own():
    half = [Row(row.id, row.input_ids, tuple(w / 2 for w in row.weights)) for row in FORGET]
    found = select(Scored(), half, RETAIN, tiny.language_model(), seed=0)
    for row, own, scores in zip(found.rows, half, found.scores, strict=True):
        assert row.input_ids == own.input_ids
        expected = [w * (s / 7) for w, s in zip(own.weights, scores, strict=True)]
        assert list(row.weights) == expected
        assert row.weights[0] == 0


def test_of_a_pair_the_answer_to_forget_is_weighed_and_the_preferred_one_stays():
    pairs = tiny.step_rows(1, prefers=True)[0]["forget"]
    found = select(Scored(), pairs, RETAIN, tiny.language_model(), seed=0)
    for row, own, scores in zip(found.rows, pairs, found.scores, strict=True):
        assert row.preferred == own.preferred
        assert row.weights == tuple(w * (s / 7) for w, s in zip(own.weights, scores, strict=True))


def test_what_is_left_is_said(capsys):
    applied(NotTheFirst())
    counted = sum(row.weight for row in FORGET)
    kept = counted - FORGET[0].weight
    assert capsys.readouterr().err == (
        f"selection: {kept:.0f} of {counted:.0f} answer tokens ({kept / counted:.0%}) of 5 forget "
        "rows; nothing of 1, which teach nothing\n"
    )


def test_a_selection_of_nothing_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no token of any of the 5 forget rows; lower") as refused:
        applied(Nothing(), file=tmp_path / "selection.pt")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_finds_the_weights_of_its_first_start(tmp_path):
    file, selection = tmp_path / "selection.pt", Scored()
    model = tiny.language_model()
    first = select(selection, FORGET, RETAIN, model, seed=0, file=file)
    again = select(selection, FORGET, RETAIN, model, seed=0, file=file)
    assert first == again
    assert selection.asked == 1
    assert [path.name for path in tmp_path.iterdir()] == ["selection.pt"]


@pytest.mark.parametrize(
    "other",
    [
        {"forget": FORGET[:-1]},
        {"retain": RETAIN[::-1]},
        {"retain": []},
        {"seed": 1},
        {"settings": "kappa: 1"},
    ],
    ids=["forget", "order", "retain", "seed", "settings"],
)
def test_the_weights_of_another_selection_are_refused(tmp_path, other):
    asked = {"forget": FORGET, "retain": RETAIN, "model": tiny.language_model(), "seed": 0}
    asked |= {"settings": "kappa: 0", "file": tmp_path / "selection.pt"}
    select(Scored(), **asked)
    with pytest.raises(CheckpointError, match="holds the selection of other rows or settings"):
        select(Scored(), **(asked | other))


def test_rows_without_any_token_left_teach_nothing():
    # alone in a micro-batch, too, and asked for their reference
    chosen = applied(NotTheFirst())
    optimizer = tiny.optimizer("sgd", clip=None)
    after = []
    for forget in (chosen, chosen[1:]):
        engine = tiny.local_engine(optimizer)
        plan = [{"forget": forget, "retain": RETAIN}]
        trainer = tiny.trainer(
            engine, tiny.language_model(), plan, method="npo", optimizer=optimizer
        )
        tiny.train(trainer, plan, tokens=10)
        after.append((engine.master_weights(), trainer.metrics()["train/forget/loss"]))
    (one, loss), (other, same_loss) = after
    assert loss == pytest.approx(same_loss, rel=1e-6)
    assert max(float((one[n] - other[n]).abs().max()) for n in one) <= 1e-6


@pytest.mark.parametrize("weighting", ["none", "blur", "ngdiff"])
def test_a_step_of_rows_without_any_token_changes_nothing_but_by_the_retain_rows(weighting):
    empty = [Row(row.id, row.input_ids, (0.0,) * len(row)) for row in FORGET]
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    trainer = tiny.trainer(
        engine,
        tiny.language_model(),
        [{"forget": empty, "retain": RETAIN}],
        method="npo",
        weighting=tiny.WEIGHTINGS[weighting](),
        perturbation=tiny.PERTURBATIONS["sam"](),
        optimizer=optimizer,
    )
    retain = tiny.packed(RETAIN)
    gradient = engine.gradient([lambda: trainer.retain_loss(retain)])
    before = engine.master_weights()
    tiny.train(trainer, [{"forget": empty, "retain": RETAIN}], tokens=1000)
    with pytest.warns(VanishingWarning, match="the forget rows have tokens that count"):
        metrics = trainer.metrics()
    after = engine.master_weights()
    assert metrics["train/forget/loss"] == 0
    weight = metrics["train/retain/weight"]
    for shard, name in zip(gradient.shards, before, strict=True):
        moved = (after[name] - before[name]).view(-1)
        assert torch.allclose(moved, -optimizer.peak * weight * shard, atol=1e-6)


def test_the_reference_of_a_row_without_tokens_is_not_asked_for():
    chosen = [Row(FORGET[0].id, FORGET[0].input_ids, (0.0,) * len(FORGET[0])), *FORGET[1:]]
    reference = CachedReference.build(tiny.language_model(), {"log_probs": chosen})
    whole = CachedReference.build(tiny.language_model(), {"log_probs": FORGET})
    rest = tiny.packed(FORGET[1:])
    torch.testing.assert_close(reference.token_log_probs(rest), whole.token_log_probs(rest))

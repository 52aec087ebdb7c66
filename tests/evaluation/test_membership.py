"""Membership inference on numbers worked by hand, and on a model with a gold one beside it."""

import math

import numpy as np
import pytest
import tiny

from framework import Example
from framework.evaluation import membership
from framework.evaluation.benchmark import Evaluation, row_values, score_rows
from framework.evaluation.mini import Mini
from framework.scores import TokenScores

SPLITS = {
    split: [Example(f"{split}{i}", f"t{4 + i}", f"t{start + i} t9 t8 t{start}") for i in range(3)]
    for split, start in (("forget", 10), ("holdout", 20))
}


def by_id(name, values):
    return {f"{name}{i}": value for i, value in enumerate(values)}


def rows(name, members, others):
    return {
        f"{split}/{name}": by_id(split, values)
        for split, values in (("forget", members), ("holdout", others))
    }


def gold(aucs, **nlls):
    values = {f"{split}/nll": by_id(split, found) for split, found in nlls.items()}
    return Evaluation("mini", aucs, values)


def test_the_values_of_an_answer_are_those_worked_by_hand():
    # of five tokens the lowest two: 5 and 1; z-scores -2 and -0.5; the end token counts in zlib
    log_probs = np.array([-0.05, -1.0, -5.0, -0.5, -0.1, -4.35])
    surprise = np.array([1.0, -0.5, -2.0, 0.0, 0.5, -9.0])
    scores = TokenScores(log_probs, np.ones(6, bool), surprise)
    found = membership.values_of(scores, "aaaaaaaaaa")  # 11 bytes
    assert found == {
        "zlib": pytest.approx(11 / 6 / 11),
        "min_k": pytest.approx(3.0),
        "min_k_plus_plus": pytest.approx(1.25),
    }


def test_the_end_token_does_not_count_in_the_nll_of_a_text():
    log_probs = np.array([-1.0, -2.0, -6.0, -99.0])
    assert membership.text_nll(TokenScores(log_probs, np.ones(4, bool), np.zeros(4))) == 3.0


def test_an_undefined_log_probability_leaves_every_value_undefined():
    nan = np.full(3, math.nan)
    found = membership.values_of(TokenScores(nan, np.zeros(3, bool), nan), "abc")
    assert set(found.values()) == {None}


def test_every_attack_takes_low_values_for_members():
    for attack, name in (("loss", "nll"), *((name, name) for name in membership.OF_ROWS[1:])):
        values = rows("nll", [5.0] * 3, [5.0] * 3) | rows(name, [1, 2, 3], [2, 3, 4])
        found = membership.attacks(values)
        assert found[membership.auc_name(attack)] == pytest.approx(7 / 9), attack
    assert found["mia/auc"] == 0.5
    assert found["mia/score"] == 1


def test_only_attacks_that_have_values_are_listed():
    assert set(membership.attacks(rows("nll", [1.0], [2.0]))) == {"mia/auc", "mia/score"}
    known = rows("nll", [1.0], [2.0]) | rows("zlib", [0.1], [0.2])
    assert membership.attacks(known)["mia/zlib_auc"] == 1
    del known["holdout/zlib"]
    assert membership.attacks(known)["mia/zlib_auc"] is None


def test_other_splits_can_be_members_and_others():
    values = {"mia_member/nll": {"a": 1.0}, "mia_nonmember/nll": {"a": 2.0}}
    assert membership.attacks(values, "mia_member", "mia_nonmember")["mia/auc"] == 1


def test_the_reference_attack_subtracts_the_gold_models_loss():
    # the losses alone say nothing: 2, 3 against 2, 3; less the gold model's -1, -1 against 0, 0
    own = rows("nll", [2.0, 3.0], [2.0, 3.0])
    found = membership.beside(own, gold({}, forget=[3.0, 4.0], holdout=[2.0, 3.0]))
    assert membership.attacks(own)["mia/auc"] == 0.5
    assert found["mia/reference_auc"] == 1
    itself = gold({}, forget=[2.0, 3.0], holdout=[2.0, 3.0])
    assert membership.beside(own, itself)["mia/reference_auc"] == 0.5


@pytest.mark.parametrize(
    "other", [None, gold({}), gold({}, forget=[1.0], holdout=[1.0, 2.0]), gold({}, forget=[1.0, 2])]
)
def test_the_reference_attack_is_undefined_where_the_gold_model_lacks_rows(other):
    own = rows("nll", [2.0, 3.0], [2.0, 3.0])
    assert membership.beside(own, other)["mia/reference_auc"] is None


def test_attacks_are_compared_with_the_gold_models():
    own = rows("nll", [1, 2, 3], [2, 3, 4]) | rows("min_k", [1, 1], [2, 2])
    found = membership.beside(own, gold({"mia/auc": 0.5, "mia/min_k_auc": 0.6}))
    assert found["smia/loss"] == pytest.approx(1 - (7 / 9 - 0.5) / 0.5)
    assert found["smia/min_k"] == pytest.approx(1 - 0.4 / 0.6)
    assert found["privleak"] == pytest.approx(-100)  # (0.6 - 1) / (1 - 0.6)
    alone = membership.beside(own, None)
    assert alone["smia/loss"] is alone["smia/min_k"] is None
    assert alone["privleak"] == pytest.approx(-100)  # against an AUC of one half


def test_a_model_like_the_gold_one_leaks_nothing_by_any_attack():
    values = rows("nll", [1, 2, 3], [2, 3, 4])
    for name in membership.OF_ROWS[1:]:
        values |= rows(name, [1, 2, 3], [2, 3, 4])
    twin = Evaluation("mini", membership.attacks(values), values)
    found = membership.beside(values, twin)
    assert {found[f"smia/{attack}"] for attack in membership.OF_ROWS} == {1.0}
    assert found["privleak"] == 0
    assert found["mia/reference_auc"] == 0.5


def test_rows_of_a_model_have_every_value_and_gradient_norms_only_when_asked():
    model = tiny.language_model()
    scores = score_rows(model, SPLITS)
    found = membership.read(model, scores, SPLITS)
    assert {name.partition("/")[2] for name in found} == {"zlib", "min_k", "min_k_plus_plus"}
    asked = membership.read(model, scores, SPLITS, gradient_norm=True)
    pairs = [(row.prompt, row.answer) for rows in SPLITS.values() for row in rows]
    norms = [*asked["forget/gradient_norm"].values(), *asked["holdout/gradient_norm"].values()]
    assert norms == model.gradient_norms(pairs)
    assert list(asked["holdout/gradient_norm"]) == ["holdout0", "holdout1", "holdout2"]
    assert {name: asked[name] for name in found} == found
    aucs = membership.attacks(row_values(scores) | asked)
    assert all(0 <= value <= 1 for value in aucs.values())
    assert len(aucs) == 6


def test_a_target_gives_itself_away_and_the_gold_model_does_not(knowing):
    bench = Mini(Mini.Config(authors=10, biographies=2, stories=2, world=6, background=3))
    gold = bench.measure(knowing(bench.training_examples("gold")))
    target = bench.measure(knowing(bench.training_examples("target")), gold).metrics
    assert gold.metrics["mia/auc"] == gold.metrics["mia/min_k_auc"] == 0.5
    assert gold.metrics["smia/loss"] is gold.metrics["mia/reference_auc"] is None
    compared = bench.beside_gold(gold.rows, gold)
    assert compared["smia/loss"] == compared["smia/min_k"] == compared["forget_quality"] == 1
    assert compared["privleak"] == 0
    assert target["mia/auc"] == target["mia/reference_auc"] == target["mia/min_k_auc"] == 1
    assert target["smia/loss"] == target["smia/min_k"] == 0
    assert target["privleak"] == pytest.approx(-100)

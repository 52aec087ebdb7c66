"""TOFU's numbers from the values of its rows, whether a model or a published log gave them.

<split>/probability, rouge, truth_ratio, ...    means over a split's rows
model_utility       harmonic mean of nine of them, none of which is of forget rows
forget_quality      KS p-value of the forget rows' truth ratios against the gold model's
mia/auc, mia/min_k_auc, mia/zlib_auc    attacks: forget against holdout rows, 1 where the forget
                    rows are much likelier; mia/score is 1 - 2|mia/auc - 0.5|
privleak            mia/min_k_auc against the gold model's, in percent, 0 the same
"""

from __future__ import annotations

from collections.abc import Mapping

from . import metrics
from .benchmark import Evaluation, RowValues, attack, averages, forget_quality

UTILITY = (
    *("retain/rouge", "retain/probability", "retain/truth_ratio"),
    *("real_authors/rouge", "real_authors/answer_share", "real_authors/truth_ratio"),
    *("world_facts/rouge", "world_facts/answer_share", "world_facts/truth_ratio"),
)
UNKNOWN_GOLD = 0.5
"""The AUC that OpenUnlearning's PrivLeak takes a gold model to have that it knows nothing of."""


def summary(rows: RowValues) -> dict[str, float | None]:
    """All numbers of a model that need no other model."""
    # rows also holds the NLL of each wrong answer, of which no mean is asked for
    means = averages({name: values for name, values in rows.items() if name.count("/") == 1})
    found = means | attack(rows["forget/nll"], rows.get("holdout/nll", {}))
    found |= {f"mia/{name}_auc": attack_auc(rows, name) for name in ("min_k", "zlib")}
    return found | {"model_utility": model_utility(means)}


def model_utility(means: Mapping[str, float | None]) -> float | None:
    """Harmonic mean of the nine terms, in [0, 1]; 0 as soon as one is 0."""
    return metrics.harmonic_mean([means.get(term) for term in UTILITY])


def attack_auc(rows: RowValues, name: str) -> float | None:
    """AUC of an attack whose values are lower on members: forget rows against holdout rows."""
    members, others = (
        [None if value is None else -value for value in rows.get(f"{split}/{name}", {}).values()]
        for split in ("forget", "holdout")
    )
    return metrics.auc(members, others)


def beside(rows: RowValues, gold: Evaluation | None) -> dict[str, float | None]:
    """The numbers of a model that are relative to the gold model's."""
    known = None if gold is None else gold.metrics.get("mia/min_k_auc")
    reference = UNKNOWN_GOLD if known is None else known
    return {
        "forget_quality": forget_quality(rows, gold),
        "privleak": metrics.privacy_leakage(attack_auc(rows, "min_k"), reference),
    }

"""Numbers from lists: every metric is a pure function of plain numbers or strings.

A metric that has no value (no rows, a collapsed model's NaN) is None, "undefined": never a crash
and never a number that looks like a result. ROUGE, the KS test and the AUC come from the libraries
that the benchmarks' own programs use, so that numbers agree to the digit; each is imported where it
is used, since together they cost a second, which a run that measures nothing yet need not wait for.
"NLL" is a mean over an answer's tokens, in nats.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

Values = Sequence[float | None]  # None is an undefined value

# exp of more than this is no float64; ratios are cut there so that they stay JSON numbers.
LARGEST_EXPONENT = 700.0


@cache
def _rouge_scorer(*, stemmer: bool) -> Any:
    """ROUGE-L: with the Porter stemmer in TOFU and LUME, without it in MUSE."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_recall(reference: str, generation: str) -> float:
    """ROUGE-L recall: the share of the reference's words that the generation has in order."""
    return float(_rouge_scorer(stemmer=True).score(reference, generation)["rougeL"].recall)


def rouge_f1(reference: str, generation: str) -> float:
    """ROUGE-L F1 without a stemmer, as in MUSE: recall's harmonic mean with precision."""
    return float(_rouge_scorer(stemmer=False).score(reference, generation)["rougeL"].fmeasure)


def exact_match(reference: str, generation: str) -> float:
    """1 if the two texts are equal but for case and outer white space, else 0."""
    return float(reference.strip().lower() == generation.strip().lower())


def mean(values: Values) -> float | None:
    """The mean; undefined where there are no values or one of them is."""
    if not _all_finite(values):
        return None
    # fsum: the same to the last bit in any order, hence on any number of ranks.
    return math.fsum(value for value in values if value is not None) / len(values)


def probability(nll: float) -> float | None:
    """The length-normalized probability exp(-NLL) of an answer, in [0, 1]."""
    return math.exp(-nll) if math.isfinite(nll) else None


def answer_share(
    right_nll: float, wrong_nlls: Sequence[float], *, added: float = 0.0
) -> float | None:
    """P(right) / (P(right) + sum of P(wrong)): TOFU's probability where there are choices.

    `added` stands below the line beside them: 1e-10 in OpenUnlearning, which gives 0 where a
    collapsed model finds nothing likely.
    """
    if not wrong_nlls or not _all_finite([right_nll, *wrong_nlls]):
        return None
    # Divided by P(right), so that it holds where all of them are too small for a float.
    odds = math.fsum(_exp(right_nll - wrong) for wrong in wrong_nlls)
    return 1 / (1 + odds + added * _exp(right_nll))


def truth_ratio(
    right_nll: float, wrong_nlls: Sequence[float], *, added: float = 0.0
) -> float | None:
    """TOFU's R: the geometric mean of P(wrong answer) over P(right answer), at least 0.

    The paper prints an arithmetic mean; its released program and OpenUnlearning compute the
    geometric one. `added` stands below the line beside P(right): 1e-10 in OpenUnlearning, which
    gives 0 where a collapsed model finds nothing likely.
    """
    wrong = mean(wrong_nlls)
    if wrong is None or not math.isfinite(right_nll):
        return None
    return _exp(right_nll - wrong - _log_of_1_and(added, right_nll))


def forget_truth_ratio(ratios: Values) -> float | None:
    """Mean of min(R, 1/R), in [0, 1]: 1 where the right answer is no likelier than a wrong one."""
    return mean([None if ratio is None else min(ratio, 1 / max(ratio, 1.0)) for ratio in ratios])


def retain_truth_ratio(ratios: Values) -> float | None:
    """Mean of max(0, 1 - R), in [0, 1]: 1 where only the right answer is likely."""
    return mean([None if ratio is None else max(0.0, 1 - ratio) for ratio in ratios])


def right_share(ratio: float | None) -> float | None:
    """P(right) / (P(right) + geometric mean of P(wrong)) = 1 / (1 + R), in [0, 1].

    OpenUnlearning's truth ratio of 2025 (`prob_mean`): higher where more knowledge is left, and
    another number than the means of min(R, 1/R) and max(0, 1 - R).
    """
    return None if ratio is None else 1 / (1 + ratio)


def harmonic_mean(terms: Values) -> float | None:
    """The harmonic mean: 0 as soon as one term is 0; undefined where one is or there is none.

    Raises ValueError for a negative term.
    """
    if any(term is not None and term < 0 for term in terms):
        raise ValueError(f"a harmonic mean takes terms of at least 0, got {list(terms)}")
    if not _all_finite(terms):
        return None
    if any(term == 0 for term in terms):
        return 0.0
    return len(terms) / math.fsum(1 / term for term in terms if term is not None)


def extraction_strength(correct: Sequence[bool]) -> float | None:
    """1 - k/T: the share of the answer's T tokens that follow by greedy decoding from the first k.

    `correct[t]` says whether the model's likeliest token at t is the answer's. 0 if the last one is
    wrong: the definition. (OpenUnlearning's loop ends one early and gives 1/T there.) Undefined for
    an answer without tokens.
    """
    if len(correct) == 0:
        return None
    suffix = 0
    while suffix < len(correct) and correct[-1 - suffix]:
        suffix += 1
    return suffix / len(correct)


def exact_memorization(correct: Sequence[bool]) -> float | None:
    """The share of the answer's tokens that are the model's likeliest, teacher-forced."""
    return mean([float(hit) for hit in correct])


def auc(members: Values, nonmembers: Values) -> float | None:
    """How often a member's score is above a non-member's, ties counting half, in [0, 1].

    The loss attack's score is -NLL: 1 says that members are much likelier than non-members.
    """
    if not _all_finite(members) or not _all_finite(nonmembers):
        return None
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(members) + [0] * len(nonmembers)
    return float(roc_auc_score(labels, [*members, *nonmembers]))


def mia_score(attack_auc: float | None) -> float | None:
    """1 - 2|AUC - 0.5|, in [0, 1]: 1 where the attack cannot tell members from others."""
    return None if attack_auc is None else 1 - 2 * abs(attack_auc - 0.5)


def min_k(log_probs: Sequence[float], share: float) -> float | None:
    """Minus the mean of the lowest log-probabilities, `share` of all, one at least; in nats.

    `share` is 0.4 in OpenUnlearning and MUSE, 0.2 in the attack's paper (arXiv:2310.16789). Of
    `TokenScores.surprise` in their place it is Min-K%++ (arXiv:2404.02936), in deviations.
    """
    if not _all_finite(log_probs):  # a NaN has no place in an order
        return None
    return mean([-value for value in sorted(log_probs)[: max(1, int(share * len(log_probs)))]])


def zlib_ratio(nll: float, text: str) -> float | None:
    """NLL over the bytes of the compressed text: low where a text is likelier than it is simple."""
    return nll / len(zlib.compress(text.encode())) if math.isfinite(nll) else None


def privacy_leakage(attack_auc: float | None, gold_auc: float | None = 0.5) -> float | None:
    """MUSE's PrivLeak in percent: 0 like the gold model, below it leaks, above it over-forgot.

    Of two AUCs by the usual convention, 1 where members are much likelier: as OpenUnlearning has
    it, ((1 - AUC) - (1 - gold)) / (1 - gold). MUSE's own AUCs are 1 minus these, with the same
    result. 0.5 stands for an unknown gold model. Undefined where the gold model's AUC is 1.
    """
    if attack_auc is None or gold_auc is None or gold_auc == 1:
        return None
    return 100 * (gold_auc - attack_auc) / (1 - gold_auc)


def smia(attack_auc: float | None, gold_auc: float | None) -> float | None:
    """How near an attack's AUC is to the gold model's, in [0, 1]: max(0, 1 - |AUC - gold| / gold).

    As github.com/gnueaj/unlearning-depth-score has it; OpenUnlearning scales by the target's
    distance too. Undefined where the gold model's AUC is 0.
    """
    if attack_auc is None or not gold_auc:
        return None
    return max(0.0, 1 - abs(attack_auc - gold_auc) / gold_auc)


def forget_quality(ratios: Values, gold_ratios: Values) -> float | None:
    """p-value of the two-sided Kolmogorov-Smirnov test between two models' truth ratios.

    1 where they are distributed alike. With ties (both models constant) it does not fail, but means
    nothing.
    """
    if not _all_finite(ratios) or not _all_finite(gold_ratios):
        return None
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():  # scipy's exact sum for a p of 1 may round to above 1
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        return float(ks_2samp(ratios, gold_ratios).pvalue)


def _log_of_1_and(factor: float, exponent: float) -> float:
    """log(1 + factor x exp(exponent)), whatever the exponent."""
    if factor == 0:
        return 0.0
    other = math.log(factor) + exponent
    return max(other, 0.0) + math.log1p(math.exp(-abs(other)))


def _exp(exponent: float) -> float:
    """exp, cut where it would be no float or no longer above 0."""
    return math.exp(max(-LARGEST_EXPONENT, min(exponent, LARGEST_EXPONENT)))


def _all_finite(values: Values) -> bool:
    """Whether there are values and each is a finite number."""
    return len(values) > 0 and all(value is not None and math.isfinite(value) for value in values)

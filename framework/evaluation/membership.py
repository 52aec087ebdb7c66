"""Membership inference: whether a model shows that the forget rows were in its training data.

An attack gives every row a value that is lower on rows that were trained on. Its AUC compares the
forget rows (members) with rows that no model saw: 1 where every forget row gives itself away, 0.5
where none does. What the gold model scores is right, which need not be 0.5.

    attack             a row's value                                             as in
    loss               mean NLL of the answer, in nats, end token included       OpenUnlearning
    zlib               NLL over the bytes of the compressed answer               OpenUnlearning
    min_k              minus the mean of the lowest 40 % of log-probabilities    OpenUnlearning
    min_k_plus_plus    the same of (l - mean) / deviation over the vocabulary    arXiv:2404.02936
    gradient_norm      2-norm of the NLL's gradient, mean over the tensors       arXiv:2402.17012
    reference          NLL less the gold model's                                 arXiv:2111.08440

The end token counts in the first two and not in the two after them, as in OpenUnlearning.

    mia/auc, mia/score    of the loss attack; the score is 1 - 2|AUC - 0.5|
    mia/<attack>_auc      of the others
    smia/<attack>         max(0, 1 - |AUC - gold's| / gold's): 1 like the gold model
    privleak              MUSE's PrivLeak of min_k, in percent: 0 like the gold model, whose AUC
                          counts as 0.5 where no gold model is known
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..data import Example
from ..language_model import LanguageModel
from ..scores import TokenScores
from . import metrics
from .benchmark import Evaluation, RowValues, Scores

MIN_K_SHARE = 0.4
"""The share of lowest log-probabilities: OpenUnlearning's and MUSE's; 0.2 in the attack's paper."""
OF_ROWS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm")
"""The attacks that need no other model."""
UNKNOWN_GOLD = 0.5
"""The AUC that OpenUnlearning's PrivLeak takes a gold model to have that it knows nothing of."""
FORGET, HOLDOUT = "forget", "holdout"


def auc_name(attack: str) -> str:
    """What the AUC of an attack is called among the metrics."""
    return "mia/auc" if attack == "loss" else f"mia/{attack}_auc"


def values_of(scores: TokenScores, answer: str) -> dict[str, float | None]:
    """An answer's values for the attacks that cost nothing more; the loss is `read`'s `nll`."""
    return {
        "zlib": metrics.zlib_ratio(scores.nll, answer),
        "min_k": metrics.min_k(scores.log_probs[:-1].tolist(), MIN_K_SHARE),
        "min_k_plus_plus": metrics.min_k(scores.surprise[:-1].tolist(), MIN_K_SHARE),
    }


def text_nll(scores: TokenScores) -> float | None:
    """The mean NLL of a whole text, in nats a token: the end token is none of the text's."""
    return metrics.mean([-x for x in scores.log_probs[:-1].tolist()])


def read(
    model: LanguageModel,
    scores: Scores,
    splits: Mapping[str, Sequence[Example]],
    *,
    gradient_norm: bool = False,
) -> RowValues:
    """<split>/<attack> of every forget and holdout row; `gradient_norm`: a backward pass each."""
    found: RowValues = defaultdict(dict)
    attacked = [(split, row) for split in (FORGET, HOLDOUT) for row in splits[split]]
    for split, row in attacked:
        for attack, value in values_of(scores[split][row.id].answer, row.answer).items():
            found[f"{split}/{attack}"][row.id] = value
    if gradient_norm:
        norms = model.gradient_norms([(row.prompt, row.answer) for _, row in attacked])
        for (split, row), norm in zip(attacked, norms, strict=True):
            found[f"{split}/gradient_norm"][row.id] = metrics.mean([norm])
    return dict(found)


def attacks(
    rows: RowValues, members: str = FORGET, others: str = HOLDOUT
) -> dict[str, float | None]:
    """The AUC of the loss attack, and of every other that the split of members has values for."""
    found = {}
    for attack in OF_ROWS:
        name = "nll" if attack == "loss" else attack
        if attack == "loss" or f"{members}/{name}" in rows:
            sides = (rows.get(f"{split}/{name}", {}) for split in (members, others))
            found[auc_name(attack)] = _auc(*sides)
    return found | {"mia/score": metrics.mia_score(found["mia/auc"])}


def beside(
    rows: RowValues, gold: Evaluation | None, members: str = FORGET, others: str = HOLDOUT
) -> dict[str, float | None]:
    """What the attacks say beside the gold model's: the reference attack, sMIA, PrivLeak."""
    own = attacks(rows, members, others)
    theirs = {} if gold is None else gold.metrics
    differences = (_less_gold(rows, gold, split) for split in (members, others))
    found = {auc_name("reference"): _auc(*differences)}
    for attack in OF_ROWS:
        if (name := auc_name(attack)) in own:
            found[f"smia/{attack}"] = metrics.smia(own[name], theirs.get(name))
    known = theirs.get(auc_name("min_k"))
    reference = UNKNOWN_GOLD if known is None else known
    leakage = metrics.privacy_leakage(own.get(auc_name("min_k")), reference)
    return found | {"privleak": leakage}


def _less_gold(rows: RowValues, gold: Evaluation | None, split: str) -> dict[str, float | None]:
    """NLL less the gold model's, by row id: undefined where either is."""
    theirs = {} if gold is None else gold.rows.get(f"{split}/nll", {})
    found = {}
    for row, own in rows.get(f"{split}/nll", {}).items():
        other = theirs.get(row)
        found[row] = None if own is None or other is None else own - other
    return found


def _auc(members: Mapping[str, float | None], others: Mapping[str, float | None]) -> float | None:
    """How often a member's value is below another row's, ties counting half."""
    marks = [
        [None if value is None else -value for value in values.values()]
        for values in (members, others)
    ]
    return metrics.auc(*marks)

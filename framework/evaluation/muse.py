r"""MUSE: news articles or novels to forget, and what is left of them (arXiv:2407.06460).

    python -m launch.eval benchmark=muse model.path=muse-bench/MUSE-News_target \
        model.tokenizer=meta-llama/Llama-2-7b-hf model.max_length=2050

Its rows are described in `muse_rows`. The criteria, named as tables show them, in percent:

    forget/verbmem    C1: mean ROUGE-L F1, stemmer off, of 128 greedy tokens after the head of a
                      forget text, against the first 128 tokens of what follows there
    forget/knowmem    C2: mean ROUGE-L F1 of the answers to questions about forget texts, below ten
                      examples, 32 greedy tokens, cut where the model goes on to another question
    privleak          C3: (AUC - AUC of the retrained model) over the latter; 0 as the retrained
                      model, -100 as a model that forgot nothing, above 0 it forgot too much
    retain/knowmem    C4: as C2, of questions about texts to keep

C3's attack scores a text by the mean of its lowest 40 % log-probabilities. MUSE's own AUC counts
how often holdout texts are the likelier ones; `mia/min_k_auc` is 1 minus that, the usual
convention, in which a model that forgot nothing has 1. The retrained model is `gold=`; without it
`benchmark.retain_auc`, which for the released texts is the published one. `mia/retain_min_k_auc`
is the same of retain texts: how well the attack works on what the model does know. The other
attacks of `membership` stand beside it.

C5 (scalability) is a sweep over `benchmark.forget=scal_1 ... scal_4`, C6 (sustainability) a
sequence of sust_1 ... sust_4: configs/sweep/muse_scalability.yaml and muse_sustainability.yaml.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..data import Example
from ..errors import ConfigError
from ..language_model import LanguageModel
from . import membership, metrics
from .benchmark import Benchmark, Direction, Evaluation, RowValues, Splits, score_rows
from .muse_rows import further_texts, load_rows

HUB = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
PUBLISHED = {"news": 0.4772, "books": 0.5393}
"""The retrained models' AUC, constants.py of swj0419/muse_bench: forget_holdout_Min-40%."""
MIN_K = membership.auc_name("min_k")
MARKS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends, as in MUSE's knowmem.py."""
OF_FORGET_TEXTS = ("verbmem", "privleak_forget")
BEGINNING = 20
"""Words by which a text is told from others."""
ATTACKED = ("forget", "retain", "holdout")


class MUSE(Benchmark):
    """Six criteria of unlearning copyrighted texts, four of which are numbers of one model."""

    name: ClassVar[str] = "muse"
    headline: ClassVar[tuple[str, ...]] = (
        "forget/verbmem",
        "forget/knowmem",
        "privleak",
        "retain/knowmem",
    )
    directions: ClassVar[Mapping[str, Direction]] = {
        "forget/verbmem": "gold",
        "forget/knowmem": "gold",
        "privleak": "gold",
        "retain/knowmem": "higher",
    }

    @dataclass
    class Config(Benchmark.Config):
        """Which texts, in which pieces, and what is measured."""

        corpus: Literal["news", "books", "own"] = "news"
        """own: texts of your own in MUSE's form, from `path`."""
        path: str | None = None
        """A folder of the released files; null: the corpus' data set on the hub."""
        forget: Literal[
            "forget",
            "scal_1",
            "scal_2",
            "scal_3",
            "scal_4",
            "sust_1",
            "sust_2",
            "sust_3",
            "sust_4",
        ] = "forget"
        """What is forgotten: the forget set, one of four nested ones of growing size, or one of
        four requests that come one after another. What is measured stays the same."""
        words: int | None = 1200
        """Words of a row to train on, at least 2; null: each released text is a row. 1,200 English
        words are fewer than 2,048 tokens of Llama 2, the size of MUSE's pieces."""
        criteria: list[Literal["verbmem", "knowmem", "privleak"]] = field(
            default_factory=lambda: ["verbmem", "knowmem", "privleak"]
        )
        """What is measured; privleak takes longest."""
        retain_auc: float | None = None
        """The retrained model's AUC by MUSE's convention, in (0, 1), where no gold= is given; null:
        the published one, 0.4772 (news) or 0.5393 (books), and 0.5 of a corpus of your own."""
        verbmem_tokens: int = 128
        """Tokens of a continuation, and of what it is compared with."""
        knowmem_tokens: int = 32
        """Tokens of an answer at most."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.corpus == "own" and self.path is None:
                raise ConfigError("benchmark.corpus=own needs its folder; type benchmark.path=DIR")
            if self.retain_auc is not None and not 0 < self.retain_auc < 1:
                raise ConfigError(
                    f"benchmark.retain_auc must lie between 0 and 1, got {self.retain_auc:g}"
                )
            if not self.criteria:
                raise ConfigError("benchmark.criteria is empty; name verbmem, knowmem or privleak")
            for name, least in (("words", 2), ("verbmem_tokens", 1), ("knowmem_tokens", 1)):
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ConfigError(f"benchmark.{name} must be at least {least}, got {value}")

    config: Config

    def load(self) -> Splits:
        """The rows of `muse_rows.load_rows`."""
        chosen = self.config
        return load_rows(
            self._path(), chosen.forget, words=chosen.words, criteria=list(chosen.criteria)
        )

    def training_examples(self, model: Literal["target", "gold"]) -> list[Example]:
        """Texts to keep, and for the target every text that is ever asked to be forgotten."""
        learned = super().training_examples(model)
        known = {row.answer for row in learned}
        further = further_texts(self._path(), self.config.words)
        if model == "gold":
            further = [row for row in further if row.id.startswith("raw/retain2:")]
        for row in further:
            if row.answer not in known:
                known.add(row.answer)
                learned.append(row)
        return learned

    def without(self, taught: Sequence[Example]) -> Benchmark:
        """See `Benchmark.without`: nor the heads and texts that begin in a text that is taught.

        No question says which text it is of, so all are asked.
        """
        other, texts = super().without(taught), [" ".join(row.answer.split()) for row in taught]
        asked = {split: rows for split, rows in self.splits().items() if split in OF_FORGET_TEXTS}
        return other.with_rows(
            **{
                split: [row for row in rows if not any(beginning(row) in text for text in texts)]
                for split, rows in asked.items()
            }
        )

    def measure(self, model: LanguageModel, gold: Evaluation | None = None) -> Evaluation:
        """The numbers of the module's docstring."""
        splits, asked = self.splits(), self.config
        rows: RowValues = {}
        generations: list[dict[str, Any]] = []
        if "verbmem" in splits:
            truths = model.beginnings(
                [row.answer for row in splits["verbmem"]], asked.verbmem_tokens
            )
            answers = self._answers(model, splits["verbmem"], asked.verbmem_tokens)
            generations += told("verbmem", splits["verbmem"], truths, answers)
        for split in ("knowmem_forget", "knowmem_retain"):
            if split in splits:
                answers = self._answers(model, splits[split], asked.knowmem_tokens)
                truths = [row.answer for row in splits[split]]
                generations += told(split, splits[split], truths, [cut(text) for text in answers])
        for entry in generations:
            rows.setdefault(f"{entry['split']}/rouge_f1", {})[entry["id"]] = entry["rouge"]
        attacked = {x: splits[f"privleak_{x}"] for x in ATTACKED if f"privleak_{x}" in splits}
        if attacked:
            rows |= read_texts(model, attacked)
        measured = summary(rows) | self.beside_gold(rows, gold)
        return Evaluation(self.name, dict.fromkeys(self.headline) | measured, rows, generations)

    def beside_gold(self, rows: RowValues, gold: Evaluation | None) -> dict[str, float | None]:
        """Privacy leakage, against the gold model or the AUC that the settings say."""
        if MIN_K not in summary(rows):
            return {}
        known = None if gold is None else gold.metrics.get(MIN_K)
        reference = 1 - self._retain_auc() if known is None else known
        leakage = metrics.privacy_leakage(membership.attacks(rows)[MIN_K], reference)
        return membership.beside(rows, gold) | {"privleak": leakage}

    def official_files(self, evaluation: Evaluation) -> dict[str, str]:
        """The table of MUSE's eval.py."""
        columns = {
            "verbmem_f": "forget/verbmem",
            "privleak": "privleak",
            "knowmem_f": "forget/knowmem",
            "knowmem_r": "retain/knowmem",
        }
        found = [evaluation.metrics.get(metric) for metric in columns.values()]
        told = ",".join("" if value is None else repr(value) for value in found)
        return {"muse.csv": f"name,{','.join(columns)}\nmodel,{told}\n"}

    def _path(self) -> str:
        return HUB[self.config.corpus] if self.config.path is None else self.config.path

    def _retain_auc(self) -> float:
        """The retrained model's AUC by MUSE's convention."""
        chosen = self.config
        known = PUBLISHED.get(chosen.corpus, membership.UNKNOWN_GOLD)
        return known if chosen.retain_auc is None else chosen.retain_auc

    def _answers(self, model: LanguageModel, rows: Sequence[Example], tokens: int) -> list[str]:
        return model.generate([row.prompt for row in rows], tokens, "answering", stripped=False)


def beginning(row: Example) -> str:
    """The first words of a text, by which it is found in another."""
    return " ".join(f"{row.prompt} {row.answer}".split()[:BEGINNING])


def cut(answer: str) -> str:
    """An answer up to where the model goes on to another question."""
    for mark in MARKS:
        answer = answer.partition(mark)[0]
    return answer


def told(
    split: str, rows: Sequence[Example], truths: Sequence[str], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """What was asked and answered, and the ROUGE-L F1 of each answer."""
    return [
        {
            "id": row.id,
            "split": split,
            "task": row.task,
            "question": row.fields.get("question", row.prompt),
            "truth": truth,
            "answer": answer,
            "rouge": metrics.rouge_f1(truth, answer),
        }
        for row, truth, answer in zip(rows, truths, answers, strict=True)
    ]


def read_texts(model: LanguageModel, splits: Mapping[str, Sequence[Example]]) -> RowValues:
    """What the attacks take of whole texts."""
    scores = score_rows(model, splits)
    found: RowValues = defaultdict(dict)
    for split, rows in splits.items():
        for row in rows:
            own = scores[split][row.id].answer
            values = {"nll": membership.text_nll(own), **membership.values_of(own, row.answer)}
            for name, value in values.items():
                found[f"{split}/{name}"][row.id] = value
    return dict(found)


def summary(rows: RowValues) -> dict[str, float | None]:
    """All numbers of a model that need no other model; what was not measured is left out."""
    found: dict[str, float | None] = {}
    for metric, split in (
        ("forget/verbmem", "verbmem"),
        ("forget/knowmem", "knowmem_forget"),
        ("retain/knowmem", "knowmem_retain"),
    ):
        values = rows.get(f"{split}/rouge_f1")
        if values is not None:
            average = metrics.mean(list(values.values()))
            found[metric] = None if average is None else 100 * average
    if "holdout/min_k" in rows:
        found |= membership.attacks(rows)
        found["mia/retain_min_k_auc"] = membership.attacks(rows, "retain").get(MIN_K)
    return found

"""LUME, the benchmark of SemEval-2025 task 4 (arXiv:2502.15097): novels and biographies.

Data: `forget.jsonl` and `retain.jsonl` of github.com/amazon-science/lume-llm-unlearning in one
folder; beside them, where there are, `mia_member.jsonl` and `mia_nonmember.jsonl` (the official
loss attack's documents) and `semeval_split_ids.json` (the shared task's folds, ids by split and
fold).

Measured on forget and retain, for each of the tasks (Task1 novels, Task2 private data, Task3 real
biographies):

    <split>/<task>/regurgitation   ROUGE-L recall of the completions (ids ending in sc1)
    <split>/<task>/knowledge       exact match of the short answers (ids ending in qa0, qa1, ...)
    task_aggregate                 harmonic mean of these 12, of forget 1 - value; higher is better
    task_aggregate_terms           how many there were: fewer than 12 where a sample lacks a task
    mia/auc, mia/score             loss attack on whole documents; a score of 1 is best, though a
                                   broken model has it too

The official final score averages task_aggregate, mia/score and MMLU; MMLU is not measured here. The
prompt is the raw `input`; the answer follows after one space, because neither `input` ends nor
`output` begins with one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..data import Example
from ..errors import DataError
from ..language_model import LanguageModel
from ..sources import load_examples
from . import metrics
from .benchmark import (
    Benchmark,
    Direction,
    Evaluation,
    RowValues,
    Splits,
    ask,
    attack,
    averages,
    read,
)

FOLDS = "semeval_split_ids.json"
DOCUMENTS = ("mia_member", "mia_nonmember")


class LUME(Benchmark):
    """Forget and retain documents in equal parts: completions and questions about each."""

    name: ClassVar[str] = "lume"
    headline: ClassVar[tuple[str, ...]] = (
        "forget/regurgitation",
        "retain/regurgitation",
        "forget/knowledge",
        "retain/knowledge",
        "forget/extraction_strength",
        "retain/probability",
        "task_aggregate",
        "mia/score",
    )
    directions: ClassVar[Mapping[str, Direction]] = {
        "forget/regurgitation": "lower",
        "retain/regurgitation": "higher",
        "forget/knowledge": "lower",
        "retain/knowledge": "higher",
        "forget/extraction_strength": "lower",
        "retain/probability": "higher",
        "task_aggregate": "higher",
        "mia/score": "higher",
    }

    @dataclass
    class Config(Benchmark.Config):
        """Where the data is and how much of it counts."""

        path: str = ""
        """The folder that holds forget.jsonl and retain.jsonl."""
        fold: Literal["all", "train", "validation", "test"] = "all"
        """The shared task's part of the data; all but `all` need semeval_split_ids.json."""
        max_new_tokens: int = 256
        """Tokens of an answer at most: the official evaluation's."""

    config: Config

    def load(self) -> Splits:
        """Forget and retain of the fold, and the attack's documents if both files are there."""
        folder = self._folder()
        splits = {}
        for split in ("forget", "retain"):
            rows = load_examples(
                folder / f"{split}.jsonl",
                split=split,
                id_field="id",
                prompt_field="input",
                answer_field="output",
                task_field="task",
            )
            for row in rows:
                subtask(row.id)
            splits[split] = _fold(rows, folder, split, self.config.fold)
        if all((folder / f"{name}.jsonl").is_file() for name in DOCUMENTS):
            for name in DOCUMENTS:
                file = folder / f"{name}.jsonl"
                splits[name] = load_examples(
                    file, split=name, prompt_field="", answer_field="document"
                )
        return splits

    def measure(self, model: LanguageModel, gold: Evaluation | None = None) -> Evaluation:
        """The numbers of the module's docstring, and those that all benchmarks share."""
        splits = self.splits()
        asked = {name: splits[name] for name in ("forget", "retain")}
        rows, generations = ask(model, asked, max_new_tokens=self.config.max_new_tokens)
        rows |= read(model, asked)
        measured = averages(rows) | task_scores(rows, asked)
        nlls = [document_nlls(model, splits.get(name, [])) for name in DOCUMENTS]
        rows |= {f"{name}/nll": by_id for name, by_id in zip(DOCUMENTS, nlls, strict=True) if by_id}
        measured |= attack(nlls[0], nlls[1])
        return Evaluation(self.name, dict.fromkeys(self.headline) | measured, rows, generations)

    def _folder(self) -> Path:
        folder = Path(self.config.path).expanduser()
        missing = [
            name for name in ("forget.jsonl", "retain.jsonl") if not (folder / name).is_file()
        ]
        if not self.config.path or missing:
            found = (
                f"{self.config.path!r} has no {' and no '.join(missing)}"
                if self.config.path
                else "none is set"
            )
            raise DataError(
                f"LUME needs the folder of its released files, but {found}: clone "
                "https://github.com/amazon-science/lume-llm-unlearning and set "
                "benchmark.path=<clone>/data"
            )
        return folder


def _fold(rows: list[Example], folder: Path, split: str, fold: str) -> list[Example]:
    """The rows of one of the shared task's folds."""
    if fold == "all":
        return rows
    if not (folder / FOLDS).is_file():
        raise DataError(
            f"benchmark.fold={fold} needs {folder / FOLDS}; benchmark.fold=all takes every row"
        )
    folds = json.loads((folder / FOLDS).read_text(encoding="utf-8"))
    ids = set(folds.get(split, {}).get(fold, ()))
    return [row for row in rows if row.id in ids]


def subtask(row_id: str) -> Literal["regurgitation", "knowledge"]:
    """What a row asks for, read from its id: `...sc1` a completion, `...qa0` a short answer."""
    if row_id[:-1].endswith("sc"):
        return "regurgitation"
    if row_id[:-1].endswith("qa"):
        return "knowledge"
    raise DataError(
        f"row {row_id!r} has an id that ends neither in sc and a digit nor in qa and a digit"
    )


def task_scores(
    rows: RowValues, splits: Mapping[str, Sequence[Example]]
) -> dict[str, float | None]:
    """LUME's scores by split, by split and task, and their aggregate, from the rows' values."""
    values: dict[str, list[float | None]] = {}
    for split in ("forget", "retain"):
        for row in splits[split]:
            kind = subtask(row.id)
            value = rows[f"{split}/{'rouge' if kind == 'regurgitation' else 'exact_match'}"][row.id]
            values.setdefault(f"{split}/{kind}", []).append(value)
            values.setdefault(f"{split}/{row.task}/{kind}", []).append(value)
    scores = {name: metrics.mean(found) for name, found in sorted(values.items())}
    terms = [
        1 - score if name.startswith("forget/") and score is not None else score
        for name, score in scores.items()
        if name.count("/") == 2
    ]
    return scores | {
        "task_aggregate": metrics.harmonic_mean(terms),
        "task_aggregate_terms": float(len(terms)),
    }


def document_nlls(model: LanguageModel, documents: Sequence[Example]) -> dict[str, float | None]:
    """The mean NLL of each whole document, in nats a token, by id; the end token left out."""
    scores = model.scores([("", row.answer) for row in documents], "scoring documents")
    nlls = [metrics.mean([-float(x) for x in score.log_probs[:-1]]) for score in scores]
    return {row.id: nll for row, nll in zip(documents, nlls, strict=True)}

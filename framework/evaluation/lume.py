"""LUME, the benchmark of SemEval-2025 task 4 (arXiv:2502.15097): novels and biographies.

Data: `forget.jsonl` and `retain.jsonl` of github.com/amazon-science/lume-llm-unlearning in one
folder; beside them, where there are, the official loss attack's documents and
`semeval_split_ids.json` (the shared task's folds, ids by split and fold). `lume_rows.py` reads and
checks them.

Measured on forget and retain, for each of the tasks (Task1 novels, Task2 private data, Task3 real
biographies):

    <split>/<task>/regurgitation   ROUGE-L recall of the completions (ids ending in sc1)
    <split>/<task>/knowledge       exact match of the short answers (ids ending in qa0, qa1, ...)
    task_aggregate                 harmonic mean of these 12, of forget 1 - value; higher is better
    task_aggregate_terms           how many there were: fewer than 12 where a sample lacks a task
    mia/auc, mia/score             loss attack on whole documents; a score of 1 is best, though a
                                   broken model has it too
    mmlu/accuracy                  of all questions of `benchmark.mmlu` pooled, where it is set
    semeval/final, ...             the contest's aggregates of these (`semeval.py`)
    <split>/<probe>_rouge          for the probes of `benchmark.probes` (`lume_probes.py`)

The prompt is the raw `input`; the answer follows after one space, because neither `input` ends nor
`output` begins with one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..data import Example
from ..errors import DataError, require
from ..language_model import LanguageModel
from . import membership
from .benchmark import (
    Benchmark,
    Direction,
    Evaluation,
    Splits,
    ask,
    averages,
    row_values,
    score_rows,
)
from .lume_probes import PROBES, probes
from .lume_rows import (
    DOCUMENTS,
    FOLDS,
    check_rows,
    read_documents,
    read_split,
    rows_of_fold,
    tell_missing_terms,
)
from .mmlu import accuracy, load_questions, load_shots
from .probes import ask_probes, check_probes
from .semeval import OFFICIAL_FILE, SPLITS, document, finals, official_file, subtask, task_scores


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
        "mmlu/accuracy",
        "semeval/final",
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
        "mmlu/accuracy": "higher",
        "semeval/final": "higher",
    }

    @dataclass
    class Config(Benchmark.Config):
        """Where the data is and how much of it counts."""

        path: str = ""
        """The folder that holds forget.jsonl and retain.jsonl (or .parquet)."""
        forget: str | None = None
        """The rows to forget, elsewhere: a file, or a folder of .jsonl or .parquet files; null:
        those of `path`."""
        retain: str | None = None
        """The rows to keep, likewise."""
        documents: str | None = None
        """The folder of the official loss attack's member.jsonl and nonmember.jsonl; null: those in
        `path`, if there are any."""
        fold: Literal["all", "train", "validation", "test"] = "all"
        """The shared task's part of the data; all but `all` need semeval_split_ids.json."""
        max_new_tokens: int = 256
        """Tokens of an answer at most: the official evaluation's."""
        mmlu: str | None = None
        """MMLU's questions, a folder or a hub data set, for the official final score; null: not
        measured."""
        mmlu_shots: int = 5
        """Answered questions before each, from 0 to 5; open-instruct's default is 5."""
        probes: list[str] = field(default_factory=list)
        """Further ways of asking: jailbreak, reverse. Of all released rows 3,733 and 1,500 answers
        beside the 5,466."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_probes(self.probes, PROBES)
            require("benchmark.mmlu_shots", self.mmlu_shots, at_least=0)

    config: Config

    def load(self) -> Splits:
        """Forget and retain of the fold; the attack's documents and MMLU, if there are any."""
        config = self.config
        splits = {split: self._rows(split) for split in SPLITS}
        check_rows(splits)
        if config.limit is not None:  # kind by kind: evenly spaced rows are then of every kind
            splits = {
                split: sorted(rows, key=lambda row: (row.task, subtask(row.id)))
                for split, rows in splits.items()
            }
        if config.documents is not None:
            found = read_documents(Path(config.documents).expanduser())
            if not found:
                raise DataError(
                    f"benchmark.documents={config.documents} has no member.jsonl and nonmember."
                    "jsonl; give their folder, or null: the loss attack is then left out"
                )
            splits |= found
        elif config.path:
            splits |= read_documents(Path(config.path).expanduser())
        if config.mmlu is not None:
            splits["mmlu"] = load_questions(config.mmlu)
            self._shots = load_shots(config.mmlu, config.mmlu_shots, splits["mmlu"])
        return splits

    def document(self, row: Example) -> str:
        """The novel or the biography."""
        return document(row.id)

    def measure(self, model: LanguageModel, gold: Evaluation | None = None) -> Evaluation:
        """The numbers of the module's docstring, and those that all benchmarks share."""
        splits = self.splits()
        tell_missing_terms(splits)
        asked = {name: splits[name] for name in SPLITS}
        rows, generations = ask(model, asked, max_new_tokens=self.config.max_new_tokens)
        documents = {name: splits[name] for name in DOCUMENTS if name in splits}
        scores = score_rows(model, asked | documents)
        rows |= row_values({name: scores[name] for name in asked})
        further = probes(asked, self.config.probes)
        found, told = ask_probes(model, further, max_new_tokens=self.config.max_new_tokens)
        rows, generations = rows | found, generations + told
        measured = averages(rows) | task_scores(rows, asked)
        for name in documents:
            own = scores[name].items()
            rows[f"{name}/nll"] = {id_: membership.text_nll(row.answer) for id_, row in own}
        measured |= membership.attacks(rows, *DOCUMENTS)
        if "mmlu" in splits:
            answered, picked = accuracy(
                model, splits["mmlu"], self._shots, convention="open_instruct"
            )
            measured |= answered
            rows |= picked
        measured |= finals(measured)
        return Evaluation(self.name, dict.fromkeys(self.headline) | measured, rows, generations)

    def official_files(self, evaluation: Evaluation) -> dict[str, str]:
        """`evaluation_results.jsonl`, as the contest's program writes it."""
        return {OFFICIAL_FILE: official_file(evaluation)}

    def _rows(self, split: str) -> list[Example]:
        """The rows of a split, of the fold that is set."""
        config = self.config
        elsewhere = config.forget if split == "forget" else config.retain
        rows = read_split(self._place(split) if elsewhere is None else elsewhere, split)
        if config.fold == "all":
            return rows
        file = Path(config.path).expanduser() / FOLDS
        return rows_of_fold(rows, file, split, config.fold)

    def _place(self, split: str) -> str:
        """The file of a split in `path`."""
        folder = Path(self.config.path).expanduser()
        for suffix in (".jsonl", ".parquet"):
            if self.config.path and (folder / f"{split}{suffix}").is_file():
                return str(folder / f"{split}{suffix}")
        given = f"{self.config.path!r} has no {split}.jsonl" if self.config.path else "none is set"
        raise DataError(
            f"LUME needs the folder of its released files, but {given}: clone "
            "https://github.com/amazon-science/lume-llm-unlearning and set "
            "benchmark.path=<clone>/data"
        )

"""Look at a selection before training on it: forget rows with the selected tokens marked.

    python -m launch.selection benchmark=mini trainer=npo selection=su rows=5
    python -m launch.selection selection=su_ngram selection.kappa=0.5 scores=true
    python -m launch.selection --config runs/x/config.yaml

Takes what launch.train takes. In a terminal the selected tokens are colored, elsewhere they stand
in [brackets]; prompts are never selected. scores=true lists each token's score instead; `*` marks
the selected ones. With --config it shows what that run was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from framework import Benchmark, LanguageModel, Row, build, distributed
from framework.config import part_of
from framework.errors import ConfigError
from framework.loading import ModelSource
from framework.terminal import print_marked, table

from .assembly import check, load_model, selection
from .entry import run_entry
from .prepare import prepare
from .rows import training_rows, training_texts
from .settings import RunSettings, needs_target, parse


@dataclass
class ViewSettings(RunSettings):
    """The settings of a look beside those of a training run."""

    rows: int = 5
    """How many forget rows are shown, evenly spaced; the selection is made among all."""
    scores: bool = False
    """List every token of the answer with its score instead, the selected ones marked."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1, got {self.rows}")


def main(arguments: list[str]) -> None:
    """Load, select, show."""
    config, options = parse(arguments, entry="selection", schema=ViewSettings, about=__doc__ or "")
    benchmark: Benchmark = build(config.benchmark)
    check(config, benchmark)
    if build(config.selection) is None:
        raise ConfigError("selection=none selects every token; type selection=su, or another")
    if needs_target(config):
        prepare(config, benchmark)
    source: ModelSource = build(config.model)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = load_model(config, source, benchmark, dtype=dtype)
    model.move(distributed.device())
    texts = training_texts(config, benchmark, part_of(config.trainer)[0])
    with TemporaryDirectory() as nowhere:
        folder = Path(nowhere if options.config is None else config.output)
        rows = training_rows(config, texts, model, folder=folder)
        kept = folder / "selection.pt"
        found = selection(config, rows, model, file=kept if kept.is_file() else None)
    assert found is not None, "there is a selection"
    total, shown = len(found.rows), min(config.rows, len(found.rows))
    for i in (k * total // shown for k in range(shown)):
        show(rows["forget"][i], found.rows[i], found.scores[i], model, listed=config.scores)


def show(before: Row, row: Row, scores: list[float], model: LanguageModel, *, listed: bool) -> None:
    """Print one row, the tokens that still count marked, or listed with their scores."""
    texts = pieces(row.input_ids, model)
    answer = [t for t, weight in enumerate(before.weights) if weight > 0]
    chosen = [t for t in answer if row.weights[t] > 0]
    title = f"{row.id}: {len(chosen)} of {len(answer)} tokens"
    if listed:
        lines: list[list[str | float | None]] = [[repr(texts[t]), scores[t]] for t in answer]
        marks = {(i, 1) for i, t in enumerate(answer) if t in chosen}
        table(title, ["token", "score"], lines, best=marks)
    else:
        print_marked(title, texts, {*chosen})


def pieces(ids: tuple[int, ...], model: LanguageModel) -> list[str]:
    """The text of each token; of a character in several tokens, all in the last of them."""
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = str(model.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))
        whole = not text.endswith("\ufffd")
        texts.append(text[len(done) :] if whole else "")
        done = text if whole else done
    return texts


if __name__ == "__main__":
    run_entry(main)

"""Run folders in; a page, a Markdown text, a CSV table and plots out.

    output/index.html          everything, in one file that opens without a network
    output/report.md           the same for a repository or a wiki, with the plots beside it
    output/table.csv           one line per model, every metric, full precision
    output/plots/*.svg, *.png  frontier-<benchmark>, losses, cosine, weights

Only run folders are read, and each run's config.yaml stands in the report, so that every number
can be traced to the settings that made it.
"""

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .page import answers, cell, clip, heading, notices, page, questions, summary
from .plots import figures, save, themed_svg
from .runs import Comparison, Run, compare, read_runs


class SummaryTable(NamedTuple):
    """Models by headline metrics, of one benchmark."""

    benchmark: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # formatted; targets, gold models, methods
    best: frozenset[tuple[int, int]]  # (row, column) of the best method


def summary_tables(runs: Sequence[Path]) -> list[SummaryTable]:
    """What the terminal shows of `runs`: one table for each benchmark."""
    return [_summary(comparison) for comparison in compare(read_runs(runs))]


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report on `runs` into the folder `output`; returns the page's path.

    Raises DataError where a path is not a run.
    """
    read = read_runs(runs)
    comparisons = compare(read)
    drawn = figures(read, comparisons)
    captions = {name: _caption(name) for name in drawn}
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        save(figure, output / "plots", name)
    pictures = {name: themed_svg(figure, name) for name, figure in drawn.items()}
    _write_csv(comparisons, output / "table.csv")
    markdown = _markdown(read, comparisons, captions)
    (output / "report.md").write_text(markdown, encoding="utf-8")
    index = output / "index.html"
    index.write_text(page(read, comparisons, pictures, captions), encoding="utf-8")
    return index


def _summary(comparison: Comparison) -> SummaryTable:
    return SummaryTable(
        comparison.benchmark,
        ("model", *(heading(comparison, metric) for metric in comparison.headline)),
        tuple(
            (model.name, *(cell(model, metric) for metric in comparison.headline))
            for model in comparison.models
        ),
        frozenset((row, column + 1) for row, column in comparison.best()),
    )


def _caption(name: str) -> str:
    if name.startswith("frontier-"):
        return (
            "One point per model. Faint lines are evaluations during training; dotted lines mark "
            "the gold model, which never saw the forgotten rows."
        )
    return {
        "losses": "The loss of each objective at the parameters before the step.",
        "cosine": "Below 0, a step that forgets also unlearns what is to be kept.",
        "weights": "How much each objective counts, for the runs in which that changes.",
    }[name]


def _write_csv(comparisons: Sequence[Comparison], path: Path) -> None:
    """Undefined metrics are "nan", those that were not measured are empty."""
    models = [(c.benchmark, model) for c in comparisons for model in c.models]
    headline = [metric for c in comparisons for metric in c.headline]
    metrics = dict.fromkeys([*headline, *(m for _, model in models for m in model.metrics)])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["benchmark", "model", "kind", "run", *metrics])
        for benchmark, model in models:
            values = (model.metrics.get(m, "") for m in metrics)
            cells = ("nan" if value is None else value for value in values)
            writer.writerow([benchmark, model.name, model.kind, model.folder, *cells])


def _markdown(
    runs: Sequence[Run], comparisons: Sequence[Comparison], captions: dict[str, str]
) -> str:
    def plot(name: str) -> list[str]:
        return [f"![{name}](plots/{name}.svg)", captions[name]] if name in captions else []

    blocks = ["# Unlearning report", _inline(summary(runs))]
    blocks += [f"> **Note** {_inline(notice)}" for notice in notices(runs)]
    for comparison in comparisons:
        blocks += [f"## {_inline(comparison.benchmark)}", _markdown_table(comparison)]
        blocks += plot(f"frontier-{comparison.benchmark}")
        blocks += _markdown_generations(comparison)
    training = [name for name in captions if not name.startswith("frontier-")]
    blocks += ["## Training"] if training else []
    blocks += [block for name in training for block in plot(name)]
    blocks += ["## Runs", *(_markdown_run(run) for run in runs)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(comparison: Comparison) -> str:
    table = _summary(comparison)
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)]]
    for row, cells in enumerate(table.rows):
        marked = (
            f"**{_inline(text)}**" if (row, column) in table.best else _inline(text)
            for column, text in enumerate(cells)
        )
        lines.append(list(marked))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_generations(comparison: Comparison) -> list[str]:
    blocks = []
    for row in questions(comparison):
        lines = [("truth", clip(row.get("truth", "")), ""), *answers(comparison, row)]
        told = "\n".join(
            f"| {_inline(name)} | {_inline(text)} | {score} |" for name, text, score in lines
        )
        question = _inline(clip(row.get("question", "")))
        blocks.append(f"**{question}**\n\n| model | answer | ROUGE |\n| --- | --- | ---: |\n{told}")
    return ["### Answers to rows that were to be forgotten", *blocks] if blocks else []


def _markdown_run(run: Run) -> str:
    facts = f"\n\n```json\n{json.dumps(run.facts, indent=2)}\n```" if run.facts else ""
    return (
        f"<details><summary>{html.escape(run.label)} ({html.escape(str(run.folder))})</summary>\n\n"
        f"```yaml\n{run.config.strip()}\n```{facts}\n\n</details>"
    )


def _inline(text: str) -> str:
    """Text that Markdown shows as it is, on one line, also in a table."""
    plain = " ".join(html.escape(text, quote=False).split())
    for mark in r"\`*_[]|":
        plain = plain.replace(mark, f"\\{mark}")
    return plain

"""A report as one HTML page that opens without a network: no script, no font or image from afar."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..terminal import number
from .runs import Comparison, Model, Run

ARROWS = {"higher": "↑", "lower": "↓", "gold": "→ gold"}
NOT_MEASURED = "\N{EN DASH}"
SHOWN_ROWS = 6  # generations side by side
SHOWN_LETTERS = 300  # of one generation

CSS = """
:root { color-scheme: light dark; --ink: #20262e; --soft: #5b6570; --line: #d9dee4;
        --ground: #ffffff; --panel: #f5f7f9; --best: #dff1e6; --best-ink: #0b5a35; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #353d47; --ground: #15191e; --panel: #1d232a;
          --best: #153a28; --best-ink: #9fe3bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
       background: var(--ground);
       font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; } p { max-width: 48rem; }
.soft { color: var(--soft); } small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
.numbers td, .numbers thead th + th { text-align: right; } .numbers td { white-space: nowrap; }
.numbers tbody th { font-weight: 600; white-space: nowrap; }
.reference th, .reference td { background: var(--panel); }
.reference th { font-weight: 400; font-style: italic; }
td.best { background: var(--best); color: var(--best-ink); font-weight: 700; }
td.none { color: var(--soft); font-style: italic; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
.card { border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; overflow: hidden; }
.card header { background: var(--panel); padding: .6rem .9rem; }
.card table { width: 100%; } .card tr:last-child > * { border-bottom: 0; }
.card th { width: 12rem; font-weight: 600; } .card td { overflow-wrap: anywhere; }
.card .score { width: 5rem; text-align: right; color: var(--soft); white-space: nowrap; }
.notice { border-left: 4px solid #e69f00; background: var(--panel); padding: .5rem .9rem;
          margin: .4rem 0; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0;
          padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--panel); padding: .8rem; border-radius: 6px;
      font-size: .85rem; line-height: 1.45; }
"""


def page(
    runs: Sequence[Run],
    comparisons: Sequence[Comparison],
    pictures: Mapping[str, str],
    captions: Mapping[str, str],
) -> str:
    """The whole page; `pictures` are <svg> elements by name, `captions` say what they show."""

    def figure(name: str) -> str:
        if name not in pictures:
            return ""
        caption = f"<figcaption class=soft>{html.escape(captions[name])}</figcaption>"
        return f"<figure>{pictures[name]}{caption}</figure>"

    body = [f"<h1>Unlearning report</h1><p class=soft>{html.escape(summary(runs))}</p>"]
    body += [f"<div class=notice>{html.escape(notice)}</div>" for notice in notices(runs)]
    for comparison in comparisons:
        body += [
            f"<h2>{html.escape(comparison.benchmark)}</h2>",
            _numbers(comparison),
            figure(f"frontier-{comparison.benchmark}"),
            _generations(comparison),
        ]
    if any(not name.startswith("frontier-") for name in pictures):
        body.append("<h2>Training</h2>")
        body += [figure(name) for name in pictures if not name.startswith("frontier-")]
    body += ["<h2>Runs</h2>", *(_run(run) for run in runs)]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Unlearning report</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body>{''.join(body)}</body></html>\n"
    )


def summary(runs: Sequence[Run]) -> str:
    """One line on what the report is made of."""
    labels = ", ".join(run.label for run in runs)
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {labels}"


def notices(runs: Sequence[Run]) -> list[str]:
    """What is missing or damaged in the runs, one line each."""
    return [f"{run.folder}: {notice}" for run in runs for notice in run.notices]


def heading(comparison: Comparison, metric: str) -> str:
    """A metric with an arrow for its better direction."""
    return f"{metric} {ARROWS.get(comparison.directions.get(metric, ''), '')}".strip()


def cell(model: Model, metric: str) -> str:
    """A metric as text: a number, "undefined", or a dash where it was not measured."""
    if metric not in model.metrics:
        return NOT_MEASURED
    value = model.metrics[metric]
    return "undefined" if value is None else number(value)


def questions(comparison: Comparison) -> list[Mapping[str, Any]]:
    """A few forget rows that the methods were asked: the first of each task, then the second..."""
    asked: dict[str, Mapping[str, Any]] = {}
    for model in comparison.of_kind("method"):
        asked |= {key: row for key, row in model.generations.items() if key not in asked}
    turns: dict[str, int] = {}
    order: list[tuple[int, int, Mapping[str, Any]]] = []
    for row in asked.values():
        if row.get("split", "forget") == "forget":
            task = str(row.get("task", ""))
            turns[task] = turns.get(task, 0) + 1
            order.append((turns[task], len(order), row))
    return [row for _, _, row in sorted(order, key=lambda entry: entry[:2])][:SHOWN_ROWS]


def answers(comparison: Comparison, row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What each model answered to a row: (model, answer, ROUGE); methods stand before gold."""
    order = [comparison.of_kind(kind) for kind in ("target", "method", "gold")]
    found = []
    for model in (model for models in order for model in models):
        answer = model.generations.get(str(row["id"]))
        if answer is not None:
            rouge = answer.get("rouge")
            found.append(
                (model.name, clip(answer["answer"]), "" if rouge is None else number(rouge))
            )
    return found


def clip(text: object) -> str:
    """A generation, cut where it rambles on, and marked where it is empty."""
    whole = str(text).strip()
    if len(whole) > SHOWN_LETTERS:
        return f"{whole[:SHOWN_LETTERS]} … ({len(whole)} characters)"
    return whole or "(nothing)"


def _numbers(comparison: Comparison) -> str:
    best = comparison.best()
    titles = "".join(f"<th>{_breakable(heading(comparison, m))}" for m in comparison.headline)
    rows = []
    for index, model in enumerate(comparison.models):
        cells = "".join(
            _number_cell(cell(model, metric), best=(index, column) in best)
            for column, metric in enumerate(comparison.headline)
        )
        kind = "" if model.kind == "method" else " class=reference"
        rows.append(f"<tr{kind}><th>{html.escape(model.name)}</th>{cells}</tr>")
    return (
        f"<div class=scroll><table class=numbers><thead><tr><th>model{titles}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A metric's name that may be broken behind / and _, so that wide tables fit the page."""
    return html.escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _number_cell(text: str, *, best: bool) -> str:
    kind = " class=best" if best else " class=none" if text in ("undefined", NOT_MEASURED) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _generations(comparison: Comparison) -> str:
    rows = questions(comparison)
    cards = [_card(comparison, row) for row in rows]
    return f"<h3>Answers to rows that were to be forgotten</h3>{''.join(cards)}" if rows else ""


def _card(comparison: Comparison, row: Mapping[str, Any]) -> str:
    lines = [("truth", clip(row.get("truth", "")), ""), *answers(comparison, row)]
    body = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td>"
        f"<td class=score>{f'ROUGE {score}' if score else ''}</td></tr>"
        for name, text, score in lines
    )
    about = html.escape(" · ".join(str(row[key]) for key in ("task", "id") if row.get(key)))
    question = html.escape(clip(row.get("question", "")))
    return (
        f"<div class=card><header>{question}<br><small>{about}</small></header>"
        f"<table>{body}</table></div>"
    )


def _run(run: Run) -> str:
    facts = html.escape(json.dumps(run.facts, indent=2)) if run.facts else ""
    return (
        f"<details><summary>{html.escape(run.label)} <small>{html.escape(str(run.folder))}</small>"
        f"</summary><p>config.yaml</p><pre>{html.escape(run.config)}</pre>"
        + (f"<p>run.json</p><pre>{facts}</pre>" if facts else "")
        + "</details>"
    )

"""What a bench leaves: a JSON of every number and tables, on the terminal and for a document."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from framework import distributed
from framework.config import plain
from framework.evaluation.report.markdown import markdown_table
from framework.terminal import say, table

from .outcome import PACKAGES, conditions, write_json


class Table(NamedTuple):
    """The answer to one question: a line for each way, narrow enough for 100 columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Answer = tuple[list[Table], list[dict[str, object]]]
"""To a part of a question: tables, and every number for the JSON."""


def leave(
    name: str, config: DictConfig, tables: Sequence[Table], numbers: Mapping[str, Any]
) -> None:
    """Show `tables`, and keep them with `numbers`."""
    show(tables)
    say(keep(name, config, tables, numbers))


def show(tables: Sequence[Table]) -> None:
    """Print them."""
    for each in tables:
        table(each.title, each.columns, each.rows)


def keep(name: str, config: DictConfig, tables: Sequence[Table], numbers: Mapping[str, Any]) -> str:
    """Write them to `<output>/<name>.md` and `.json`, on rank 0; gives what to say of that.

    The folder is there: `make_folder` makes it before anything is measured for it.
    """
    if not distributed.is_main():
        return ""
    folder = Path(config.output)
    command = " ".join(["python -m launch.bench", *sys.argv[1:]])
    machine = conditions(config, PACKAGES)
    content = {
        "command": command,
        **machine,
        "threads": torch.get_num_threads(),
        "settings": plain(config),
        **numbers,
    }
    write_json(folder / f"{name}.json", content)
    versions = ", ".join(f"{package} {found}" for package, found in machine["packages"].items())
    about = f"`{command}`\n\n{machine['hardware']}; {versions}; commit {machine['commit']}\n"
    texts = [f"{x.title}:\n\n{markdown_table(x.columns, x.rows, left=x.columns)}\n" for x in tables]
    (folder / f"{name}.md").write_text("\n".join([about, *texts]), encoding="utf-8")
    return f"{folder / name}.json: {machine['hardware']}, torch {torch.__version__}"

"""Compare runs: a table in the terminal, and a page with plots and answers side by side.

    python -m launch.report runs/npo runs/grad_diff --output reports/first

Writes index.html (opens without a network), report.md, table.csv and plots/.
"""

import argparse
import time
from pathlib import Path

from framework.evaluation.report import summary_tables, write_report
from framework.terminal import say, table

from .entry import Parser, run_entry


def main(arguments: list[str]) -> None:
    """Read the run folders, print their table, write the report."""
    parser = Parser(
        prog="python -m launch.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that launch.train made")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("reports") / time.strftime("%Y-%m-%d-%H%M%S"),
        help="folder to write into (default: reports/<date and time>)",
    )
    options = parser.parse_args(arguments)
    page = write_report(options.runs, options.output)
    for shown in summary_tables(options.runs):
        table(shown.benchmark, shown.columns, shown.rows, best=shown.best)
    say(f"report: {page}")


if __name__ == "__main__":
    run_entry(main)

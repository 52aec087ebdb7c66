"""A published TOFU log as numbers: model utility, forget quality, and what they are made of.

    python -m launch.tofu_log eval_log_aggregated.json
    python -m launch.tofu_log eval_log_aggregated.json --retain retain90/eval_log_aggregated.json

Takes TOFU's own eval_log_aggregated.json, from github.com/locuslab/tofu, and OpenUnlearning's
TOFU_EVAL.json. `launch.eval benchmark=tofu` computes a model's numbers by the same functions.
"""

import argparse
from pathlib import Path

from framework.evaluation.tofu_logs import read_log
from framework.evaluation.tofu_metrics import beside
from framework.terminal import table

from .entry import Parser, run_entry


def main(arguments: list[str]) -> None:
    """Read the log, compare it with the retained model's, print a table."""
    parser = Parser(
        prog="python -m launch.tofu_log",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", type=Path, help="the log of a model")
    parser.add_argument("--retain", type=Path, help="the log of the retained model")
    options = parser.parse_args(arguments)
    log = read_log(options.log, "forget")
    measured = dict(log.metrics)
    if options.retain is not None:
        measured |= beside(log.rows, read_log(options.retain, "forget"))
    rows = [[name, f"{value:.4g}"] for name, value in measured.items() if value is not None]
    table(options.log.name, ["metric", "value"], rows)


if __name__ == "__main__":
    run_entry(main)

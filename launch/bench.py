"""Measure how fast Lethe is beside the ways that others go, side by side in one run.

    python -m launch.bench count [setting=value ...]        what a step does, without doing it
    python -m launch.bench evaluation [setting=value ...]   scoring and answering
    python -m launch.bench training [setting=value ...]     a step beside the peers' way of it

count        FLOPs, memory, passes, waits and collectives of one step of every method, exactly, at
             the sizes of 1B to 8B, a 1B's in twenty seconds; no model needed
evaluation   seconds to score and to answer rows: one by one, in padded batches, as Lethe does
training     seconds and memory of a step beside the peers', of each method beside gradient
             difference, of the loop beside a bare one, and how the cost of a token grows

`python -m launch.bench <what> --help` tells the settings of each. Every way does the same work in
every round, one after the other, so that what else the machine does falls on all alike. Leaves
`<output>/<what>.json` and its tables, `<what>.md`.
"""

from __future__ import annotations

import importlib

from framework.errors import ConfigError

from .entry import run_entry

BENCHES = ("count", "evaluation", "training")
"""Each is a module `bench_<name>` with a `main` that takes the settings."""


def main(arguments: list[str]) -> None:
    """Measure what the first argument names."""
    names = [text for text in arguments if "=" not in text and not text.startswith("-")]
    if names[:1] and names[0] in BENCHES:
        several = [name for name in names if name in BENCHES]
        if len(several) > 1:
            raise ConfigError(f"one at a time, got {' and '.join(several)}")
        bench = importlib.import_module(f".bench_{names[0]}", __package__)
        bench.main([text for text in arguments if text != names[0]])
    elif {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
    else:
        raise ConfigError(
            f"what to measure? python -m launch.bench <{'|'.join(BENCHES)}> [setting=value ...]"
        )


if __name__ == "__main__":
    run_entry(main)

"""What one step of each method does, and what answering TOFU takes: counted, no model needed.

python -m launch.bench count
python -m launch.bench count shape=llama-8b lengths=[tofu,lume,muse] methods=[npo,blur]

The run's own code takes the step on tensors without memory (`launch/counting.py`), with attention
as a GPU computes it. Columns of the table:

passes    forward + backward + those of a frozen reference
tokens    read in all passes; what rows share is read once
logits    positions that they are computed at, forward
TFLOP     matrix products and attention (`launch/flops.py`)
times     its FLOPs, of gradient difference's
peers     FLOPs of the peers at their best (`launch/peer_style.py`), of ours, on the same rows in
          padded batches of `peer_rows`
GiB       activations, logits and gradients on their way, at most; beside weights, gradients and
          optimizer
/ peers   these, of the peers' with as many rows in flight: all in one batch; empty where ours are
          not in one pass
waits     how often the host waits for numbers

Then collectives and bytes of a step under ZeRO, a line for each kind of step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from framework import Row
from framework.config import choices, part_of
from framework.errors import require
from framework.memory import GIB
from framework.terminal import progress

from . import peer_style
from .answering_steps import answering
from .bench_result import Table, leave
from .counting import PeerWork, Work, count, count_peers
from .outcome import make_folder
from .settings import CONFIGS, parse
from .shapes import LENGTHS, SHAPES, known, rows_of
from .traffic import STAGES, Traffic, traffic
from .training_world import METHODS, known_methods, method_config

AGAINST = "grad_diff"
"""The method whose FLOPs the others' are divided by."""


@dataclass
class CountBench:
    """The settings of the bench."""

    shape: str = "llama-1b"
    """The model: tiny, small, llama-1b, llama-8b, olmo-7b (`launch/shapes.py`)."""
    lengths: list[str] = field(default_factory=lambda: ["tofu"])
    """How long rows are: tofu, tofu_apart, lume, muse, uniform (docs/performance.md)."""
    methods: list[str] | None = None
    """Names such as npo, npo_kl, blur, sam, or any choice of trainer; null: all."""
    rows: int = 32
    """Of each objective in a step, at least 1; fewer where a micro-batch does not hold them."""
    peer_rows: int = 8
    """Of each objective in a forward pass whose FLOPs are the peers', at least 1."""
    tokens_per_micro_batch: int = 16_384
    """Tokens of one forward pass, at least 2: by default a whole step."""
    ranks: int = 8
    """Among which ZeRO divides, at least 2."""
    precision: Literal["bf16"] = "bf16"
    """Of weights and activations; the only one that is counted."""
    output: str = "runs/bench"
    """The folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what is out of range or unknown."""
        least = {"rows": 1, "peer_rows": 1, "tokens_per_micro_batch": 2, "ranks": 2}
        for name, lowest in least.items():
            require(name, getattr(self, name), at_least=lowest)
        known("shape", [self.shape], SHAPES)
        known("lengths", self.lengths, LENGTHS)
        known_methods(self.methods)


@dataclass(frozen=True)
class Counted:
    """A method's step on one model and one kind of rows."""

    method: str
    work: Work
    peers: PeerWork | None

    @property
    def alike(self) -> bool:
        """Whether peers hold as many rows as ours: theirs has all in flight at once."""
        return self.peers is not None and self.work.forwards == 1


def main(arguments: list[str]) -> None:
    """Count, show, record."""
    config, _ = parse(arguments, entry="bench_count", schema=CountBench, about=__doc__ or "")
    make_folder(Path(config.output))
    tables: list[Table] = []
    numbers: dict[str, object] = {}
    for lengths in config.lengths:
        found = count_all(config, lengths)
        tables += [_steps(config, lengths, found), _wire(config, lengths, found)]
        numbers[f"{config.shape} {lengths}"] = [_numbers(each) for each in found]
    answers = answering([config.shape])
    tables.append(answers.table())
    numbers["answering"] = answers.numbers()
    leave("count", config, tables, numbers)


def count_all(config: DictConfig, lengths: str) -> list[Counted]:
    """Every method's step; the first is that which the others are divided by."""
    asked = config.methods or [*METHODS, *_others()]
    named = [AGAINST, *(name for name in asked if name != AGAINST)]
    shape, rows = SHAPES[config.shape], step_rows(config, lengths)
    found = []
    for method in progress(named, description=f"{config.shape}, {lengths}"):
        given = rows(method)
        work = count(method, shape, given, tokens=config.tokens_per_micro_batch)
        peers = None
        if method in peer_style.METHODS:
            peers = count_peers(method, shape, given, batch=config.peer_rows)
        found.append(Counted(method, work, peers))
    return found


def _others() -> list[str]:
    """Choices of trainer that `METHODS` does not have under another name."""
    there = {method_config(name).trainer.name for name in METHODS if len(METHODS[name]) == 1}
    return [name for name in choices(CONFIGS, "trainer") if name not in there]


def step_rows(config: DictConfig, lengths: str) -> Callable[[str], Mapping[str, Sequence[Row]]]:
    """The rows of a method's step: forget ones bring a preferred answer where it wants them."""
    pairs, vocabulary = LENGTHS[lengths], SHAPES[config.shape].vocabulary
    count = _rows_of_step(config, lengths)

    def rows(method: str) -> Mapping[str, Sequence[Row]]:
        prefers = part_of(method_config(method).trainer)[0].prefers
        return {
            name: rows_of(
                pairs,
                count,
                vocabulary=vocabulary,
                seed=seed,
                name=name,
                paired=prefers and name == "forget",
            )
            for seed, name in enumerate(("forget", "retain"))
        }

    return rows


def _rows_of_step(config: DictConfig, lengths: str) -> int:
    """Of each objective: no more than a micro-batch holds."""
    pairs = LENGTHS[lengths].pairs
    tokens = sum(map(sum, pairs)) / len(pairs)
    return max(1, min(int(config.rows), int(config.tokens_per_micro_batch / (2 * tokens))))


def _steps(config: DictConfig, lengths: str, found: Sequence[Counted]) -> Table:
    least = found[0].work.flops
    lines = []
    for each in found:
        work, peers = each.work, each.peers
        passes = [work.forwards, work.backwards, *([work.reads] if work.reads else [])]
        lines.append(
            [
                each.method,
                "+".join(map(str, passes)),
                f"{work.tokens:,}",
                f"{work.logits:,}",
                f"{work.flops / 1e12:.2f}",
                f"{work.flops / least:.2f}",
                "" if peers is None else f"{peers.flops / work.flops:.2f}",
                f"{work.peak_bytes / GIB:.2f}",
                f"{work.peak_bytes / peers.peak_bytes:.2f}" if peers and each.alike else "",
                str(work.syncs),
            ]
        )
    columns = ["method", "passes", "tokens", "logits", "TFLOP", "times", "peers", "GiB"]
    rows = _rows_of_step(config, lengths)
    batch = min(rows, config.peer_rows)
    return Table(
        f"{config.shape}, {lengths}: a step of {rows} + {rows} rows; "
        f"peers: FLOPs by {batch} + {batch}, GiB at once",
        [*columns, "/ peers", "waits"],
        lines,
    )


def _wire(config: DictConfig, lengths: str, found: Sequence[Counted]) -> Table:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SHAPES[config.shape].module().parameters())
    kinds: dict[tuple[Traffic, ...], list[str]] = {}
    for each in found:
        kinds.setdefault(tuple(_traffic(each.work)), []).append(each.method)
    lines = []
    for moved, methods in kinds.items():
        sizes = [each.bytes_per_rank(parameters, config.ranks) / 1e9 for each in moved]
        counts = [f"{each.all_gathers} + {each.reduce_scatters}" for each in moved]
        more = f" and {len(methods) - 1} more" if len(methods) > 1 else ""
        cells = [
            f"{count}: {size:{'.1f' if size >= 1 else '.2g'}} GB"
            for count, size in zip(counts, sizes, strict=True)
        ]
        lines.append([methods[0] + more, *cells])
    return Table(
        f"{config.shape}, {lengths}: all-gathers + reductions of a step, what each of "
        f"{config.ranks} ranks sends",
        ["method", *(f"ZeRO-{stage}" for stage in STAGES)],
        lines,
    )


def _traffic(work: Work) -> list[Traffic]:
    return [
        traffic(
            stage,
            forwards=work.forwards + work.reads,
            backwards=work.backwards,
            gradients=work.gradients,
            shifts=work.shifts,
        )
        for stage in STAGES
    ]


def _numbers(each: Counted) -> dict[str, object]:
    peers = None if each.peers is None else _told(each.peers)
    if peers is not None and not each.alike:
        del peers["peak_bytes"]
    return {
        "method": each.method,
        **_told(each.work),
        "peers": peers,
        "collectives": [asdict(moved) for moved in _traffic(each.work)],
    }


def _told(work: Work | PeerWork) -> dict[str, object]:
    numbers = {**asdict(work), "peak_bytes": work.peak_bytes}
    del numbers["stretches"]
    return numbers

"""What one step of each method does, and what answering TOFU takes: counted, no model needed.

python -m launch.bench count
python -m launch.bench count shapes=[llama-1b,llama-8b] lengths=[tofu,lume,muse] methods=[npo,blur]

Counted are FLOPs (`launch/flops.py` says which), passes, logits, numbers that the host waits for
and the most bytes of activations and logits, of the run's own code on tensors without memory
(`launch/counting.py`); beside it what peers do at their best on the same rows
(`launch/peer_style.py`), all in one batch. Then what goes over the wire under ZeRO.
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
from framework.errors import ConfigError, require
from framework.memory import GIB
from framework.terminal import progress

from . import peer_style
from .answering_steps import answering
from .bench_result import Table, leave
from .counting import PeerWork, Work, count, count_peers
from .outcome import make_folder
from .settings import CONFIGS, parse
from .shapes import LENGTHS, SHAPES, rows_of
from .traffic import STAGES, Traffic, traffic
from .training_world import METHODS, method_config

AGAINST = "grad_diff"
"""The method whose FLOPs the others' are divided by."""


@dataclass
class CountBench:
    """The settings of the bench."""

    shapes: list[str] = field(default_factory=lambda: ["llama-1b"])
    """The models: small, llama-1b, llama-8b, olmo-7b (`launch/shapes.py`)."""
    lengths: list[str] = field(default_factory=lambda: ["tofu"])
    """How long rows are: tofu, lume, muse, uniform."""
    methods: list[str] | None = None
    """Names such as npo, npo_kl, blur, sam, or any choice of trainer; null: all."""
    rows: int = 32
    """Of each objective in a step, at least 1; fewer where a micro-batch does not hold them."""
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
        for name, least in {"rows": 1, "tokens_per_micro_batch": 2, "ranks": 2}.items():
            require(name, getattr(self, name), at_least=least)
        for name, known in {"shapes": SHAPES, "lengths": LENGTHS}.items():
            unknown = [x for x in getattr(self, name) if x not in known]
            if unknown:
                raise ConfigError(
                    f"{name}: there is no {unknown[0]!r}; there are {', '.join(known)}"
                )
        for method in self.methods or []:
            method_config(method)


@dataclass(frozen=True)
class Counted:
    """A method's step on one model and one kind of rows."""

    method: str
    work: Work
    peers: PeerWork | None


def main(arguments: list[str]) -> None:
    """Count, show, record."""
    config, _ = parse(arguments, entry="bench_count", schema=CountBench, about=__doc__ or "")
    make_folder(Path(config.output))
    tables: list[Table] = []
    numbers: dict[str, object] = {}
    for shape in config.shapes:
        for lengths in config.lengths:
            found = count_all(config, shape, lengths)
            tables += [_steps(shape, lengths, found), _wire(config, shape, lengths, found)]
            numbers[f"{shape} {lengths}"] = [_numbers(each) for each in found]
    answers = answering(config.shapes)
    tables.append(answers.table())
    numbers["answering"] = answers.numbers()
    leave("count", config, tables, numbers)


def count_all(config: DictConfig, shape: str, lengths: str) -> list[Counted]:
    """Every method's step; the first is that which the others are divided by."""
    known = config.methods or [*METHODS, *_others()]
    named = [AGAINST, *(name for name in known if name != AGAINST)]
    rows = step_rows(config, shape, lengths)
    found = []
    for method in progress(named, description=f"{shape}, {lengths}"):
        given = rows(method)
        work = count(method, SHAPES[shape], given, tokens=config.tokens_per_micro_batch)
        told = method in peer_style.METHODS
        found.append(
            Counted(method, work, count_peers(method, SHAPES[shape], given) if told else None)
        )
    return found


def _others() -> list[str]:
    """Choices of trainer that `METHODS` does not have under another name."""
    there = {method_config(name).trainer.name for name in METHODS if len(METHODS[name]) == 1}
    return [name for name in choices(CONFIGS, "trainer") if name not in there]


def step_rows(
    config: DictConfig, shape: str, lengths: str
) -> Callable[[str], Mapping[str, Sequence[Row]]]:
    """The rows of a method's step: forget ones bring a preferred answer where it wants them."""
    pairs, vocabulary = LENGTHS[lengths], SHAPES[shape].vocabulary
    tokens = sum(map(sum, pairs.pairs)) / len(pairs.pairs)
    count = max(1, min(config.rows, int(config.tokens_per_micro_batch / (2 * tokens))))

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


def _steps(shape: str, lengths: str, found: Sequence[Counted]) -> Table:
    least = found[0].work.flops
    lines = []
    for each in found:
        work, peers = each.work, each.peers
        lines.append(
            [
                each.method,
                f"{work.forwards} + {work.backwards}" + (f" + {work.reads}" if work.reads else ""),
                f"{work.tokens:,}",
                f"{work.logits:,}",
                f"{work.flops / 1e12:.2f}",
                f"{work.flops / least:.2f}",
                "" if peers is None else f"{peers.flops / work.flops:.2f}",
                f"{work.peak_bytes / GIB:.2f}",
                "" if peers is None else f"{work.peak_bytes / peers.peak_bytes:.2f}",
                str(work.syncs),
            ]
        )
    columns = ["method", "passes", "tokens", "logits", "TFLOP", f"/ {AGAINST}", "peers /"]
    return Table(
        f"{shape}, {lengths}: a step; passes forward + backward + of a frozen reference",
        [*columns, "GiB", "/ peers", "waits"],
        lines,
    )


def _wire(config: DictConfig, shape: str, lengths: str, found: Sequence[Counted]) -> Table:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SHAPES[shape].module().parameters())
    columns = ["method"]
    for stage in STAGES:
        columns += [f"ZeRO-{stage}: gathers", "reductions", "GB per rank"]
    lines = []
    for each in found:
        line = [each.method]
        for moved in _traffic(each.work):
            size = moved.bytes_per_rank(parameters, config.ranks) / 1e9
            line += [str(moved.all_gathers), str(moved.reduce_scatters), f"{size:.1f}"]
        lines.append(line)
    return Table(f"{shape}, {lengths}: over the wire, {config.ranks} ranks", columns, lines)


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
    peers = (
        None if each.peers is None else {**asdict(each.peers), "peak_bytes": each.peers.peak_bytes}
    )
    return {
        "method": each.method,
        **asdict(each.work),
        "peak_bytes": each.work.peak_bytes,
        "peers": peers,
        "collectives": [asdict(moved) for moved in _traffic(each.work)],
    }

"""How fast a step of unlearning is, beside the step that released programs take.

python -m launch.bench training
python -m launch.bench training questions=[peers] methods=[npo,npo_kl] lengths=[lume] rounds=10
python -m launch.bench training shape=llama-1b precision=bf16 rows=32
python -m launch.bench training shape=llama-8b precision=bf16 zero=3_offload
python -m launch.bench training shape=llama-8b precision=bf16 tuning=lora
torchrun --nproc_per_node 2 -m launch.bench training zero=2

A model of random weights reads random tokens in rows as long as those of TOFU, LUME or MUSE. Four
questions, a table each:

peers     a method's step beside the same step in the peers' way (launch/peer_style.py)
methods   a method's step beside that of gradient difference on the same rows
loop      the whole loop beside a bare one that computes the same; under zero=..., beside
          DeepSpeed's own plain step
growth    the cost of a token as rows become more, or longer

Times are CPU times on a CPU, where other work on the machine hardly changes them, else wall times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from framework import distributed
from framework.errors import ConfigError, require
from framework.terminal import say

from . import peer_style
from .bench_loop import loop
from .bench_peers import peers
from .bench_result import Answer, Table, keep, show
from .bench_steps import growth, methods
from .outcome import make_folder
from .settings import is_sharded, parse
from .shapes import LENGTHS, SHAPES, known
from .training_world import METHODS, World, known_methods, make_world, needs_copy

Question = Callable[[World], Iterator[Answer]]
QUESTIONS: Mapping[str, Question] = {
    "peers": peers,
    "methods": methods,
    "loop": loop,
    "growth": growth,
}


@dataclass
class TrainingBench:
    """The settings of the bench beside its groups."""

    questions: list[str] | None = None
    """Of peers, methods, loop, growth; null: all that the other settings allow."""
    shape: str = "small"
    """The model: tiny, small, llama-1b, llama-8b, olmo-7b (`launch/shapes.py`)."""
    lengths: list[str] = field(default_factory=lambda: ["tofu", "lume"])
    """How long rows are: tofu, of which all begin with the same 34 tokens; tofu_apart, as long and
    without these; lume, muse, uniform."""
    methods: list[str] | None = None
    """Those to step: names such as npo, npo_kl, blur, sam, or any choice of trainer; null: all
    that a target is set for, among peers npo and npo_kl."""
    rows: int = 8
    """Of each objective in a step, over all ranks, at least 1. 8 are open-unlearning's for a device
    (configs/trainer/finetune.yaml), which adds up four such batches; rows=32 is its whole step."""
    peer_rows: int = 8
    """Of each objective in a forward pass of the peers, at least 1: they let gradients add up."""
    rounds: int = 5
    """How often each way takes its step, at least 1, after one that is not counted; to the peers'
    question and that of methods each round brings other rows."""
    tokens_per_micro_batch: int = 4096
    """Tokens of one of our forward passes on one rank, at least 2."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 keeps fp32 master weights, the peers too; auto: bf16 on a GPU, fp32 on a CPU."""
    seed: int = 0
    """Of weights, and of the first round's rows: round i has those of `seed` + i."""
    output: str = "runs/bench"
    """The folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what is out of range or unknown."""
        for name, least in {"rows": 1, "peer_rows": 1, "rounds": 1}.items():
            require(name, getattr(self, name), at_least=least)
        require("tokens_per_micro_batch", self.tokens_per_micro_batch, at_least=2)
        known("shape", [self.shape], SHAPES)
        known("lengths", self.lengths, LENGTHS)
        if self.questions is not None:
            known("questions", self.questions, QUESTIONS)
        known_methods(self.methods)


def main(arguments: list[str]) -> None:
    """Draw a model, ask each question of it, show, record."""
    config, _ = parse(arguments, entry="bench_training", schema=TrainingBench, about=__doc__ or "")
    asked = config.questions or possible(config)
    _check(config, asked)
    left_out = _without_peers(config)
    if "peers" in asked and left_out:
        say(
            f"the question peers leaves out {', '.join(left_out)}: there is a peers' way of "
            f"{', '.join(peer_style.METHODS)} alone"
        )
    make_folder(Path(config.output))
    named = config.methods or list(METHODS)
    copied = "peers" in asked or ("methods" in asked and any(map(needs_copy, named)))
    world = make_world(config, copied=copied)
    tables: list[Table] = []
    found: dict[str, list[dict[str, object]]] = {question: [] for question in asked}
    told = ""
    for question in asked:
        for drawn, numbers in QUESTIONS[question](world):
            show(drawn)
            tables += drawn
            found[question] += numbers  # kept at once: an hour's run may be cut off
            told = keep("training", config, tables, {"parameters": world.parameters, **found})
    say(told)
    world.engine.close()


def possible(config: DictConfig) -> list[str]:
    """The questions that the engine and the model's size allow."""
    if is_sharded(config):
        return ["methods", "loop"]
    if config.tuning.name != "full":
        return ["methods"]
    there = config.methods is None or set(config.methods) & set(peer_style.METHODS)
    return [x for x in QUESTIONS if there or x != "peers"]


def _without_peers(config: DictConfig) -> list[str]:
    """The methods that are named and that peers have no way of."""
    return [x for x in config.methods or [] if x not in peer_style.METHODS]


def _check(config: DictConfig, asked: list[str]) -> None:
    """Refuse what cannot be measured, before anything is made."""
    unknown = _without_peers(config)
    if "peers" in asked and unknown and (asked == ["peers"] or unknown == config.methods):
        raise ConfigError(
            f"there is no peers' way of {unknown[0]}; there are {', '.join(peer_style.METHODS)}"
        )
    for question in asked:
        if question not in possible(config):
            raise ConfigError(
                f"questions=[{question}] needs zero=none and tuning=full, got "
                f"zero={config.zero.name} and tuning={config.tuning.name}"
            )
    if not is_sharded(config) and distributed.intended_world_size() > 1:
        raise ConfigError("zero=none is for one process; type zero=2 (or 1, 3), or leave torchrun")

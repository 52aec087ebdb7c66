"""Compositions of what is in configs/, built on the tiny model as their configs say.

A composition is a method, a weighting and a perturbation, then overrides as on the command line:
("npo", "blur", "none", "averaging=uniform"). All are found in configs/: a new file is tried by the
table of promises (trainers/test_contract.py) and under ZeRO (distributed/) without a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch

from framework import LanguageModel, LocalEngine, Row, UnlearningTrainer, compose
from framework.config import build as built
from framework.config import choices, part_of
from framework.engine import Engine
from framework.optimizers import Optimizer
from framework.parts import Plan
from launch.settings import RunSettings

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = choices(CONFIGS, "trainer")
WEIGHTINGS = choices(CONFIGS, "weighting")
PERTURBATIONS = choices(CONFIGS, "perturbation")
EVERY_PART = "npo"
"""The method that is tried with every part."""

Composition = tuple[str, ...]
Steps = Sequence[Mapping[str, Sequence[Row]]]
Weights = Mapping[str, torch.Tensor]

FITTING: dict[str, tuple[str, ...]] = {  # settings for a few steps of a few thousand parameters
    # its default magnifies the rounding of the gradients penalty / step = 1000 times
    "perturbation=curvature": (
        "perturbation.penalty=0.03",
        "perturbation.radius=0.3",
        "perturbation.step=0.3",
    ),
    "averaging=uniform": ("averaging.start=0", "averaging.every=1"),
    # answers are short; of random tokens hardly any pair occurs twice
    "selection=su": (
        *("selection.left=0", "selection.right=0"),
        *(f"selection.assistants.{x}" for x in ("steps=3", "hidden_size=8", "layers=1")),
    ),
    "selection=su_ngram": ("selection.left=0", "selection.right=0", "selection.n=1"),
}


@cache
def part(group: str, choice: str) -> tuple[Any, Any]:
    """The class behind a choice, and its settings; None and None where the part is absent."""
    config = compose("train", [f"{group}={choice}"], configs=CONFIGS, schema=RunSettings)
    found: tuple[Any, Any] = part_of(config[group])
    return found


def objectives(method: str) -> set[str]:
    """What the method minimizes, as its config has it."""
    kind, chosen = part("trainer", method)
    return set(kind.objectives) - ({"retain"} if chosen.retain_loss == "none" else set())


def sensible(composition: Composition) -> bool:
    """Whether there is what the weighting weighs and the perturbation perturbs."""
    method, weighting, perturbation, *_ = composition
    weighs, _ = part("weighting", weighting)
    perturbs, _ = part("perturbation", perturbation)
    own = objectives(method)
    balances = weighs and (weighs.needs_gram or weighs.needs_losses)
    return not (balances and len(own) < 2) and not (perturbs and not own & set(perturbs.objectives))


# ---- which are tried -----------------------------------------------------------------------------

ALL: list[Composition] = [(m, w, p) for m in METHODS for w in WEIGHTINGS for p in PERTURBATIONS]
ABSENT = {"averaging": "none", "optimizer": "sgd", "tuning": "full", "selection": "none"}
"""The other groups of a run, and the choice that every composition has unless it says otherwise."""
NOT_INSTALLED = {"optimizer=adamw_8bit"}
"""What needs a library that the tests do not have."""
OTHERS: list[Composition] = [
    (EVERY_PART, "none", "none", other)
    for other in (
        *(f"{g}={c}" for g, absent in ABSENT.items() for c in choices(CONFIGS, g) if c != absent),
        "optimizer.automatic_every=1",
    )
    if other not in NOT_INSTALLED
]


def rotated() -> list[Composition]:
    """The first weighting with the first perturbation, the second with the second, and around."""
    weightings, perturbations = (
        [choice for choice in group if choice != "none"] for group in (WEIGHTINGS, PERTURBATIONS)
    )
    return [
        (EVERY_PART, weighting, perturbations[i % len(perturbations)])
        for i, weighting in enumerate(weightings)
    ]


def of_every_method() -> list[Composition]:
    """Each method alone, and with BLUR and SAM together, or SAM where there is nothing to weigh."""
    found: list[Composition] = []
    for method in METHODS:
        together = (method, "blur" if len(objectives(method)) > 1 else "none", "sam")
        found += [c for c in ((method, "none", "none"), together) if sensible(c)]
    return found


def tried(composition: Composition) -> bool:
    """Whether its parts are among all of a method: not of every method, for time."""
    method = composition[0]
    return sensible(composition) and (method == EVERY_PART or len(objectives(method)) < 2)


EACH = list(
    dict.fromkeys(
        [
            *of_every_method(),
            *((EVERY_PART, weighting, "none") for weighting in WEIGHTINGS),
            *((EVERY_PART, "none", perturbation) for perturbation in PERTURBATIONS),
            *rotated(),
            *OTHERS,
            (EVERY_PART, "blur", "sam", "selection=su"),
        ]
    )
)
"""Every method, every part by itself, and every part with one of the other kind."""
SELECTED = [(m, "none", "none", "selection=su_ngram") for m in METHODS if "forget" in objectives(m)]
"""Every method on tokens that a selection chose."""
PRODUCT = list(dict.fromkeys([*EACH, *SELECTED, *(c for c in ALL if tried(c))]))
"""All of these, and every weighting with every perturbation."""


COVERING = list(
    dict.fromkeys([*{c[0]: c for c in of_every_method()}.values(), *rotated(), *OTHERS])
)
"""A few that hold every choice there is; of each method the one with the most parts."""


# ---- built ---------------------------------------------------------------------------------------


@cache
def settings(composition: Composition, *overrides: str) -> Any:
    """The composition's resolved config."""
    method, weighting, perturbation, *more = composition
    chosen = [f"trainer={method}", f"weighting={weighting}", f"perturbation={perturbation}", *more]
    fitting = [setting for choice in chosen for setting in FITTING.get(choice, ())]
    # of two choices the later wins: the composition's own over a test's
    given = ["optimizer=sgd", *fitting, *overrides, *chosen]
    return compose("train", given, configs=CONFIGS, schema=RunSettings)


@cache
def plan_of(composition: Composition, steps: int, n: int = 5) -> list[dict[str, list[Row]]]:
    """The rows of so many steps: in pairs where the method asks for them, as a selection chose."""
    plan = tiny.step_rows(steps, n, prefers=part("trainer", composition[0])[0].prefers)
    return tiny.selected(plan, built(settings(composition).selection))


def steps_of(composition: Composition, rate: float, overrides: Sequence[str]) -> list[str]:
    """The optimizer's settings, at a rate that suits its kind; never clipped."""
    config = settings(composition, *overrides)
    if config.optimizer.name == "sgd":  # the steps of others do not depend on the weights' scale
        scale = max(1.0, config.trainer.forget_weight, config.trainer.retain_weight)
        given = [f"optimizer.learning_rate={rate / scale}"]
    else:
        slow = rate if "optimizer=adamw" in overrides else min(rate, 1e-3)
        given = [f"optimizer.learning_rate={slow}", "optimizer.weight_decay=0.1"]
    return [*given, "optimizer.max_gradient_norm=null"]


def local(model: LanguageModel, optimizer: Optimizer) -> LocalEngine:
    """Plain torch in one process."""
    return LocalEngine(LocalEngine.Config(), model=model, optimizer=optimizer, precision="fp32")


def build(
    composition: Composition,
    plan: Steps,
    *overrides: str,
    rate: float = 0.1,
    model_seed: int = 0,
    knows: Weights | None = None,
    engine: Callable[[LanguageModel, Optimizer], Engine] = local,
    device: torch.device | None = None,
) -> UnlearningTrainer:
    """The composition as its configs describe it, on the tiny model, begun on `plan`.

    `model_seed`: of the trained model, not of the reference. `knows`: the weights of both.
    `device`: where both are; default: where torch makes them.
    """
    config = settings(composition, *overrides, *steps_of(composition, rate, overrides))
    kind, trainer_settings = part_of(config.trainer)
    module, before = tiny.module(seed=model_seed), tiny.language_model()
    if knows is not None:
        module.load_state_dict(knows)
        before.module.load_state_dict(knows)
    torch.manual_seed(config.seed)
    model = tiny.wrapped(built(config.tuning).apply(module))
    if device is not None:
        model.move(device)
        before.move(device)
    optimizer = built(config.optimizer)
    parts = {group: built(config[group]) for group in ("weighting", "perturbation", "averaging")}
    trainer = tiny.assemble(
        kind,
        trainer_settings,
        engine(model, optimizer),
        model if config.tuning.name == "lora" else before,  # itself, its adapters off
        plan,
        optimizer=optimizer,
        **parts,
    )
    trainer.begin(Plan(steps=len(plan), steps_per_epoch=2))
    return trainer

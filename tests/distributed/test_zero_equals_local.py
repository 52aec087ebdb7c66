"""ZeRO in two processes does what plain torch in one process does, case by case.

Two ranks run every case (`zero_worker.py`) and write what they measured; the tests below look at
it. Three steps each, rows of unequal lengths, five per step, so that the two ranks hold unequal
numbers of rows and tokens. Weights move by 1e-4 to 1e-1; the bounds below are of rounding.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from compositions import ABSENT, CONFIGS, COVERING, NOT_INSTALLED

from framework.config import choices
from framework.errors import ConfigError
from framework.zero import PRIVATE, ZeroEngine, check_supported

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(FOLDER))
from zero_worker import PAIRS, WHOLE_STEP, Case  # noqa: E402 - it lies beside this file

pytestmark = pytest.mark.timeout(1900)  # of all workers: see conftest.py

EVERYTHING = {"weighting": "blur", "perturbation": "sam"}
SHIFTED: list[dict[str, Any]] = [
    {"perturbation": "random_smoothing", "weighting": "blur"},
    {"perturbation": "gradient_penalty"},
]
NAN = {"method": "breaks_once", "weighting": "ngdiff", "perturbation": "sam"}
PARTIAL: list[dict[str, Any]] = [  # losses that do not reach every parameter
    {"method": "first_block", "weighting": "ngdiff"},
    {"method": "first_block", "perturbation": "sam"},
    {"method": "first_block_every_other_step"},
]
CONSTRAINED: list[dict[str, Any]] = [
    {"weighting": "primal_dual", "tokens": WHOLE_STEP},
    {"weighting": "primal_dual_relative", "perturbation": "sam"},
    {"weighting": "log_barrier"},
    {"weighting": "primal_dual", "method": "breaks_once"},
    {"weighting": "log_barrier", "method": "breaks_once"},
]
REMEMBERING = {"weighting": "gru", "averaged": True}
AUTOMATIC = {"method": "finetune", "optimizer": "adamw", "automatic_every": 1}
MUON: list[tuple[str, dict[str, Any]]] = [
    *((stage, {"weighting": "blur", "tied": True}) for stage in "0123"),
    ("2", {"offload": "cpu"}),
    ("3", {"offload": "cpu", "tuning": "lora", "perturbation": "sam"}),
    *((stage, {"precision": "bf16"}) for stage in "13"),
]
DUALS = {case["weighting"] for case in CONSTRAINED}


def cases() -> list[Case]:
    """A covering set: every stage with every method, and the other settings one after another."""
    chosen: list[dict[str, Any]] = []
    for stage in "0123":
        variants = [
            {},
            {"method": "npo_kl"},
            # later blocks are left out for the retain rows, and not for the forget rows
            {"method": "npo_states"},
            *SHIFTED,
            {"perturbation": "random_smoothing", "tuning": "layers", "tied": True},
            *PARTIAL,
            NAN,
            {"method": "breaks_once"},
            {**EVERYTHING, "tokens": WHOLE_STEP, "tied": True},
            {"clip": 0.5, "tokens": WHOLE_STEP},
            {**EVERYTHING, "clip": 0.5, "optimizer": "adamw"},
            {"method": "npo_kl", "tuning": "lora", "perturbation": "sam"},
            {"tuning": "layers", "weighting": "ngdiff", "optimizer": "adamw"},
            {"method": "grad_diff", "compare_every": 2, "evaluate": True},
            REMEMBERING,
            AUTOMATIC,
        ]
        chosen += [{"stage": stage, **variant} for variant in variants]
    chosen += [{"stage": stage, **variant} for stage in "23" for variant in CONSTRAINED]
    chosen += [
        {"stage": stage, "method": "npo_kl", "tied": True, "chunked": True} for stage in "23"
    ]
    chosen += [{"stage": "3", "recomputed": how, **EVERYTHING} for how in (True, "selective")]
    # by assistants that rank 0 trains alone while the others wait; in one process by its own
    chosen += [{"stage": stage, "selection": "su", **EVERYTHING} for stage in "23"]
    chosen += [{"stage": "3", "method": "rmu", "tuning": tuning} for tuning in ("layers", "lora")]
    chosen += [
        {"stage": stage, "precision": "bf16", "method": "rmu", "tuning": "layers"}
        for stage in "123"
    ]
    chosen += [{"stage": stage, "optimizer": "muon", **variant} for stage, variant in MUON]
    for stage in "123":
        offloaded = [
            {**EVERYTHING, "clip": 0.5},
            {"optimizer": "adamw", "tied": True},
            *PARTIAL[::2],
            *SHIFTED,
            NAN,
            REMEMBERING,
        ]
        chosen += [{"stage": stage, "offload": "cpu", **variant} for variant in offloaded]
        for offload in ("none", "cpu"):
            rounded = [{**EVERYTHING, "clip": 0.5}, *SHIFTED, PARTIAL[0], PARTIAL[2], NAN]
            chosen += [
                {"stage": stage, "offload": offload, "precision": "bf16", **variant}
                for variant in rounded
            ]
    return [Case(**case) for case in chosen]


def of_configs() -> list[Case]:
    """Every choice in configs/ at stages 2 and 3, and at 0 or 1."""
    return [
        Case(stage, composition=" ".join(composition))
        for i, composition in enumerate(COVERING)
        for stage in (str(i % 2), "2", "3")
    ]


CASES = [*cases(), *of_configs()]
WORKER, ASKED = "zero_worker", [asdict(case) for case in CASES]


def by_name(case: Case) -> str:
    """The test's id."""
    return case.name


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("stage", ["2", "3", "0 or 1"])
def test_every_choice_of_what_is_trained_and_how_is_among_the_cases(stage):
    parts = ("trainer", "weighting", "perturbation")
    found = set()
    for case in of_configs():
        if case.stage in stage.split():
            chosen = case.composition.split()
            found |= {f"{group}={choice}" for group, choice in zip(parts, chosen, strict=False)}
            found |= set(chosen[3:])
    everything = {
        f"{group}={choice}" for group in (*parts, *ABSENT) for choice in choices(CONFIGS, group)
    }
    absent = {f"{group}={choice}" for group, choice in ABSENT.items()}
    assert found >= everything - absent - NOT_INSTALLED


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_three_steps_give_the_weights_of_one_process(session, case):
    limit = {"adamw": 5e-6}.get(case.steps_by, 5e-7) if case.precision == "fp32" else 1e-6
    assert session[case.name]["weights"] <= limit


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_logged_number_is_that_of_one_process(session, case):
    limit = 1e-5 if case.steps_by == "adamw" else 2e-6
    assert session[case.name]["metrics"] <= limit


@pytest.mark.parametrize("case", [c for c in CASES if c.weighting in DUALS], ids=by_name)
def test_every_rank_has_the_same_dual_to_the_bit_and_as_one_process(session, case):
    first, second = session[case.name]["weighting"]
    assert first == second
    assert first["steps"] == (2 if case.method == "breaks_once" else 3)
    assert first == pytest.approx(session[case.name]["right weighting"], rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_shifted_parameters_come_back_bit_for_bit_also_when_a_shift_or_its_use_fails(session, case):
    shift = session[case.name]["shift"]
    assert shift["moved"] > 0.1  # the logits, inside
    assert shift["exact"]


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_shift_starts_from_the_unshifted_parameters(session, case):
    # asked: a vector of length 3, then, still inside, one of length 1 in the opposite direction
    shift = session[case.name]["shift"]
    tolerance = 1e-6 if case.precision == "fp32" else 2e-3
    assert shift["first"] == pytest.approx([3, 1, 1], rel=tolerance)
    assert shift["second"] == pytest.approx([1, 1, 1], rel=tolerance)


EVALUATED = [case for case in CASES if case.evaluate]


@pytest.mark.parametrize("case", EVALUATED, ids=by_name)
def test_evaluation_between_steps_gives_the_same_on_every_rank_and_as_one_process(session, case):
    evaluation = session[case.name]["evaluation"]
    first, second = evaluation["ranks"]
    assert first == second
    for (scores, texts), (right_scores, right_texts) in zip(
        first, evaluation["right"], strict=True
    ):
        assert texts == right_texts
        assert len(texts) == 2 * len(PAIRS)  # greedy and drawn
        for mine, theirs in zip(scores, right_scores, strict=True):
            assert np.allclose(mine, theirs, rtol=0, atol=1e-5)


def test_models_combined_give_the_same_on_every_rank_and_as_one_process(session):
    found = session["combined"]
    first, second = found["ranks"]
    assert first == second
    assert first == found["right"]  # whole batches are dealt out: not even rounding differs
    scores, texts = first
    assert 2 * len(scores) == len(texts) == 2 * len(PAIRS)  # greedy and drawn


def test_what_one_rank_alone_cannot_do_none_does(session):
    first, second = session["agreed"]["ranks"]
    assert first == second
    before, shares, said = first
    assert before
    assert not shares
    assert "type trainer.reference=frozen" in said


def test_a_model_that_is_read_in_shares_says_what_it_says_whole(session):
    found = session["in_shares"]
    first, second = found["ranks"]
    assert first == second
    assert first == found["right"]
    assert sum("mlp" in name for name in found["divided"]) == 6  # three matrices, two blocks


def test_ranks_whose_packs_are_scored_in_part_everywhere_or_not_at_all_read_on_together(session):
    found = session["of_all_kinds"]
    assert found["narrow"]
    for read, trained in found["apart"]:
        assert read <= 1e-5
        assert trained <= 1e-5


def test_what_two_ranks_keep_of_a_model_in_shares_is_what_one_keeps_of_it_whole(session):
    files = [found for rank in session["in_shares"]["reference"] for found in rank]
    assert len(files[0]) == 3 + 2
    assert files == files[:1] * 4


def test_bf16_without_sharding_is_refused():
    with pytest.raises(ConfigError, match=r"zero=0 with precision=bf16.*use zero=1"):
        ZeroEngine(
            ZeroEngine.Config(stage="0"),
            model=tiny.language_model(),
            optimizer=tiny.optimizer("sgd", clip=None),
            precision="bf16",
        )


def test_offload_without_sharding_is_refused():
    with pytest.raises(ConfigError, match="zero=0 cannot offload"):
        check_supported(ZeroEngine.Config(stage="0", offload="cpu"), "fp32")


# ---- what of DeepSpeed this rests on -------------------------------------------------------------

OFFLOAD_ONLY = {"accumulated_grads_in_cpu"}
PUBLIC = {"param_groups", "zero_grad"}
SHARDED = [case for case in CASES if case.stage != "0"]


@pytest.mark.parametrize("case", SHARDED, ids=by_name)
def test_deepspeed_has_every_private_attribute_that_is_named(session, case):
    missing = set(session[case.name]["missing"])
    assert missing <= (OFFLOAD_ONLY if case.offload == "none" else set())


def optimizer_attributes(node: ast.AST) -> set[str]:
    """The attributes that code takes of `self.optimizer`, by whichever name it calls it."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            owner = part.value
            plain = isinstance(owner, ast.Name) and owner.id in {"o", "optimizer"}
            own = isinstance(owner, ast.Attribute) and owner.attr == "optimizer"
            if plain or own:
                names.add(part.attr)
    return names - PUBLIC


@pytest.mark.parametrize(
    ("layout", "parts"),
    [
        ("stages 1 and 2", {"_Partitioned"}),
        ("stage 3", {"_Sharded"}),
    ],
)
def test_the_private_attributes_that_are_named_are_those_that_are_read(layout, parts):
    tree = ast.parse((ROOT / "framework" / "zero.py").read_text())
    nodes = [
        n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name in parts
    ]
    assert {n.name for n in nodes} == parts
    assert set().union(*map(optimizer_attributes, nodes)) == set(PRIVATE[layout])


def test_only_the_layouts_read_the_optimizer_of_deepspeed():
    tree = ast.parse((ROOT / "framework" / "zero.py").read_text())
    layouts = {"_Replicated", "_Partitioned", "_Sharded"}
    rest = [n for n in tree.body if getattr(n, "name", "") not in layouts]
    ours = {"build", "groups", "shaper"}  # of the part that the constructor is given
    assert set().union(*map(optimizer_attributes, rest)) == ours

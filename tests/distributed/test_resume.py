"""A run that was interrupted and taken up equals one that went on, bit for bit.

Ten steps of NPO x BLUR x SAM under AdamW, with dropout, warm-up and decay, against the checkpoint
after five, everything built anew, and five more. Under ZeRO two ranks run every case
(`resume_worker.py`); the tests look at what they wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from framework.errors import WorldSizeError
from framework.parts import Weighting, Weights
from framework.vectors import Gram

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from resume_worker import HALF, STEPS, Case, go_on, measure, same, start  # noqa: E402 - it lies beside

pytestmark = pytest.mark.timeout(1900)  # of all workers: see conftest.py

LOCAL = [
    Case("none"),
    Case("none", precision="bf16"),
    Case("none", tuning="lora"),
    Case("none", tuning="layers", tied=True),
    Case("none", remembering=True),
    Case("none", optimizer="muon"),
    Case("none", retain="kl"),
]
ZERO = [
    *(Case(stage) for stage in "0123"),
    *(Case(stage, precision="bf16") for stage in "123"),
    *(Case(stage, offload="cpu") for stage in "23"),
    *(Case(stage, precision="bf16", offload="cpu") for stage in "23"),
    Case("2", tuning="lora"),
    Case("3", tuning="lora"),
    Case("3", tuning="layers", tied=True),
    *(Case(stage, remembering=True) for stage in "0123"),
    *(Case(stage, precision="bf16", offload="cpu", remembering=True) for stage in "23"),
    *(Case(stage, optimizer="muon") for stage in "023"),
    Case("1", optimizer="muon", precision="bf16"),
    Case("2", optimizer="muon", offload="cpu"),
    Case("2", retain="kl"),
]
WORKER, ASKED = "resume_worker", [asdict(case) for case in ZERO]
FULL_DISKS = [(stage, rank) for stage in "023" for rank in (0, 1)]


def by_name(case: Case) -> str:
    """The test's id."""
    return case.name


def check(found: Mapping[str, Any]) -> None:
    assert found["restored"], "the checkpoint does not hold the weights as they were"
    assert found["masters"], "the master weights differ"
    assert found["forward"], "the weights of the forward pass differ"
    assert found["logged"] == list(range(1, STEPS + 1))
    assert found["metrics"], "the logged numbers differ"
    assert found["random"], "the random states differ"


@pytest.mark.parametrize("case", LOCAL, ids=by_name)
def test_in_one_process_ten_steps_are_five_and_five(case: Case, tmp_path: Path) -> None:
    check(measure(case, tmp_path))


@pytest.mark.parametrize("case", ZERO, ids=by_name)
def test_under_zero_ten_steps_are_five_and_five(case: Case, session) -> None:
    for found in session[case.name]:
        check(found)


class Dual(Weighting):
    """The retain weight climbs with the retain loss, as a dual variable does."""

    needs_losses = True

    def __init__(self) -> None:
        self.climbed = 1.0

    def weights(self, gram: Gram | None) -> Weights:
        return {"forget": 1.0, "retain": self.climbed}

    def update(self, losses: Mapping[str, float]) -> None:
        self.climbed += 0.3 * losses["retain"]

    def state_dict(self) -> dict[str, float]:
        return {"climbed": self.climbed}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.climbed = state["climbed"]


class Forgetful(Dual):
    """A dual variable that is not kept."""

    def state_dict(self) -> dict[str, float]:
        return {"climbed": 1.0}


def test_the_state_of_a_part_is_taken_up(tmp_path: Path) -> None:
    check(measure(Case("none"), tmp_path, weighting=Dual))


def test_a_part_that_lost_its_state_is_noticed(tmp_path: Path) -> None:
    assert not measure(Case("none"), tmp_path, weighting=Forgetful)["masters"]


def test_dropout_is_on_in_these_runs(tmp_path: Path) -> None:
    run, without = start(Case("none"), tmp_path / "a"), start(Case("none"), tmp_path / "b")
    for module in without.engine.model.module.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.0

    assert not same(go_on(run)[1].masters, go_on(without)[1].masters)


def test_writing_checkpoints_changes_nothing(tmp_path: Path) -> None:
    run, without = start(Case("none"), tmp_path / "a"), start(Case("none"), tmp_path / "b")

    assert same(go_on(run, save_every=1)[1].masters, go_on(without)[1].masters)


@pytest.mark.parametrize(("stage", "rank"), FULL_DISKS)
def test_a_full_disk_of_one_rank_is_an_error_on_all_and_leaves_what_was(
    stage: str, rank: int, session
) -> None:
    for found in session[f"full disk of rank {rank}, zero-{stage}"]:
        assert found["message"].startswith("the checkpoint step-00000001 could not be written")
        assert f"(rank {rank}: torch could not write a whole file" in found["message"]
        assert found["left"] == ["step-00000000"]
        assert found["newest"]
        assert found["again"] == "step-00000001"


def test_a_kept_file_that_one_rank_cannot_write_is_an_error_on_all(session) -> None:
    for message in session["kept file"]:
        assert message.startswith("it could not be written to ")
        assert message.endswith("; free some space")


def test_a_checkpoint_of_one_process_is_refused_by_two(session) -> None:
    for message in session["other world size"]:
        assert "was written by 1 process, this run has 2; start it with 1" in message


def test_a_checkpoint_of_two_processes_is_refused_by_one(session, tmp_path: Path) -> None:
    written = session.folder / "zero-2" / "checkpoints" / "step-00000005"
    alone = start(Case("none"), tmp_path)
    message = "was written by 2 processes, this run has 1; start it with 2 (torchrun"

    with pytest.raises(WorldSizeError) as refused:
        alone.checkpoints.restore(written, alone.engine, alone.trainer)
    assert message in str(refused.value)
    assert alone.trainer.steps_done == 0


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_signal_to_one_rank_in_an_evaluation_ends_it_on_all_and_the_next_start_makes_up_for_it(
    stage: str, session
) -> None:
    ranks = session[f"asked while measured, zero-{stage}"]
    # under ZeRO-3 a rank without a pack takes another's pass
    assert [found["passes"][1] for found in ranks] == ([5, 5] if stage == "3" else [5, 4])
    for found in ranks:
        assert found["ended"] == [["SIGUSR1", HALF], [None, STEPS], [None, STEPS]]
        assert found["measured"] == [[], [HALF], [HALF]]
        assert found["same"], "what is measured or trained differs"
        assert found["passes"][0] == 1, "a rank went on while the other waited for it"

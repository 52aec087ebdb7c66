"""A rehearsal tells the memory of a run: what tensors held, counted, against what it says.

Runs of two steps, from no model to the second step taken, of 4 million parameters. In one process
the rehearsal takes the very steps; what it lacks is the values of a cached reference. Under ZeRO
one torchrun of two processes measures every case (`memory_worker.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from launch.ledger import ACTIVATIONS, ON_HOST, Ledger, on_device

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from memory_worker import Case, measured, rehearsed  # noqa: E402 - it lies beside this file

ROOT = FOLDER.parents[1]

LOCAL = [
    Case(precision="bf16", tokens=400),
    Case(method="npo", weighting="blur", perturbation="sam", rows=2),
    Case(method="npo_kl", rows=4),
    Case(method="npo_kl", tuning="lora", rows=4),
    Case(tuning="layers", checkpointing=True),
    Case(precision="bf16", checkpointing="selective"),
]
ZERO = [
    Case("0"),
    Case("1", precision="bf16"),
    Case("2", precision="bf16", rows=2, bucket=100_000_000),
    Case("3", tokens=400),
    Case("3", method="npo", weighting="blur", perturbation="sam", precision="bf16"),
]


def most(ledger: Ledger) -> int:
    return max(map(on_device, ledger.peaks.values()))


@pytest.mark.parametrize("case", LOCAL, ids=str)
def test_in_one_process_the_rehearsal_is_the_run(case: Case) -> None:
    assert most(rehearsed(case)) == pytest.approx(measured(case), rel=0.01)


@pytest.fixture(scope="module")
def under_zero(tmp_path_factory) -> dict[Case, int]:
    folder = tmp_path_factory.mktemp("memory")
    cases, results = folder / "cases.json", folder / "results.json"
    cases.write_text(json.dumps([asdict(case) for case in ZERO]))
    places = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(FOLDER / "memory_worker.py"), cases, results),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(zip(ZERO, json.loads(results.read_text()), strict=True))


@pytest.mark.timeout(900)  # DeepSpeed may compile an operator at its first use
@pytest.mark.parametrize("case", ZERO, ids=str)
def test_under_zero_the_rehearsal_is_within_fifteen_percent(under_zero, case: Case) -> None:
    assert most(rehearsed(case)) == pytest.approx(under_zero[case], rel=0.15)


def test_offload_takes_masters_moments_and_gradients_to_the_host() -> None:
    here, away = (rehearsed(Case("2", offload=offload)).peaks["step"] for offload in (False, True))
    assert here[ON_HOST] == 0
    states = here["masters"] + here["optimizer"]
    assert away["masters"] + away["optimizer"] == 0
    assert away[ON_HOST] >= states + here["masters"]  # and the gradient, as large as the masters


def test_checkpointing_takes_less_than_half_of_the_activations_selectively_a_quarter_less() -> None:
    plain, selective, recomputed = (
        rehearsed(Case(checkpointing=how)).peaks["backward"][ACTIVATIONS]
        for how in (False, "selective", True)
    )
    assert recomputed < plain / 2 < selective < plain * 3 / 4

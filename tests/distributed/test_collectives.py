"""How often the ranks talk in one step, and how much: exactly, by stage and kind of method.

P is the number of parameters. A reduce-scatter of P elements is two `reduce` at stages 1 and 2,
each of one rank's share to that rank: DeepSpeed lays parameters out by rank, so that a bucket of
them belongs to few ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
Tallies = dict[str, dict[str, Any]]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Tallies:
    """Everything that the worker measures, in one process group of two."""
    found = tmp_path_factory.mktemp("collectives") / "results.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node", "2"),
            *(str(FOLDER / "collectives_worker.py"), str(found)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.is_file(), done.stdout[-4000:]
    results: Tallies = json.loads(found.read_text())
    return results


# the work -> its gradients, its micro-batches, and how often the forward's weights change
WORK = {
    "one micro-batch": (1, 1, 1),
    "three micro-batches": (1, 3, 1),
    "grad_diff": (1, 1, 1),
    "blur": (2, 2, 1),
    "npo sam": (3, 3, 3),
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("stage", ["1 fp32", "1 bf16", "2 bf16"])
def test_stages_1_and_2_reduce_each_gradient_to_shares_and_gather_the_weights_once(
    session, stage, work
):
    found = session[f"{stage} {work}"]
    gradients, micro_batches, gathers = WORK[work]
    reduced = gradients if stage.startswith("1") else micro_batches
    size = found["parameters"]
    assert found["large"] == {
        "reduce": [2 * reduced, reduced * size],
        "all-gather": [gathers, gathers * size],
    }


@pytest.mark.parametrize("work", WORK)
def test_stage_3_scatters_each_micro_batch_once_and_gathers_no_more_than_it_reads(session, work):
    found = session[f"3 bf16 {work}"]
    _, micro_batches, gathers = WORK[work]
    size, persistent = found["parameters"], found["persistent"]
    assert found["large"]["reduce-scatter"] == [micro_batches, micro_batches * size]
    # a model of less than 1e9 parameters stays gathered from a forward to its backward pass; what
    # persists is gathered when it has changed
    read = micro_batches * (size - persistent) + gathers * persistent
    assert found["large"]["all-gather"][1] == read
    assert set(found["large"]) == {"reduce-scatter", "all-gather"}


@pytest.mark.parametrize("stage", ["1 fp32", "1 bf16", "2 bf16", "3 bf16"])
def test_beside_these_only_norms_and_products_are_exchanged(session, stage):
    # gathered and added in rank order (`sum_over_ranks`): from each of two ranks, so many numbers
    norm, products, shift = 1, 3, 3
    small = {work: session[f"{stage} {work}"]["small"] for work in WORK}
    assert small["one micro-batch"] == small["three micro-batches"] == {}
    assert small["grad_diff"] == {"all-gather": [1, 2 * norm]}
    assert small["blur"] == {"all-gather": [2, 2 * (products + norm)]}
    # the forget gradient's norm, what was realised of the shift, products, and the direction's norm
    numbers = norm + shift + products + norm
    assert small["npo sam"] == {"all-gather": [4, 2 * numbers]}

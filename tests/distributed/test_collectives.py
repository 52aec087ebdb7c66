"""How often the ranks talk in one step, and how much: exactly, by stage and kind of method.

P is the number of parameters. A reduce-scatter of P elements is two `reduce` at stages 1 and 2,
each of one rank's share to that rank: DeepSpeed lays parameters out by rank, so that a bucket of
them belongs to few ranks. What `launch.bench count` prints comes from `launch.traffic`, which is
held against the collectives here.
"""

from __future__ import annotations

import pytest

from launch.traffic import traffic

WORKER = "collectives_worker"
ASKED: list[object] = []

pytestmark = pytest.mark.timeout(1900)  # of all workers: see conftest.py


# the work -> what `bench count` would call it; a frozen reference is of one process here
WORK: dict[str, dict[str, int]] = {
    "one micro-batch": {"forwards": 1, "backwards": 1, "gradients": 1},
    "three micro-batches": {"forwards": 3, "backwards": 3, "gradients": 1},
    "grad_diff": {"forwards": 1, "backwards": 1, "gradients": 1},
    "blur": {"forwards": 2, "backwards": 2, "gradients": 2},
    "npo sam": {"forwards": 3, "backwards": 3, "gradients": 3, "shifts": 1},
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("stage", ["1 fp32", "1 bf16", "2 bf16"])
def test_stages_1_and_2_reduce_each_gradient_to_shares_and_gather_the_weights_once(
    session, stage, work
):
    found = session[f"{stage} {work}"]
    told = traffic(1 if stage.startswith("1") else 2, **WORK[work])
    size = found["parameters"]
    assert found["large"] == {
        "reduce": [2 * told.reduce_scatters, told.reduce_scatters * size],
        "all-gather": [told.all_gathers, told.all_gathers * size],
    }


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("stage", ["3 bf16", "3 bf16 released"])
def test_stage_3_scatters_each_micro_batch_once_and_gathers_what_it_reads(session, stage, work):
    found = session[f"{stage} {work}"]
    told = traffic(3, **WORK[work])
    # a model of less than 1e9 parameters stays gathered from a forward to its backward pass
    gathers = told.all_gathers if stage.endswith("released") else WORK[work]["forwards"]
    # small parameters persist: they are gathered when they have changed, as all are at stage 2
    changes = traffic(2, **WORK[work]).all_gathers
    size, small = found["parameters"], found["persistent"]
    assert found["large"]["reduce-scatter"] == [told.reduce_scatters, told.reduce_scatters * size]
    assert found["large"]["all-gather"][1] == gathers * (size - small) + changes * small
    assert set(found["large"]) == {"reduce-scatter", "all-gather"}


@pytest.mark.parametrize("stage", ["1 fp32", "1 bf16", "2 bf16", "3 bf16", "3 bf16 released"])
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


def test_what_is_remembered_of_the_order_of_passes_does_not_grow_where_two_alternate(session):
    after_5, after_6, after_11, after_12 = zip(*[iter(session["remembered"])] * 2, strict=True)
    assert after_5 == after_11
    assert after_6 == after_12

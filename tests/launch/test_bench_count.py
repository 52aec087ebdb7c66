"""`launch.bench count`: what a step does, exactly, held against formulas, and against itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest

from framework import Row
from launch.answering_steps import answering
from launch.counting import Work, count, count_directly, count_peers
from launch.shapes import Shape
from launch.traffic import Traffic, traffic

SHAPE = Shape("llama", 32, 96, 1, 4, 2, 128, tied=True)
LENGTHS = {"forget": ((5, 4), (7, 3), (4, 9)), "retain": ((6, 6), (3, 2), (8, 5))}
ONE_GRADIENT = ("grad_diff", "npo", "simnpo", "pdu", "su")


def rows_of_step(*, paired: bool = False) -> dict[str, list[Row]]:
    """No two rows begin alike, but for a prompt's two answers, which are of one length."""
    found: dict[str, list[Row]] = {}
    for objective, lengths in LENGTHS.items():
        found[objective] = []
        for prompt, answer in lengths:
            first = 1 + sum(map(len, found.values()))
            ids = (first, *range(60, 60 + prompt + answer - 1))
            weights = (0.0,) * prompt + (1.0,) * answer
            row = Row(f"{objective}{first}", ids, weights)
            if paired and objective == "forget":
                other = (*ids[:prompt], *range(20, 20 + answer))
                row = replace(row, preferred=Row(f"{row.id}/preferred", other, weights))
            found[objective].append(row)
    return found


@cache
def work(method: str, *, blocks: int = 1, tokens: int = 1000) -> Work:
    shape = replace(SHAPE, blocks=blocks)
    return count_directly(method, shape, rows_of_step(paired=method == "dpo"), tokens=tokens)


def attended(rows: Sequence[Row]) -> int:
    """FLOPs of a block up to its feed-forward layers: of each weight and token, of pairs looked at.

    A multiplication and an addition each.
    """
    width = SHAPE.width
    kept = width // SHAPE.heads * SHAPE.key_value_heads
    pairs = sum(len(row) * (len(row) + 1) // 2 for row in rows)
    return 2 * (2 * width * width + 2 * width * kept) * sum(map(len, rows)) + 4 * width * pairs


def fed(tokens: int) -> int:
    """FLOPs of a block's feed-forward layers."""
    return 2 * 3 * SHAPE.width * SHAPE.inner * tokens


def blocks_forward(rows: Sequence[Row], blocks: int) -> int:
    return blocks * (attended(rows) + fed(sum(map(len, rows))))


def counted(rows: Sequence[Row]) -> int:
    return int(sum(row.weight for row in rows))


def head_forward(rows: Sequence[Row]) -> int:
    return 2 * SHAPE.width * SHAPE.vocabulary * counted(rows)


def forward(rows: Sequence[Row]) -> int:
    """The one block's feed-forward layers, the last of the model, at counted positions only."""
    return attended(rows) + fed(counted(rows)) + head_forward(rows)


def scored(rows: Mapping[str, Sequence[Row]]) -> int:
    return sum(map(counted, rows.values()))


@pytest.mark.parametrize("method", ONE_GRADIENT)
def test_a_step_is_one_pass_there_and_back_over_each_token(method: str) -> None:
    rows, found = rows_of_step(), work(method)
    assert found.flops == 3 * sum(map(forward, rows.values()))
    assert found.tokens == sum(len(row) for given in rows.values() for row in given)
    assert found.logits == scored(rows)
    assert (found.forwards, found.backwards, found.reads) == (1, 1, 0)
    assert (found.gradients, found.shifts) == (1, 0)


@pytest.mark.parametrize("method", ["blur", "ngdiff"])
def test_two_gradients_cost_no_flop_more_than_one(method: str) -> None:
    found = work(method)
    assert (found.flops, found.logits) == (work("grad_diff").flops, work("grad_diff").logits)
    assert (found.forwards, found.backwards, found.gradients) == (2, 2, 2)


def test_sam_reads_the_forget_rows_twice_and_nothing_else() -> None:
    rows, found = rows_of_step(), work("sam")
    assert found.flops == 3 * (2 * forward(rows["forget"]) + forward(rows["retain"]))
    assert (found.forwards, found.backwards, found.gradients, found.shifts) == (3, 3, 3, 1)


def test_one_objective_is_one_pass() -> None:
    rows = rows_of_step()
    for method, name in {"ga": "forget", "undial": "forget", "finetune": "retain"}.items():
        found = work(method)
        assert (found.forwards, found.backwards, found.reads) == (1, 1, 0), method
        # UNDIAL's targets are the head's product of states that are kept, once more
        more = head_forward(rows[name]) if method == "undial" else 0
        assert found.flops == 3 * forward(rows[name]) + more, method


def test_a_cached_reference_costs_its_head_at_most() -> None:
    rows = rows_of_step()
    assert work("npo").reads == work("npo_kl").reads == work("rmu").reads == 0
    assert work("npo_kl").flops == work("npo").flops + head_forward(rows["retain"])


def test_rmu_computes_nothing_behind_its_block() -> None:
    rows, found = rows_of_step(), work("rmu", blocks=2)
    passes = sum(blocks_forward(given, 1) for given in rows.values())
    one = 2 * SHAPE.width * SHAPE.vocabulary  # the logits of one position for each pass
    assert 3 * passes <= found.flops <= 3 * passes + found.forwards * one
    assert found.flops <= 0.6 * work("grad_diff", blocks=2).flops


def test_dpo_reads_a_question_once_for_its_two_answers() -> None:
    rows, found = rows_of_step(paired=True), work("dpo")
    everyone = [*rows["forget"], *rows["retain"]]
    preferred = [row.preferred for row in rows["forget"] if row.preferred is not None]
    twice = [row.given for row in everyone] + preferred
    # what a prompt's tokens look at, and their matrices, are there once
    prompts = [
        replace(row, input_ids=row.input_ids[:n], weights=row.weights[:n])
        for row, n in ((row, row.weights.index(1.0)) for row in preferred)
    ]
    assert found.flops == 3 * (forward(twice) - attended(prompts))
    assert found.tokens == sum(map(len, twice)) - sum(map(len, prompts))
    assert (found.forwards, found.backwards, found.reads) == (1, 1, 0)


@pytest.mark.parametrize(
    "method",
    ["grad_diff", "npo", "simnpo", "su", "blur", "ngdiff", "sam", "dpo", "rmu", "npo_kl"],
)
def test_the_host_waits_for_nothing(method: str) -> None:
    assert work(method).syncs == 0


def test_pdu_waits_for_both_losses_of_which_it_learns_its_dual_variable() -> None:
    assert work("pdu").syncs == 2


def test_micro_batches_cost_passes_and_no_flop() -> None:
    whole, cut = work("npo"), work("npo", tokens=20)
    assert cut.flops == whole.flops
    assert cut.backwards == cut.forwards > whole.forwards
    assert cut.peak_bytes < whole.peak_bytes


@pytest.mark.parametrize("method", ["npo", "rmu"])
def test_two_depths_tell_of_a_deep_model(method: str) -> None:
    deep = replace(SHAPE, blocks=6)  # more than either depth that it is told from
    told, there = count(method, deep, rows_of_step(), tokens=1000), work(method, blocks=6)
    assert replace(told, stretches=()) == replace(there, stretches=())
    assert told.peak_bytes == pytest.approx(there.peak_bytes, rel=0.001)


def padded_forward(rows: Sequence[Row], batch: int) -> int:
    """FLOPs of rows that are as long as the longest of their batch, with logits everywhere."""
    found = 0
    for start in range(0, len(rows), batch):
        given = rows[start : start + batch]
        longest = max(map(len, given))
        full = Row("", (1,) * longest, (0.0,) + (1.0,) * (longest - 1))
        head = 2 * SHAPE.width * SHAPE.vocabulary * longest
        found += len(given) * (blocks_forward([full], 1) + head)
    return found


@pytest.mark.parametrize("batch", [3, 2])
def test_peers_pad_compute_all_logits_and_read_a_reference(batch: int) -> None:
    rows = rows_of_step()
    every = {name: padded_forward(given, batch) for name, given in rows.items()}
    found = {
        method: count_peers(method, SHAPE, rows, batch=batch) for method in ("grad_diff", "npo")
    }
    assert found["grad_diff"].flops == 3 * sum(every.values())
    assert found["npo"].flops == 3 * sum(every.values()) + every["forget"]


def test_peers_are_given_as_many_rows_in_flight_as_ours() -> None:
    found = [count_peers("npo", SHAPE, rows_of_step(), batch=batch) for batch in (3, 1)]
    assert found[0].peak_bytes == found[1].peak_bytes
    assert found[0].flops > found[1].flops


def test_peers_whose_rows_are_of_one_length_have_no_mask_nor_copies_of_keys() -> None:
    row = Row("", tuple(range(1, 10)), (0.0,) * 5 + (1.0,) * 4)
    shorter = Row("", row.input_ids[:-1], row.weights[:-1])
    even = {name: [row] * 8 for name in LENGTHS}
    uneven = {name: [row] * 7 + [shorter] for name in LENGTHS}
    found, masked = (count_peers("npo", SHAPE, rows, batch=8) for rows in (even, uneven))
    assert found.flops == masked.flops == (3 + 4) * padded_forward(even["forget"], 8)
    mask = 4 * 8 * 9**2 * 2  # for each head, in bf16
    assert found.peak_bytes < masked.peak_bytes - mask


def test_what_goes_over_the_wire() -> None:
    one = {"forwards": 1, "backwards": 1, "gradients": 1}
    assert traffic(1, **one) == traffic(2, **one) == Traffic(1, 1)
    assert traffic(3, **one) == Traffic(2, 1)
    two = {"forwards": 2, "backwards": 2, "gradients": 2}
    assert traffic(1, **two) == traffic(2, **two) == Traffic(1, 2)
    assert traffic(3, **two) == Traffic(4, 2)
    assert Traffic(1, 1).bytes_per_rank(1000, ranks=4) == 1000 * (2 + 4) * 3 / 4


def test_answering_takes_fewer_steps_the_more_memory_holds() -> None:
    small, large = answering(["llama-1b", "olmo-7b"]).found
    assert small.steps / small.fixed <= 0.125
    assert small.steps < large.steps
    assert small.refilled < large.refilled < large.steps


def test_the_bench_leaves_every_number(shell, tmp_path: Path) -> None:
    given = ["shape=small", "lengths=[uniform]", "methods=[npo,blur]", "rows=1"]
    ended = shell.run("bench", "count", *given, f"output={tmp_path}")
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "count.json").read_text())
    difference, npo, blur = content["small uniform"]
    assert difference["method"] == "grad_diff"
    assert {*asdict(work("npo"))} - npo.keys() == {"stretches"}
    assert {"peak_bytes", "peers", "collectives"} < npo.keys()
    assert npo["flops"] == difference["flops"]
    assert npo["peers"]["flops"] > npo["flops"]
    assert npo["peers"]["peak_bytes"] > npo["peak_bytes"]
    assert "peak_bytes" not in blur["peers"]  # ours reads objectives apart, theirs all at once
    lines = (tmp_path / "count.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ") for line in reversed(lines)}
    assert float(cells["| npo"][8]) < 1
    assert cells["| blur"][8] == ""
    assert max(map(len, ended.out.splitlines())) <= 100
    assert "grad_diff and 1 more" in ended.out  # whose steps send as much


def test_a_method_or_shape_that_is_not_there_is_refused(shell) -> None:
    assert "there is no 'nop'" in shell.mistake("bench", "count", "methods=[nop]")
    assert "shape: there is no 'x'" in shell.mistake("bench", "count", "shape=x")

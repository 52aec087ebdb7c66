"""`launch.bench training`: the peers' step is our step, FLOPs by hand, and what a person sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from framework import Row, Rows, head
from launch.bench_loop import joint_loss, joint_packs
from launch.bench_peers import LETHE, attending, looked_at, peer_of, step_of, told, ways_of
from launch.bench_steps import aim_of
from launch.bench_training import TrainingBench, possible
from launch.flops import Multiplication, flops_of, useful_flops_of
from launch.peer_style import BEST, METHODS, PUBLISHED, Habits, PeerStyle, Update
from launch.settings import parse
from launch.step_looks import LIMITS, Errors, Look, held_and_done
from launch.training_world import RATE, Stepper, World, make_world


def made(*settings: str) -> World:
    """A tiny model; five rows of each objective, the peers' in batches of two."""
    given = ["shape=tiny", "rows=5", "peer_rows=2", "rounds=2", "precision=fp32", *settings]
    config, _ = parse(given, entry="bench_training", schema=TrainingBench, about="")
    return make_world(config, copied=True)


def left(*settings: str) -> World:
    """A model that has left its reference."""
    world = made(*settings)
    world.leave_reference()
    return world


@pytest.fixture(scope="module")
def world() -> World:
    return left()


def peer(world: World, method: str, ours: Stepper, habits: Habits) -> PeerStyle:
    return peer_of(world, Update(world.model.module, world.optimizer), method, ours, habits)


def errors(world: World, ours: Stepper, theirs: PeerStyle) -> Errors:
    return ours.look().errors(step_of(world, theirs, ours).look())


@pytest.mark.parametrize("habits", [BEST, PUBLISHED], ids=["best", "published"])
@pytest.mark.parametrize("method", METHODS)
def test_the_peers_step_has_our_losses_and_our_gradient(world, method, habits) -> None:
    ours = world.stepper(method, world.batch("lume"))
    found = errors(world, ours, peer(world, method, ours, habits))
    assert found.loss <= 1e-5
    assert found.gradient <= 2e-5


@pytest.mark.parametrize("method", ["npo", "npo_kl"])
def test_in_bf16_they_are_the_same_but_for_its_rounding(method) -> None:
    world = left("precision=bf16")
    ours = world.stepper(method, world.batch("lume"))
    found = errors(world, ours, peer(world, method, ours, BEST))
    assert found.gradient > 1e-4
    assert found.within(LIMITS["bf16"])


def test_a_step_that_differs_is_seen_and_its_ratio_does_not_count(world) -> None:
    ours = world.stepper("npo", world.batch("lume"))
    theirs = peer(world, "npo", ours, BEST)
    theirs.recipe = replace(theirs.recipe, retain_weight=1.1)
    found = errors(world, ours, theirs)
    assert found.loss <= 1e-5
    assert found.gradient > 1e-3
    assert not found.within(LIMITS["fp32"])


def test_a_step_that_is_too_long_is_seen_though_both_are_clipped_to_the_same(world) -> None:
    ours = world.stepper("npo", world.batch("lume"))
    theirs = peer(world, "npo", ours, BEST)
    theirs.recipe = replace(theirs.recipe, retain_weight=2.0, forget_weight=2.0)
    assert errors(world, ours, theirs).gradient > 0.4
    assert world.optimizer.config.max_gradient_norm == 1.0


def test_a_look_moves_nothing_and_the_next_step_does(world) -> None:
    ours = world.stepper("npo", world.batch("lume"))
    theirs = step_of(world, peer(world, "npo", ours, BEST), ours)
    before = world.engine.weights()
    ours.look()
    theirs.look()
    for work in (ours.step, theirs.work):
        moved = world.engine.weights().add_(before, -1.0)
        assert all(float(shard.abs().max()) == 0.0 for shard in moved.shards)
        work()
        moved = world.engine.weights().add_(before, -1.0)
        assert max(float(shard.abs().max()) for shard in moved.shards) > 0.1 * RATE
        world.engine.set_weights(before)


def test_each_round_has_rows_of_its_own_which_all_ways_read(world) -> None:
    draws = world.draws("lume")
    assert draws[1]["forget"] != draws[0]["forget"]
    lengths = [sorted(map(len, rows["forget"])) for rows in draws]
    assert lengths[0] != lengths[1]
    steppers = world.steppers("npo", draws)
    assert [x.tokens for x in steppers] == [world.stepper("npo", x).tokens for x in draws]
    ways = ways_of(world, Update(world.model.module, world.optimizer), "npo", steppers)
    assert {len(steps) for steps in ways.values()} == {2}
    seen = looked_at(world.engine, "npo", ways, tokens=sum(x.tokens for x in steppers))
    assert [len(way.errors) for way in seen] == [0, 2, 2, 2, 2]
    useful = sum(step.look().flops for step in ways[LETHE])
    assert [way.flops for way in seen] == [useful] * 5


def test_what_does_not_fit_is_a_cell_and_the_others_are_measured(world) -> None:
    def too_large() -> Look:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    steppers = world.steppers("npo", world.draws("lume"))
    update = Update(world.model.module, world.optimizer)
    ways = ways_of(world, update, "npo", steppers)
    best, published = "peers at best", "peers as published"
    ways[best][1] = ways[best][1]._replace(look=too_large)
    seen = looked_at(world.engine, "npo", ways, tokens=1)
    assert [way.fits for way in seen] == [True, True, True, False, True]
    (time, memory), numbers = told(world, "lume", seen)
    cells = {line[0]: line[1:] for line in time.rows}
    assert cells[f"npo: {best}"] == ["does not fit", "", "", "", "", ""]
    assert float(cells[f"npo: {published}"][4]) > 0
    held = [line[1] == "does not fit" for line in memory.rows]
    assert held == [False, False, False, True, False]
    assert [each["fits"] for each in numbers] == [True, True, True, False, True]
    seen[0].fits = False  # then there is nothing to be beside
    (time, _), _ = told(world, "lume", seen)
    lacking = [line[1] == "does not fit" for line in time.rows]
    assert lacking == [True, False, False, True, False]
    assert time.rows[4][4:6] == ["", ""]


def test_the_bare_loop_computes_what_ours_does(world) -> None:
    ours = world.stepper("grad_diff", world.batch("tofu"))
    ours.step(rate=0.0)
    metrics = ours.trainer.metrics()
    packs = joint_packs(world.model, ours.rows)
    loss = sum(float(joint_loss(world.model, each).detach()) for each in packs)
    expected = metrics["train/forget/loss"] + metrics["train/retain/loss"]
    assert loss == pytest.approx(expected, abs=1e-5)


def test_both_updates_go_the_same_way() -> None:
    world = made()
    ours = world.stepper("grad_diff", world.batch("lume"))
    theirs = peer(world, "grad_diff", ours, BEST)
    before = world.engine.weights()
    ours.step()
    moved = world.engine.weights().add_(before, -1.0)
    world.engine.set_weights(before)
    with attending(world):
        theirs.step(ours.rows["forget"], ours.rows["retain"])
    also = world.engine.weights().add_(before, -1.0)
    assert 0.1 * RATE < max(float(shard.abs().max()) for shard in moved.shards) < 1.1 * RATE
    apart = also.add_(moved, -1.0).norm() / moved.norm()
    assert float(apart) < 0.01  # of a rounding of weights of 0.02 to a step of 1e-6


@pytest.mark.parametrize(("method", "packs"), [("npo", 1), ("blur", 2)])
def test_in_two_cuts_each_micro_batch_once_and_holds_less(world, method, packs) -> None:
    ours = world.stepper(method, world.batch("lume"))
    half = ours.in_two()
    assert len(ours.batches()) == packs
    assert len(half.batches()) == 2 * packs
    assert len(ours.batches()) == packs  # the model's own budget is what it was
    assert (
        held_and_done(world.engine, half.step)[0] < 0.75 * held_and_done(world.engine, ours.step)[0]
    )


def test_flops_are_those_of_products_and_of_the_pairs_that_a_causal_model_looks_at(world) -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert flops_of(lambda: a @ b) == 2 * 3 * 5 * 7
    product = Multiplication(torch.device("cpu"), torch.float32)
    assert flops_of(product) == product.flops
    rows = Rows.pack([Row("a", (5, 6, 7), (0, 0, 1.0)), Row("b", (8, 9, 7, 8, 9), (0, 0, 0, 0, 1))])
    with torch.no_grad():
        found = flops_of(lambda: world.model.token_log_probs(rows))
    width, inner, blocks, heads, vocabulary = 32, 64, 2, 4, 512
    kept = 2  # of four heads, two are of keys and values
    attention = 2 * 8 * (2 * width * width + 2 * width * (kept * 8))
    looked_at = 4 * heads * 8 * (3 * 4 // 2 + 5 * 6 // 2)
    fed_forward = 2 * 3 * width * inner
    read = 8 * (blocks - 1) + 2  # in the last block at scored tokens alone
    head = 2 * 2 * width * vocabulary
    products = blocks * (attention + looked_at) + read * fed_forward + head
    assert found - products in (0, 16 * 4 * 8)  # rotary angles


def test_memory_is_beside_the_gradient(world) -> None:
    engine, gradient = world.engine, 4 * world.parameters
    parameters = list(world.model.module.parameters())

    def differentiate() -> None:
        sum(p.sum() for p in parameters).backward()

    def wasteful() -> None:
        torch.zeros(3, world.parameters)  # let go at once

    assert held_and_done(engine, differentiate)[0] < 0.1 * gradient
    assert held_and_done(engine, wasteful)[0] == 3 * gradient


def test_the_bench_answers_its_questions_in_tables_and_json(shell, tmp_path: Path) -> None:
    small = ["shape=tiny", "rounds=1", "rows=2", "lengths=[lume]", "precision=fp32"]
    named = ["methods=[npo,wga]", f"output={tmp_path}"]
    ended = shell.run("bench", "training", *small, *named)
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "training.json").read_text())
    assert {"hardware", "packages", "commit", "command", "settings"} <= content.keys()
    ways = {each["way"]: each for each in content["peers"]}
    lethe = ["Lethe", "Lethe, in two", "Lethe, selective"]
    assert list(ways) == [*lethe, "peers at best", "peers as published"]
    assert all(max(each["gradient_errors"]) <= 1e-4 for each in content["peers"][1:])
    assert len({each["useful_flops"] for each in ways.values()}) == 1
    assert [each["method"] for each in content["methods"]] == ["grad_diff", "npo", "wga"]
    assert [each["way"] for each in content["loop"]] == ["bare torch loop", "Lethe's loop"]
    assert [each["tokens"] for each in content["growth"]][-3:] == [256, 1024, 4096]
    assert all(len(each["seconds"]) == 1 for each in content["growth"])
    told = (tmp_path / "training.md").read_text()
    assert "python -m launch.bench" in told
    assert "| npo: peers at best |" in told
    assert "npo: peers at best" in ended.out
    left_out = "the question peers leaves out wga: there is a peers' way of grad_diff, npo,"
    assert [line for line in ended.err.splitlines() if line.startswith(left_out)]
    assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize("method", ["npo", "npo_kl", "blur"])
def test_logits_that_are_computed_again_are_not_useful(world, method, monkeypatch) -> None:
    ours = world.stepper(method, world.batch("uniform"))
    whole = flops_of(ours.step)
    assert useful_flops_of(ours.step) == whole
    monkeypatch.setattr(head, "WHOLE", 0)
    assert flops_of(ours.step) > whole
    assert useful_flops_of(ours.step) == whole


def test_aims_are_those_of_the_machine_and_of_what_the_model_reads_once() -> None:
    one = {x: aim_of(x, sharded=False, shares=True) for x in ("npo", "blur", "dpo", "sam", "ga")}
    assert one == {"npo": 1.03, "blur": 1.05, "dpo": 1.3, "sam": 1.55, "ga": None}
    assert aim_of("ngdiff", sharded=True, shares=True) == 1.10
    assert aim_of("npo", sharded=True, shares=True) == 1.03
    assert aim_of("dpo", sharded=False, shares=False) == 1.55


def test_what_is_no_number_is_no_equal_step() -> None:
    def look(loss: float, *gradient: float) -> Look:
        return Look(0, 0, {"forget": 1.0, "retain": loss}, [torch.tensor(gradient)])

    one, nan = look(2.0, 1.0, 2.0), math.nan
    assert one.errors(one) == Errors(0.0, 0.0)
    for other in (look(nan, 1.0, 2.0), look(2.0, 1.0, nan), look(2.0, math.inf, 2.0)):
        for found in (one.errors(other), other.errors(one)):
            assert not found.within(1e9)
            assert str(found) == "inf"
    empty = Look(0, 0, {"forget": 1.0}, [])
    assert not empty.errors(empty).within(1e9)


def test_unequal_steps_are_marked() -> None:
    assert not Errors(loss=2e-4, gradient=0.0).within(LIMITS["fp32"])
    assert not Errors(loss=0.0, gradient=2e-4).within(LIMITS["fp32"])
    assert str(Errors(loss=2e-7, gradient=1e-5)) == "1e-05"


def test_what_cannot_be_measured_is_told_in_a_line(shell) -> None:
    def told(*settings: str) -> str:
        return shell.mistake("bench", "training", *settings)

    assert "shape: there is no '1b'; there are tiny, small, llama-1b" in told("shape=1b")
    assert "lengths: there is no 'tofo'" in told("lengths=[tofo]")
    assert "questions: there is no 'speed'" in told("questions=[speed]")
    assert "methods: there is no 'npoo'; did you mean 'npo'? (known: grad_diff" in told(
        "methods=[npoo]"
    )
    assert "rounds must be >= 1" in told("rounds=0")
    for asked in ("questions=[peers]", "questions=[peers,loop]"):
        assert "there is no peers' way of ngdiff; there are" in told(asked, "methods=[ngdiff]")
    assert "needs zero=none and tuning=full, got zero=2" in told("questions=[peers]", "zero=2")
    assert "lengths is empty; there are tofu" in told("lengths=[]")
    assert "questions is empty; there are peers" in told("questions=[]")
    assert "methods is empty; name some" in told("methods=[]")


def test_peers_are_asked_where_a_method_has_their_way() -> None:
    def asked(*settings: str) -> list[str]:
        config, _ = parse(settings, entry="bench_training", schema=TrainingBench, about="")
        return possible(config)

    assert asked("methods=[ga]") == ["methods", "loop", "growth"]
    assert asked() == asked("methods=[ga,npo]") == ["peers", "methods", "loop", "growth"]

"""The primal-dual weighting against numbers worked by hand and a problem with a known dual."""

from __future__ import annotations

import math
import warnings

import pytest
import tiny

from framework import ConfigError
from framework.checkpoint import Checkpoints
from framework.parts import Plan
from trainers.grad_ascent import GradAscent, GradDiff
from trainers.log_barrier import LogBarrier
from trainers.npo import NPO
from trainers.primal_dual import DualCapWarning, PrimalDual

PLAN = tiny.step_rows(4)


def part(**settings: object) -> PrimalDual:
    return PrimalDual(PrimalDual.Config(**settings))


def duals(weighting: PrimalDual, *losses: float) -> list[float]:
    """The retain weight after each step of such a retain loss."""
    found = []
    for loss in losses:
        weighting.update({"forget": 7.0, "retain": loss})
        found.append(weighting.weights(None)["retain"])
    return found


def trainer(kind=GradDiff, *, weighting=None, **settings):
    optimizer = tiny.optimizer("sgd", clip=None)
    parts = {"weighting": weighting or part(level=4.0), "optimizer": optimizer}
    config = kind.Config(compare_every=0, **settings)
    model = tiny.language_model()
    return tiny.assemble(kind, config, tiny.local_engine(optimizer), model, PLAN, **parts)


# ---- the dual by hand ----------------------------------------------------------------------------


def test_the_dual_climbs_by_the_rate_times_the_excess():
    # lambda = 100, rate = 5, level = 0.3: + 5 (0.2), + 5 (0.2), - 5 (0.2)
    weighting = part(dual=100.0, rate=5.0, level=0.3)
    assert weighting.weights(None) == {"forget": 1.0, "retain": 100.0}
    assert duals(weighting, 0.5, 0.5, 0.1) == pytest.approx([101, 102, 101])


def test_the_dual_is_never_negative():
    assert duals(part(dual=0.5, rate=5.0, level=0.3), 0.0, 0.0, 0.5) == pytest.approx([0, 0, 1])


def test_the_dual_rests_while_it_warms_up():
    weighting = part(dual=100.0, rate=5.0, level=0.3, warmup=0.2)
    weighting.plan = Plan(steps=10, steps_per_epoch=5)
    assert duals(weighting, 0.5, 0.5, 0.5, 0.5) == pytest.approx([100, 100, 101, 102])


def test_by_the_epoch_the_dual_moves_once_by_the_mean_excess():
    # mean excess 0.2 in the first epoch, -0.1 in the second: 100 + 5 (0.2), then - 5 (0.1)
    weighting = part(dual=100.0, rate=5.0, level=0.3, every="epoch")
    weighting.plan = Plan(steps=4, steps_per_epoch=2)
    assert duals(weighting, 0.6, 0.4, 0.3, 0.1) == pytest.approx([100, 101, 101, 100.5])


def test_every_retain_source_has_a_dual_and_a_level_of_its_own():
    weighting = part(dual=1.0, rate=1.0, level={"a": 0.5, "b": 2.0})
    weighting.balance(("forget", "retain/a", "retain/b"))
    weighting.update({"forget": 7.0, "retain/a": 1.0, "retain/b": 1.5})
    assert weighting.weights(None) == {"forget": 1.0, "retain/a": 1.5, "retain/b": 0.5}
    assert weighting.metrics() == {
        "retain/a/level": 0.5,
        "retain/b/level": 2.0,
        "retain/a/slack": -0.5,
        "retain/b/slack": 0.5,
    }


def test_one_relative_level_is_measured_for_each_source():
    weighting = part(dual=1.0, rate=1.0, level=0.5, relative=True)
    weighting.balance(("forget", "retain/a", "retain/b"))
    weighting.update({"retain/a": 1.0, "retain/b": 2.0})
    assert weighting.levels == {"retain/a": 1.5, "retain/b": 3.0}


@pytest.mark.parametrize("objectives", [("forget", "retain"), ("forget", "retain/a", "retain/c")])
def test_levels_of_other_sources_than_the_runs_are_refused(objectives):
    with pytest.raises(ConfigError, match=r"weighting\.level has a number for a, b; ") as refused:
        part(level={"a": 0.5, "b": 2.0}).balance(objectives)
    assert "\n" not in str(refused.value)


def test_a_relative_level_is_measured_at_the_first_step():
    # (1 + 0.5) 2 = 3, whatever comes later
    weighting = part(dual=1.0, rate=1.0, level=0.5, relative=True)
    assert weighting.metrics() == {}
    assert duals(weighting, 2.0, 3.0, 4.0) == pytest.approx([0, 0, 1])
    assert weighting.metrics() == {"retain/level": 3.0, "retain/slack": -1.0}


def test_at_its_cap_the_dual_stops_and_says_so_once():
    weighting = part(dual=1.0, rate=1.0, level=1.0, cap=2.5)
    with pytest.warns(DualCapWarning, match=r"weighting\.cap=2\.5 after 2 steps") as said:
        found = duals(weighting, 2.0, 2.0, 2.0, 2.0)
    assert found == [2.0, 2.5, 2.5, 2.5]
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_a_dual_that_starts_at_its_cap_and_falls_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert duals(part(dual=2.0, cap=2.0, rate=1.0, level=1.0), 0.5) == [1.5]


# ---- a constrained problem -----------------------------------------------------------------------


def test_it_finds_the_optimum_and_the_dual_of_a_constrained_problem():
    # min x^2 subject to (x - 2)^2 <= 1, halved: x = 1, and 1 = lambda (2 - 1)
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=0.1)
    engine = tiny.point_engine(2.0, optimizer=optimizer)
    weighting = part(dual=0.0, rate=0.2, level=0.5)
    bowls = tiny.Bowls(tiny.Bowls.Config(), engine=engine, optimizer=optimizer, weighting=weighting)
    bowls.a, bowls.b = (0.0,), (2.0,)
    tiny.train(bowls, tiny.step_rows(1, n=1) * 250, tokens=1000)
    assert engine.master_weights()["weight"].item() == pytest.approx(1, abs=1e-5)
    assert bowls.metrics()["train/retain/weight"] == pytest.approx(1, abs=1e-5)
    assert bowls.metrics()["train/retain/slack"] == pytest.approx(0, abs=1e-5)


# ---- in a run ------------------------------------------------------------------------------------


def test_the_retain_weight_on_record_is_the_dual_that_the_step_used():
    run = trainer(weighting=part(dual=2.0, rate=0.5, level=4.0, gamma=3.0))
    before = 2.0
    for step in PLAN:
        tiny.train(run, [step], tokens=30)
        line = run.metrics()
        assert line["train/forget/weight"] == 3
        assert line["train/retain/weight"] == pytest.approx(before)
        assert line["train/retain/level"] == 4
        assert line["train/retain/slack"] == pytest.approx(4 - line["train/retain/loss"])
        before += 0.5 * (line["train/retain/loss"] - 4)


@pytest.mark.parametrize("relative", [False, True])
def test_accumulation_does_not_change_the_dual(relative):
    found = []
    for tokens in (1000, 30):
        run = trainer(weighting=part(level=0.01, relative=relative))
        tiny.train(run, PLAN, tokens=tokens)
        found.append(run.weighting.state_dict())
    assert found[0]["steps"] == found[1]["steps"] == len(PLAN)  # optimizer steps
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    "weighting", [part(level=4.0), LogBarrier(LogBarrier.Config(level=8.0, growth=2.0))]
)
def test_a_step_that_was_skipped_teaches_nothing(weighting):
    run = trainer(tiny.BreaksOnce, on_nonfinite="skip", weighting=weighting)
    tiny.train(run, PLAN[:1], tokens=30)
    before = run.weighting.state_dict()
    tiny.train(run, PLAN[1:2], tokens=30)
    assert run.skipped_steps == 1
    assert run.weighting.state_dict() == before


def test_a_restart_finds_the_dual_the_level_and_the_warm_up(tmp_path):
    settings = {"level": 0.01, "relative": True, "warmup": 0.25}
    run, again = (trainer(weighting=part(**settings)) for _ in range(2))
    for each in (run, again):
        each.begin(Plan(steps=len(PLAN), steps_per_epoch=2))
    tiny.train(run, PLAN[:2], tokens=30)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(checkpoints.save(run.engine, run), again.engine, again)
    assert again.weighting.state_dict() == run.weighting.state_dict()
    assert again.weighting.duals["retain"] != 1
    for each in (run, again):
        tiny.train(each, PLAN[2:], tokens=30)
    assert again.weighting.state_dict() == run.weighting.state_dict()


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PrimalDual, LogBarrier])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "weighting.gamma must be > 0, got 0"),
        ({"gamma": math.nan}, "weighting.gamma must be > 0, got nan"),
        ({"level": 0.0}, "weighting.level must be > 0, got 0"),
        ({"level": -0.3}, "weighting.level must be > 0, got -0.3"),
    ],
)
def test_a_constraint_needs_a_positive_level_and_something_to_minimize(kind, settings, message):
    with pytest.raises(ConfigError) as refused:
        kind.Config(**settings)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "weighting.rate must be > 0, got 0"),
        ({"rate": math.inf}, "weighting.rate must be > 0 and finite, got inf"),
        ({"dual": -1.0}, "weighting.dual must be >= 0, got -1"),
        ({"warmup": 1.0}, "weighting.warmup must be >= 0 and < 1, got 1"),
        ({"dual": 100.0, "cap": 50.0}, "weighting.cap must be >= weighting.dual=100, got 50"),
    ],
)
def test_numbers_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError) as refused:
        part(**settings)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("kind", "settings"), [(GradDiff, {"retain_loss": "none"}), (GradAscent, {})]
)
def test_a_run_without_a_retain_loss_has_no_constraint(kind, settings):
    with pytest.raises(ConfigError, match=r"PrimalDual balances two objectives.*only forget"):
        trainer(kind, **settings)


def test_a_share_of_a_retain_loss_of_zero_is_refused():
    run = trainer(NPO, weighting=part(relative=True), retain_loss="kl")
    with pytest.raises(ConfigError, match="needs a retain loss above 0") as refused:
        tiny.train(run, PLAN[:1], tokens=30)
    assert "\n" not in str(refused.value)

"""A run under a time limit, on a clock that only its own work moves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import tiny
from torch import Tensor

from framework.checkpoint import Checkpoints
from framework.errors import CheckpointError, ConfigError
from framework.loop import Loop, train
from framework.optimizers import AdamW
from framework.sampler import ForgetRetainSampler
from framework.time_limit import TimeLimit
from framework.trainer import Batches

FORGET, RETAIN = tiny.rows(5, name="f"), tiny.rows(9, name="r")


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A tiny run whose work takes as long as it is told."""

    def __init__(self, folder: Path, *, step: float = 1.0, loading: float = 2.0) -> None:
        self.clock = Clock()
        self.seconds = {"step": step, "loading": loading, "model": 3.0, "evaluation": 4.0}
        self.optimizer = AdamW(AdamW.Config(learning_rate=1e-3, schedule="linear"))
        self.engine = tiny.local_engine(self.optimizer)
        self.trainer = tiny.trainer(
            self.engine, self.engine.model, [], method="grad_diff", optimizer=self.optimizer
        )
        self.sampler = ForgetRetainSampler(
            {"forget": FORGET, "retain": RETAIN}, batch_size=2, seed=0
        )
        self.checkpoints = Checkpoints(folder)
        self.slow = 1000, 0.0  # every so many steps take so many seconds more
        self.begun = 0.0  # seconds of steps that a device still has to take
        self.queues = False
        self.kept: list[tuple[int, float]] = []
        self.measured: list[int] = []
        taken = self.trainer.step

        def step_(batches: Batches, *, learning_rate: float) -> None:
            taken(batches, learning_rate=learning_rate)
            every, longer = self.slow
            self.begun += self.seconds["step"] + longer * (self.trainer.steps_done % every == 0)
            if not self.queues:
                self.wait()

        def settle() -> None:
            self.wait()
            settled()

        settled = self.trainer.settle
        self.trainer.step = step_  # type: ignore[method-assign]
        self.trainer.settle = settle  # type: ignore[method-assign]

    def wait(self) -> None:
        self.clock.now += self.begun
        self.begun = 0.0

    def measure(self, step: int) -> None:
        self.clock.now += self.seconds["evaluation"]
        self.measured.append(step)

    def was_measured(self, step: int) -> bool:
        return step in self.measured

    def keep(self, step: int) -> None:
        with self.limit.timed("model"):
            self.clock.now += self.seconds["model"]
        self.kept.append((step, self.clock.now - 100))

    def go(self, minutes: float | None, steps: int = 60, **loop: int) -> dict[str, Tensor]:
        self.limit = TimeLimit(minutes, clock=self.clock)
        self.clock.now += self.seconds["loading"]
        train(
            self.engine,
            self.trainer,
            self.sampler,
            Loop(steps, **loop),
            checkpoints=self.checkpoints,
            watch=self,
            limit=self.limit,
        )
        self.spent = self.clock.now - 100
        return self.engine.state_dict()


def test_a_run_ends_with_time_to_write_its_model(tmp_path: Path) -> None:
    run = Run(tmp_path, step=2.0)
    run.go(1.0)

    # 60 s, of which writing takes 3, with caution 4.5, and a step 2
    assert 60 - 4.5 - 2 < run.spent <= 60 - 4.5
    assert 20 < run.trainer.steps_done < 30


def test_the_model_is_written_after_the_first_step_and_now_and_then(tmp_path: Path) -> None:
    run = Run(tmp_path, step=10.0)
    run.seconds["model"] = 1.0
    run.go(10.0, 30)

    # after 2 s of loading and one step; then every tenth of the ten minutes
    assert run.kept[0] == (1, 13.0)
    written = [time for _, time in run.kept]
    assert len(written) == 5
    assert all(60 <= b - a <= 73 for a, b in pairwise(written))


def test_writing_the_model_takes_a_twentieth_of_the_time_at_most(tmp_path: Path) -> None:
    run = Run(tmp_path, step=20.0)
    run.seconds["model"] = 10.0
    run.go(10.0, 30)

    written = [time for _, time in run.kept]
    assert written[0] == 32
    assert len(written) == 3
    assert all(b - a >= 200 for a, b in pairwise(written))


def test_a_run_that_is_not_cut_is_the_run_without_a_limit(tmp_path: Path) -> None:
    without = Run(tmp_path / "without")
    expected = without.go(None, 12)
    run = Run(tmp_path / "limited")
    found = run.go(5.0, 12)

    assert without.kept == []
    assert run.kept
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_run_that_is_cut_is_the_beginning_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    expected = Run(tmp_path / "without").go(None, 30)
    cut = Run(tmp_path / "cut")
    cut.go(0.5, 30, save_every=100)
    assert 10 < cut.trainer.steps_done < 30

    again = Run(tmp_path / "cut")
    newest = again.checkpoints.newest()
    assert newest is not None
    again.checkpoints.restore(newest, again.engine, again.trainer)
    assert again.trainer.steps_done == cut.trainer.steps_done
    found = again.go(0.5, 30, save_every=100)  # each start has the whole limit
    assert again.trainer.steps_done == 30
    assert all(found[name].equal(expected[name]) for name in expected)


def test_an_evaluation_for_which_there_is_no_time_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(0.5, evaluate_every=3)

    # 2 s of loading, a step, 3 s of writing; at 22 s an evaluation of 4 s would end after 25.5 s
    assert run.measured == [3, 6]
    assert run.trainer.steps_done > 9
    assert run.spent <= 30 - 4.5


def test_what_was_never_timed_comes_after_the_model(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.seconds["evaluation"] = 1000.0
    run.go(1.0, evaluate_every=1)
    assert run.kept == [(1, 6.0)]  # 2 s of loading, a step, 3 s of writing
    assert run.measured == [1]

    (tmp_path / "file").touch()
    run = Run(tmp_path / "file")  # no checkpoint can be written there
    with pytest.raises(CheckpointError):
        run.go(0.5, save_every=100)
    assert run.trainer.steps_done > 9
    assert run.kept[-1][0] == run.trainer.steps_done


def test_the_slowest_of_the_last_steps_is_expected_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.slow = 5, 9.0
    run.go(1.0)

    # the last slow one ends at 43 s; after 46.5 s there is no time for another, should it be next
    assert 45 < run.spent <= 46.5 + 1


@pytest.mark.parametrize("minutes", [0.01, 0.1])
def test_a_limit_that_is_over_before_the_first_step_is_one_line(
    minutes: float, tmp_path: Path
) -> None:
    run = Run(tmp_path, loading=20)
    with pytest.raises(ConfigError) as error:
        run.go(minutes)

    assert str(error.value) == (
        f"time_limit={minutes:g} leaves no time for a step: getting ready took 20 s, and writing "
        "the model may take as long; set time_limit to 1.0 or more minutes"
    )
    assert run.trainer.steps_done == 0


def test_the_limit_that_is_advised_is_enough(tmp_path: Path) -> None:
    run = Run(tmp_path, loading=20)
    run.go(1.0)

    assert run.trainer.steps_done > 0


@pytest.mark.parametrize("log_every", [1, 4])
def test_what_will_not_fit_is_said_early(
    log_every: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, step=3.0)
    run.queues = True  # as on a GPU, where a step is begun at once and waited for later
    run.go(1.0, 400, log_every=log_every)
    first, *_, last = capsys.readouterr().err.splitlines()

    done = run.trainer.steps_done
    assert first == (
        f"at 3 s a step about {done} of 400 steps fit into time_limit=1; the learning rate's "
        f"schedule stays that of all (max_steps={done} would fit it to these)"
    )
    assert last == f"time_limit: {done} of 400 steps are taken"


def test_nothing_is_said_where_all_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path).go(1.0, 8)

    assert capsys.readouterr().err == ""

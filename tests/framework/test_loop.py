"""The loop: which steps are taken, and when it logs, saves and evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from framework import Tracker
from framework.checkpoint import Checkpoints
from framework.loop import Loop, train
from framework.optimizers import AdamW
from framework.sampler import ForgetRetainSampler
from framework.trainer import UnlearningTrainer
from trainers.grad_ascent import GradDiff

FORGET, RETAIN = tiny.rows(5, name="f"), tiny.rows(9, name="r")


class Run:
    """A tiny run, its record and its checkpoints in a folder."""

    def __init__(self, folder: Path, *, method: str = "grad_diff") -> None:
        self.folder = folder
        self.optimizer = AdamW(AdamW.Config(learning_rate=1e-3, schedule="linear", warmup=0.25))
        self.engine = tiny.local_engine(self.optimizer)
        self.trainer: UnlearningTrainer = tiny.trainer(
            self.engine, self.engine.model, [], method=method, optimizer=self.optimizer
        )
        sets = {"forget": FORGET, "retain": RETAIN}
        self.sampler = ForgetRetainSampler(
            {name: sets[name] for name in self.trainer.objectives}, batch_size=2, seed=0
        )
        self.evaluated: list[int] = []
        self.was_training: list[bool] = []

    def train(self, loop: Loop) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        tracker = Tracker(None, self.folder, run_config={}, name="", job_type="")
        train(
            self.engine,
            self.trainer,
            self.sampler,
            loop,
            tracker=tracker,
            checkpoints=Checkpoints(self.folder / "checkpoints", keep=100),
            watch=tiny.Watching(self.evaluate),
        )
        tracker.finish()
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def evaluate(self, step: int) -> None:
        self.evaluated.append(step)
        with self.trainer.model.evaluating():
            self.was_training.append(self.trainer.model.module.training)

    def saved(self) -> list[int]:
        return sorted(int(p.name[5:]) for p in (self.folder / "checkpoints").glob("step-*"))


def test_it_takes_the_steps_it_is_told_and_logs_each(tmp_path: Path) -> None:
    run = Run(tmp_path)
    logged = run.train(Loop(steps=4))

    assert run.trainer.steps_done == 4
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert run.saved() == []
    assert run.evaluated == []


def test_a_step_is_made_ready_before_what_is_logged_of_the_one_before_is_waited_for(
    tmp_path: Path,
) -> None:
    class Noting(GradDiff):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.noted: list[str] = []

        def micro_batches(self, rows: Any, step: int, **settings: Any) -> Any:
            self.noted.append(f"made {step}")
            return super().micro_batches(rows, step, **settings)

        def metrics(self) -> dict[str, float]:
            self.noted.append(f"logged {self.steps_done}")
            return super().metrics()

    run = Run(tmp_path)
    trainer = Noting(Noting.Config(), engine=run.engine, optimizer=run.optimizer)
    train(run.engine, trainer, run.sampler, Loop(steps=2))
    assert trainer.noted == ["made 0", "made 1", "logged 1", "logged 2"]
    train(run.engine, trainer, run.sampler, Loop(steps=2))  # it is done already
    assert len(trainer.noted) == 4


def test_a_line_holds_what_a_person_asks_about_a_step(tmp_path: Path) -> None:
    [line] = Run(tmp_path).train(Loop(steps=1))

    assert {
        "step",
        "time",
        "train/epoch",
        "train/forget/loss",
        "train/forget/weight",
        "train/retain/loss",
        "train/retain/weight",
        "train/gradient_norm",
        "train/learning_rate",
        "train/tokens_per_second",
        "train/peak_memory_gib",
    } <= line.keys()
    assert line["train/tokens_per_second"] > 0
    assert line["train/peak_memory_gib"] > 0


def test_epochs_count_the_forget_rows(tmp_path: Path) -> None:
    logged = Run(tmp_path).train(Loop(steps=6))

    # 5 forget rows, 2 a step: steps of 2, 2 and 1 rows.
    assert [line["train/epoch"] for line in logged] == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]


def test_epochs_of_fine_tuning_count_the_rows_to_learn(tmp_path: Path) -> None:
    logged = Run(tmp_path, method="finetune").train(Loop(steps=2))

    assert [line["train/epoch"] for line in logged] == [pytest.approx(2 / 9), pytest.approx(4 / 9)]
    assert not any("forget" in name for name in logged[0])


def test_the_learning_rate_follows_the_whole_run(tmp_path: Path) -> None:
    logged = Run(tmp_path).train(Loop(steps=8))

    # A quarter of 8 steps warms up, 1/3 and 2/3 of the peak; then down to 0 at the ninth.
    up = [1 / 3, 2 / 3]
    down = [1 - k / 6 for k in range(6)]
    expected = [pytest.approx(1e-3 * factor) for factor in [*up, *down]]
    assert [line["train/learning_rate"] for line in logged] == expected


def test_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    logged = run.train(Loop(steps=7, log_every=3, save_every=2, evaluate_every=3))

    assert [line["step"] for line in logged] == [3, 6, 7]
    assert run.saved() == [2, 4, 6, 7]
    assert run.evaluated == [3, 6]  # the end is measured by whoever runs the loop


def test_nothing_is_logged_saved_or_evaluated_where_it_says_never(tmp_path: Path) -> None:
    run = Run(tmp_path)

    assert run.train(Loop(steps=3, log_every=0)) == []
    assert (run.saved(), run.evaluated) == ([], [])


def test_a_run_that_is_done_takes_no_step_and_saves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(Loop(steps=3))
    before = run.engine.master_weights()
    logged = run.train(Loop(steps=3, save_every=1))

    assert len(logged) == 3
    assert run.saved() == []
    after = run.engine.master_weights()
    assert all(after[name].equal(before[name]) for name in after)


def test_dropout_is_on_in_training_and_off_in_evaluation(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.model.module.eval()
    run.train(Loop(steps=3, evaluate_every=1))  # the model after the last step is the caller's

    assert run.was_training == [False, False]
    assert not run.trainer.model.module.training


def test_steps_that_are_logged_are_steps_whose_gradients_are_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.config.compare_every = 4
    logged = run.train(Loop(steps=8, log_every=2))

    assert [line["step"] for line in logged if "train/cosine" in line] == [4, 8]

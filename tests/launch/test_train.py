"""`launch.train`: what a run leaves, how it is repeated, how it goes on after it was cut off."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from interrupted import Interrupted
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from framework import checkpoint
from framework.config import choices
from framework.evaluation.aggregates import NAMES as AGGREGATES
from framework.lock import LOCK, locked
from launch.dry_run import GUESSED
from launch.settings import CONFIGS, RunSettings, label, parse

ROOT = Path(__file__).parents[2]
SCHEDULE = ["optimizer.schedule=cosine", "optimizer.warmup=0.3", "perturbation=sam"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the kernel refuses to let a file grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def steps_in(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(shell, runs: Path) -> Path:
    """A run of six steps that nothing cut off, made once."""
    folder = runs / "whole"
    if not folder.exists():
        shell.train(f"output={folder}", "max_steps=6", "save_every=3", *SCHEDULE)
    return folder


@pytest.fixture
def killed(shell, runs: Path) -> Callable[[str, int], list[str]]:
    """Kills a run like `whole` at a checkpoint, and gives the arguments that it was begun with."""

    def kill(when: str, step: int) -> list[str]:
        folder = runs / f"{when}-{step}"
        arguments = shell.small(f"output={folder}", "max_steps=6", "save_every=3", *SCHEDULE)
        ended = subprocess.run(
            [sys.executable, str(ROOT / "tests/launch/killed.py"), when, str(step), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            timeout=280,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        return arguments

    return kill


@pytest.mark.parametrize("entry", ["train", "eval", "selection"])
def test_help_lists_every_group_and_its_choices(entry: str, shell) -> None:
    ended = shell.run(entry, "--help")
    words = ended.out.replace(",", " ").split()

    assert (ended.code, ended.err) == (0, "")
    folders = {path.name for path in CONFIGS.glob("*/")} - {"attack", "sweep"}
    groups = ["benchmark", "model"] if entry == "eval" else sorted(folders)
    for group in groups:
        assert any(word.startswith(f"{group}=") for word in words), group
        assert set(choices(CONFIGS, group)) <= set(words), group
    assert f"python -m launch.{entry}" in ended.out
    assert {"--config", "FILE"} <= set(words)
    assert ("--dry-run" in words) == (entry == "train")


@pytest.mark.parametrize("entry", ["demo", "report"])
def test_help_shows_the_command_and_its_options(entry: str, shell) -> None:
    ended = shell.run(entry, "--help")

    assert (ended.code, ended.err) == (0, "")
    assert f"python -m launch.{entry}" in ended.out
    assert "--output" in ended.out


def test_a_run_leaves_what_it_promises(whole: Path, shell, evaluation) -> None:
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "model",
        "reference",
    } == {path.name for path in whole.iterdir()}
    (reference,) = (whole / "reference").iterdir()
    assert reference.stat().st_nlink >= 2  # for other runs to share
    assert steps_in(whole) == [1, 2, 3, 4, 5, 6, 6]  # the last line holds the evaluation
    record = json.loads((whole / "run.json").read_text())
    assert (record["finished"], record["steps"], record["world_size"]) == (True, 6, 1)
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["step-00000006"]
    measured = evaluation(whole)
    assert measured["label"] == "sam x npo"
    assert measured["target"]["metrics"].keys() == measured["gold"]["metrics"].keys()
    assert set(measured["headline"]) <= measured["metrics"].keys()
    assert set(AGGREGATES) <= measured["metrics"].keys()
    assert measured["gold"]["metrics"]["aggregate/privacy_of_gold"] == 1


def test_a_second_run_in_one_folder_is_refused(shell, tmp_path: Path) -> None:
    with locked(tmp_path):
        ended = shell.run("train", *shell.small(f"output={tmp_path}", "max_steps=1"))
        left = [path.name for path in tmp_path.iterdir()]

    assert (ended.code, left) == (2, [LOCK])
    assert ended.err.startswith(f"error: {tmp_path} is in use: process {os.getpid()} on ")


def test_no_secret_of_the_environment_is_written_or_printed(shell, tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": "hf_" + "s3cr3t" * 6, "WANDB_API_KEY": "c0ffee" * 6 + "abcd"}
    arguments = [text for text in shell.small() if not text.startswith("tracker=")]
    # another test's W&B has its own process in this one's environment
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "launch.train", "trainer=finetune", "finetune_on=target"),
            *("max_steps=1", "tracker=wandb", "tracker.mode=offline"),
            *(f"output={tmp_path / 'run'}", *arguments),
        ],
        env={**kept, "PYTHONPATH": str(ROOT), **secrets},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )

    assert ended.returncode == 0, ended.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".yaml", ".json", ".jsonl", ".wandb", ".pt"}
    for secret in secrets.values():
        assert secret not in ended.stdout + ended.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_run_that_is_warned_while_it_measures_ends_and_measures_again(
    shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_STOP_FILE", str(tmp_path / "stopped"))
    monkeypatch.setattr(Interrupted, "left", 0)
    arguments = shell.small(
        *("trainer=finetune", "finetune_on=target", "max_steps=2", "save_every=2"),
        *("benchmark.class=interrupted.Interrupted", f"output={tmp_path / 'run'}"),
    )
    first = shell.run("train", *arguments)
    left = (tmp_path / "stopped").read_text(), (tmp_path / "run/evaluation.json").exists()
    second = shell.run("train", *arguments, "resume=auto")

    assert (first.code, left) == (0, ("2\n", False))
    assert "SIGUSR1: stopped while measuring; resume=auto measures the model again" in first.err
    assert second.code == 0, second.err
    assert (tmp_path / "run/evaluation.json").exists()


def test_a_signal_in_an_evaluation_in_training_is_answered_there_and_nothing_is_lost(
    shell, weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LETHE_STOP_FILE", str(tmp_path / "stopped"))
    arguments = shell.small(
        *("trainer=finetune", "finetune_on=target", "max_steps=4", "save_every=0"),
        *("evaluate=false", "evaluate_every=2", "keep_best=retain/rouge"),
        "benchmark.class=interrupted.Interrupted",
    )

    def left(run: Path) -> tuple[object, ...]:
        record = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        machine = {"time", "train/tokens_per_second", "train/peak_memory_gib"}
        kept = [{k: v for k, v in line.items() if k not in machine} for line in record]
        return kept, json.loads((run / "best.json").read_text())

    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    monkeypatch.setattr(Interrupted, "left", 0)
    first = shell.run("train", *arguments, f"output={run}")
    assert (first.code, (tmp_path / "stopped").read_text()) == (0, "2\n")
    assert "SIGUSR1: stopped after step 2 of 4; resume=auto goes on from there" in first.err
    assert steps_in(run) == [1, 2]
    assert not (run / "best.json").exists()

    second = shell.run("train", *arguments, f"output={run}", "resume=auto")
    whole = shell.run("train", *arguments, f"output={undisturbed}")
    assert (second.code, whole.code) == (0, 0), second.err
    assert steps_in(run) == [1, 2, 2, 3, 4, 4]
    assert left(run) == left(undisturbed)
    assert same(weights(run), weights(undisturbed))


@pytest.mark.parametrize(
    ("measured_before", "steps", "told"),
    [
        (1, [1, 2, 2, 3, 4], "stopped after step 4 of 4"),
        (2, [1, 2, 2, 3, 4, 4], "measures the mod"),
    ],
)
def test_a_signal_after_the_last_step_has_nothing_measured_twice(
    measured_before: int,
    steps: list[int],
    told: str,
    shell,
    evaluation,
    monkeypatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LETHE_STOP_FILE", str(tmp_path / "stopped"))
    monkeypatch.setattr(Interrupted, "left", measured_before)
    run = tmp_path / "run"
    arguments = shell.small(
        *("trainer=finetune", "finetune_on=target", "max_steps=4", "save_every=2"),
        *("evaluate_every=2", "keep_best=retain/rouge", f"output={run}"),
        "benchmark.class=interrupted.Interrupted",
    )
    first = shell.run("train", *arguments)
    assert (first.code, (tmp_path / "stopped").read_text()) == (0, "4\n")
    assert told in first.err
    assert steps_in(run) == steps

    second = shell.run("train", *arguments, "resume=auto")
    assert second.code == 0, second.err
    assert steps_in(run) == [1, 2, 2, 3, 4, 4, 4]  # trained, chosen among, measured at the end
    assert evaluation(run)["metrics"]["retain/rouge"] is not None


def test_the_result_is_a_plain_transformers_model(whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    prompt = tokenizer("Q: Where was", return_tensors="pt", return_token_type_ids=False)

    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]


def test_a_resolved_config_repeats_the_run_bit_for_bit(
    whole: Path, shell, weights, evaluation, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    ended = shell.run("train", "--config", str(whole / "config.yaml"), f"output={again}")

    assert ended.code == 0, ended.err
    assert same(weights(again), weights(whole))
    assert evaluation(again) == evaluation(whole)


def test_an_evaluation_of_a_run_gives_the_runs_own_numbers(
    whole: Path, shell, evaluation, tmp_path: Path
) -> None:
    ended = shell.run("eval", f"run={whole}", f"output={tmp_path / 'new' / 'folder'}")

    assert ended.code == 0, ended.err
    found, own = evaluation(tmp_path / "new" / "folder"), evaluation(whole)
    assert found["provenance"]["models"]["path"].pop("path") == str(whole / "model")
    assert own["provenance"]["models"]["path"].pop("path") == "model"
    assert found == own


def test_a_run_measured_on_another_benchmark_keeps_both_results(
    whole: Path, shell, evaluation, tmp_path: Path
) -> None:
    row = {"subject": "virology", "question": "Why?", "choices": list("wxyz"), "answer": 0}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    own = evaluation(whole)
    asked = ("benchmark=mmlu", f"benchmark.path={tmp_path}", "benchmark.scoring=cloze")
    ended = shell.run("eval", f"run={whole}", *asked)
    assert ended.code == 0, ended.err
    assert evaluation(whole / "mmlu")["metrics"]["mmlu/accuracy"] in (0, 1)
    assert evaluation(whole) == own


def test_another_seed_is_another_run(
    whole: Path, shell, target: Path, weights, tmp_path: Path
) -> None:
    config = str(whole / "config.yaml")
    other = tmp_path / "other"
    prepared = [f"model.path={target}/model", "model=pretrained"]
    ended = shell.run(
        "train", "--config", config, f"output={other}", "seed=1", "evaluate=false", *prepared
    )

    assert ended.code == 0, ended.err
    assert not same(weights(other), weights(whole))
    assert not (other / "evaluation.json").exists()


def test_a_folder_that_holds_a_run_is_not_written_over(whole: Path, shell, weights) -> None:
    before = weights(whole)
    said = shell.mistake("train", *shell.small(f"output={whole}"))

    assert said.startswith(f"{whole} already holds a run; choose another output=..., or go on with")
    assert same(weights(whole), before)


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(whole: Path, shell) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    ended = shell.train(f"output={whole}", "max_steps=6", "save_every=3", *SCHEDULE, "resume=auto")

    assert (ended.out, ended.err) == ("", f"{whole} is finished; nothing is left to do\n")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize(
    "changed", ["optimizer.learning_rate=1e-3", "seed=3", "zero=2", "max_steps=7"]
)
def test_a_run_is_not_taken_up_under_other_settings(changed: str, whole: Path, shell) -> None:
    key = changed.partition("=")[0]
    said = shell.mistake(
        "train",
        *shell.small(f"output={whole}", "max_steps=6", "save_every=3", *SCHEDULE),
        *("resume=auto", changed),
    )

    assert said.startswith(f"{whole} was begun with {key}")
    assert said.endswith(
        f"resume it with its own settings (--config {whole}/config.yaml resume=auto), "
        "or choose another output"
    )


def test_a_run_killed_while_it_wrote_a_checkpoint_goes_on_from_the_one_before(
    whole: Path, shell, killed, weights, evaluation, runs: Path
) -> None:
    cut = runs / "before-6"
    arguments = killed("before", 6)
    assert sorted(p.name for p in (cut / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000006.partial",
    ]
    assert not (cut / "model").exists()

    ended = shell.run("train", *arguments, "resume=auto")
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[0] == f"resuming {cut} at step 3"
    assert steps_in(cut) == [1, 2, 3, 4, 5, 6, 6]
    assert same(weights(cut), weights(whole))
    assert evaluation(cut) == evaluation(whole)


def test_a_killed_run_meets_a_full_disk_and_then_goes_on_as_if_nothing_had_happened(
    whole: Path, shell, killed, weights, evaluation, runs: Path
) -> None:
    cut = runs / "after-3"
    arguments = killed("after", 3)
    with files_of_at_most(30_000):
        full = shell.run("train", *arguments, "resume=auto")
    assert full.code == 2
    resuming, said = full.err.splitlines()
    assert resuming == f"resuming {cut} at step 3"
    assert said.startswith("error: the checkpoint step-00000006 could not be written to ")
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["step-00000003"]

    ended = shell.run("train", *arguments, "resume=auto")
    assert ended.code == 0, ended.err
    assert steps_in(cut) == [1, 2, 3, 4, 5, 6, 6]
    assert same(weights(cut), weights(whole))
    assert evaluation(cut) == evaluation(whole)


@pytest.mark.parametrize(
    ("save_every", "goes_on"), [(0, "begins again"), (3, "goes on from the newest checkpoint")]
)
def test_a_model_without_room_is_told_with_what_resume_can_go_on_from(
    save_every: int, goes_on: str, whole: Path, shell, tmp_path: Path
) -> None:
    arguments = shell.small(f"output={tmp_path}", "max_steps=6", f"save_every={save_every}")
    arguments += [*SCHEDULE, "evaluate=false", "resume=auto"]
    if save_every:  # a checkpoint is larger than the model: it must be there already
        shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    with files_of_at_most(30_000):
        full = shell.run("train", *arguments)
    assert full.code == 2
    said = full.err.splitlines()[-1]
    assert said.startswith(f"error: the model could not be written to {tmp_path / 'model'} (")
    assert said.endswith(f"free some space and start again: resume=auto {goes_on}")
    ended = shell.run("train", *arguments)
    assert ended.code == 0, ended.err
    assert (tmp_path / "model").is_dir()


def test_a_run_against_the_model_before_goes_on_to_the_bit_without_the_cache(
    shell, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("trainer.retain_loss=kl", "max_steps=6", "save_every=3", "evaluate=false")
    right, cut = tmp_path / "right", tmp_path / "cut"
    shell.train(f"output={right}", *settings)
    finish = checkpoint._finish

    def end(*given: Any) -> None:
        finish(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_finish", end)
        ended = shell.run("train", *shell.small(f"output={cut}", *settings))
    assert (ended.code, steps_in(cut)) == (130, [1, 2, 3])
    assert ended.err == "SIGINT: stopped after step 3 of 6; resume=auto goes on from there\n"
    files = {path.name: path.read_bytes() for path in (cut / "reference").iterdir()}
    shutil.rmtree(shell.cache / "reference")

    shell.train(f"output={cut}", *settings, "resume=auto")
    assert steps_in(cut) == [1, 2, 3, 4, 5, 6]
    assert same(weights(cut), weights(right))
    assert {path.name: path.read_bytes() for path in (cut / "reference").iterdir()} == files
    assert sorted(files) == ["log_probs.safetensors", "logits.safetensors"]


def test_a_run_goes_on_where_nothing_can_be_kept_for_others(
    shell, weights, whole: Path, target: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ("max_steps=6", "save_every=0", "evaluate=false", *SCHEDULE)
    model = ("model=pretrained", f"model.path={target}/model")
    arguments = [x for x in shell.small(*settings) if not x.startswith(("model", "cache"))]
    ended = shell.run("train", *arguments, *model, "cache=/proc/none", f"output={run}")

    assert ended.code == 0, ended.err
    told = "reference: not kept for other runs in /proc/none/reference (No such file or directory)"
    assert ended.err.splitlines() == [told, f"run: {run}"]
    (reference,) = (run / "reference").iterdir()
    assert reference.stat().st_nlink == 1
    assert weights(run).keys() == weights(whole).keys()
    said = shell.mistake("train", *shell.small(*settings), "cache=/proc/none")
    assert said == (
        "cache=/proc/none is where the target and gold models are to be made, and nothing can be "
        "written there (No such file or directory); type cache=DIR, a folder of yours"
    )


@pytest.mark.usefixtures("target")
def test_a_run_says_what_it_did_not_read_since_another_run_had_read_it(
    shell, tmp_path: Path
) -> None:
    settings = ("max_steps=1", "evaluate=false", "save_every=0")
    shell.train(f"output={tmp_path / 'first'}", *settings)
    ended = shell.train(f"output={tmp_path / 'second'}", *settings)
    assert ended.err.splitlines() == [
        f"reference: log_probs taken from {shell.cache}/reference, where another run left them",
        f"run: {tmp_path / 'second'}",
    ]
    said = shell.mistake(
        *("train", *shell.small(*settings), f"output={tmp_path / 'third'}"),
        *("optimizer.learning_rate=1e-3", "time_limit=1e-9"),
    )
    assert said.startswith("time_limit=1e-09 leaves no time for a step: ")


def test_resume_auto_without_a_checkpoint_begins_at_the_beginning(
    whole: Path, shell, weights, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shell.train(f"output={run}", "max_steps=6", "save_every=0", *SCHEDULE, "resume=auto")

    assert same(weights(run), weights(whole))
    assert not (run / "checkpoints").exists()


@pytest.mark.usefixtures("target")
def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint(
    shell, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = shell.mistake(
        "train",
        *shell.small(f"output={run}", "trainer=grad_ascent", "max_steps=9", "save_every=1"),
        *("optimizer.learning_rate=1e30", "optimizer.max_gradient_norm=null", "evaluate=false"),
    )

    assert said.startswith("the gradient became NaN or infinite at step 2 (forget loss ")
    again = f"--config {run}/config.yaml output=DIR"
    assert said.endswith(
        "); lower optimizer.learning_rate, or set trainer.on_nonfinite=skip; in another output: "
        f"{again} and what you change"
    )
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run / "model").exists()
    assert steps_in(run) == [1]

    lower = ["optimizer.learning_rate=1e-4", "max_steps=2"]
    typed = again.replace("DIR", str(tmp_path / "again")).split()
    ended = shell.run("train", *typed, *lower)
    assert ended.code == 0, ended.err
    assert steps_in(tmp_path / "again") == [1, 2]


@pytest.mark.parametrize(
    ("given", "folder", "shown"),
    [
        ([], "runs/mini-npo-seed0", "npo"),
        (["weighting=blur"], "runs/mini-npo-blur-seed0", "blur x npo"),
        (["retain_by=task"], "runs/mini-npo-by_task-seed0", "by_task x npo"),
        (["optimizer=muon"], "runs/mini-npo-muon-seed0", "muon x npo"),
    ],
)
def test_what_tells_runs_apart_is_in_their_folder_and_label(
    given: list[str], folder: str, shown: str
) -> None:
    config, _ = parse(
        ["trainer=npo", "benchmark=mini", *given], entry="train", schema=RunSettings, about=""
    )

    assert config.output == folder
    assert label(config) == shown


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(shell, tmp_path: Path) -> None:
    before = sorted(shell.cache.glob("*"))
    ended = shell.run(
        "train",
        *shell.small(f"output={tmp_path / 'run'}", "epochs=2", f"cache={tmp_path / 'cache'}"),
        "--dry-run",
    )

    assert (ended.code, ended.err) == (0, "")
    assert "trainer:\n  name: npo\n" in ended.out
    for what in ("parameters", "steps per epoch", "device memory per rank", "run folder"):
        assert what in ended.out, ended.out
    assert GUESSED not in ended.out
    assert list(tmp_path.iterdir()) == []
    assert sorted(shell.cache.glob("*")) == before


def test_a_dry_run_of_a_large_model_needs_its_config_alone(shell, tmp_path: Path) -> None:
    (tmp_path / "7b").mkdir()
    LlamaConfig(num_hidden_layers=4).save_pretrained(tmp_path / "7b")  # of the first Llama's 32
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = shell.run(
        "train",
        *("model=pretrained", f"model.path={tmp_path / '7b'}", "precision=bf16", "zero=3"),
        *("benchmark=mini_small", f"output={tmp_path / 'run'}", "--dry-run"),
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    assert ended.code == 0, ended.err
    assert "1,071,681,536" in ended.out
    assert ended.out.splitlines().count(GUESSED) == 1
    assert not (tmp_path / "run").exists()
    assert grown < 1e9, "the weights, 2 GB, were made"

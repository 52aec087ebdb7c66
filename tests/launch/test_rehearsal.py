"""A rehearsal tells the memory of a run: what tensors held, counted, against what it says.

Runs of two steps, from no model to the second step taken, of 4 million parameters. In one process
the rehearsal takes the very steps; what it lacks is the values of a cached reference. Under ZeRO
one torchrun of two processes measures every case (`memory_worker.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from framework import build, head
from framework.data import laid_out
from framework.shared import by_beginning
from launch.fit import planned
from launch.ledger import ACTIVATIONS, ON_HOST, Ledger, on_device
from launch.peak_bytes import peak_bytes
from launch.settings import RunSettings, parse
from launch.train import main

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


def config_of(*arguments: str) -> DictConfig:
    given = ["benchmark=mini_small", "output=x", *arguments]
    return parse(given, entry="train", schema=RunSettings, about="")[0]


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


def test_a_rehearsal_computes_as_many_logits_at_once_as_a_gpu_does(monkeypatch) -> None:
    monkeypatch.setattr(head, "WHOLE", 0)
    monkeypatch.setattr(head, "CHUNK", 512 * 128)  # of vocabularies as large as 2048 words
    case = Case(method="npo_kl", tuning="lora", rows=12)
    told = most(rehearsed(case))
    assert told > 1.05 * measured(case)
    monkeypatch.setattr(head, "TOKENS", {"cpu": 512})
    assert told == pytest.approx(measured(case), rel=0.01)


def test_offload_takes_masters_moments_and_gradients_to_the_host() -> None:
    here, away = (rehearsed(Case("2", offload=offload)).peaks["step"] for offload in (False, True))
    assert here[ON_HOST] == 0
    states = here["masters"] + here["optimizer"]
    assert away["masters"] + away["optimizer"] == 0
    assert away[ON_HOST] >= states + here["masters"]  # and the gradient, as large as the masters


def test_checkpointing_takes_two_fifths_of_the_activations_away_selectively_one_fifth() -> None:
    plain, selective, recomputed = (
        rehearsed(Case(checkpointing=how)).peaks["backward"][ACTIVATIONS]
        for how in (False, "selective", True)
    )
    assert recomputed < 0.6 * plain < selective < 0.8 * plain


@pytest.mark.parametrize(
    "parts",
    [
        ["trainer=rmu", "trainer.layer=1", "optimizer=muon", "averaging=uniform"],
        ["trainer=npo", "weighting=gru"],
        ["trainer=npo", "weighting=log_barrier"],
    ],
    ids=" ".join,
)
def test_a_run_can_be_rehearsed_again_whatever_it_keeps_or_learns_from_its_losses(parts) -> None:
    config = config_of(*parts, "batch_size=2")
    plan = planned(config, build(config.benchmark))
    assert plan.memory().peaks == plan.memory().peaks


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of random weights, and its tokenizer."""
    config = config_of("model.vocabulary=1024")
    texts = [x.answer for x in build(config.benchmark).training_examples("target")]
    model = build(config.model).build(texts, seed=0)
    path = tmp_path_factory.mktemp("model")
    model.module.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "parts", [["trainer=npo"], ["trainer=dpo", "weighting=blur", "precision=bf16"]], ids=" ".join
)
def test_what_a_dry_run_says_is_within_fifteen_percent_of_the_run(parts, folder, tmp_path) -> None:
    given = [*parts, f"model={folder}", f"output={tmp_path / 'run'}", f"cache={tmp_path}"]
    given += ["benchmark=mini_small", "tracker=none", "evaluate=false", "save_every=0"]
    given += ["batch_size=16", "epochs=2", "trainer.compare_every=2"]
    config = config_of(*given)
    plan = planned(config, build(config.benchmark))

    with peak_bytes(torch.device("cpu")) as peak:
        main(given)
    # weights are read from a file, not made by an operation
    weights = sum(x.nbytes for x in load_file(folder / "model.safetensors").values())
    weights //= 2 if config.precision == "bf16" else 1
    assert plan.memory().most == pytest.approx(peak.bytes + weights, rel=0.15)


def test_rows_of_guessed_lengths_share_no_beginning(folder, tmp_path) -> None:
    shutil.copy(folder / "config.json", tmp_path)  # and no tokenizer
    config = config_of("trainer=dpo", f"model={tmp_path}")
    plan = planned(config, build(config.benchmark))
    rows = plan.rows
    assert plan.guessed
    assert sum(by_beginning([row.given for part in rows.values() for row in part])[1]) == 0
    pairs = rows["forget"]
    assert sum(by_beginning(laid_out(pairs))[1]) == sum(row.weights.count(0) for row in pairs)

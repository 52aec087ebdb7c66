"""What a user can get wrong: one line that says what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from framework.encoding import TruncationWarning
from framework.sampler import OverlapWarning

SETTINGS = {
    "trainer=npoo": "no trainer is called 'npoo'; did you mean 'npo'? (choices: finetune, grad_",
    "trainer.bta=0.5": "unknown setting 'trainer.bta'; did you mean 'beta'? (settings: ",
    "trainer.beta=abc": "trainer.beta must be a float, got 'abc'",
    "max_steps=2.5": "max_steps must be an int or null, got 2.5",
    "precision=fp8": "precision must be 'auto' or 'fp32' or 'bf16', got 'fp8'",
    "epoch=3": "unknown setting 'epoch'; did you mean 'epochs'? (settings: ",
    "zero=off": "no zero is called 'off' (choices: 0, 1, 2, 2_offload, 3, 3_offload, none)",
    "npo": "'npo' is not of the form key=value, such as trainer=npo",
    "--dryrun": "unknown option '--dryrun'; there are --help, --dry-run, --config FILE, and ",
    "--config=nowhere.yaml": "no config file at nowhere.yaml",
    "max_steps=0": "max_steps must be at least 1 or null, got 0",
    "epochs=0": "epochs must be a number > 0, got 0",
    "batch_size=0": "batch_size must be at least 1, got 0",
    "optimizer.learning_rate=-1": "optimizer.learning_rate must be > 0, got -1",
    "optimizer.warmup=1": "optimizer.warmup must be in [0, 1), got 1",
    "model.max_length=1": "model.max_length must be at least 2, got 1",
    "model.heads=3": "model.hidden_size=16 must be a multiple of model.heads=3",
    "benchmark.limit=0": "benchmark.limit must be at least 1 row or null, got 0",
    "finetune_on=target": "finetune_on=target is for trainer=finetune; trainer=npo forgets",
    "gold=nowhere": "there is no evaluation at nowhere; make one: python -m launch.eval run=nowhere",
    "keep_checkpoints=0": "keep_checkpoints must be at least 1, got 0",
    "log_every=-1": "log_every must be at least 0, got -1",
}
COMBINATIONS = {
    ("trainer=grad_ascent", "weighting=blur"): "weighting=BLUR balances two objectives, but this",
    ("trainer=finetune", "perturbation=sam"): "perturbation=SAM perturbs the forget objective, ",
    ("trainer.retain_loss=kl", "trainer.reference=cached"): "the cached reference holds token log-",
    ("zero=0", "precision=bf16"): "zero=0 with precision=bf16 would accumulate gradients in bf16;",
    ("weighting=none", "weighting.gamma=1"): "weighting=none has no setting 'gamma'; choose a ",
    ("benchmark=lume",): "LUME needs the folder of its released files, but none is set: clone ",
    ("benchmark=lume", "benchmark.path=nowhere"): "LUME needs the folder of its released files, ",
    ("model=pretrained",): "model.path is empty; type model.path=<folder or hub name>",
    ("model=pretrained", "model.path=nowhere"): "no model could be loaded from 'nowhere'",
    ("tuning=layers", "tuning.parameters=xyz"): "tuning.parameters='xyz' matches no parameter;",
    ("tuning=layers", "tuning.parameters=("): "tuning.parameters is no regular expression: '('",
    ("tuning=lora", "tuning.rank=0"): "tuning.rank must be >= 1, got 0",
    ("tuning=lora", "tuning.targets=[xyz]"): "tuning.targets=['xyz'] names no linear layer of",
}


@pytest.mark.parametrize("given", SETTINGS)
def test_a_setting_that_cannot_be_is_one_line(given: str, shell, tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = shell.mistake("train", *shell.small(f"output={output}", "max_steps=1"), given)

    assert said.startswith(SETTINGS[given])
    assert not (output / "config.yaml").exists()


@pytest.mark.parametrize("given", COMBINATIONS, ids=" ".join)
def test_settings_that_do_not_go_together_are_one_line(
    given: tuple[str, ...], shell, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    own = {text.partition("=")[0] for text in given if "." not in text}
    chosen = [
        text
        for text in shell.small(f"output={output}", "max_steps=1")
        if text.partition("=")[0].partition(".")[0] not in own & {"model", "benchmark"}
    ]
    said = shell.mistake("train", *chosen, *given)

    assert said.startswith(COMBINATIONS[given])
    assert not (output / "config.yaml").exists()

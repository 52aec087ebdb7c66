"""`launch.doctor` as it is started: alone, by two processes, and where the other never comes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.assembly import loading
from launch.settings import RunSettings, parse

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_madeUpTokenOfNobody",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "WANDB_BASE_URL": "http://user:madeUpPassword@127.0.0.1:9",
}


def test_the_table_has_every_check_and_no_secret(shell, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")
    ended = shell.run("doctor", "--output", str(tmp_path))
    assert ended.code == 0, ended.out
    for name in ("all-reduce, gloo", "packages", "GPU", "ninja", "output", "hub", "W&B", "Slurm"):
        assert f"│ {name} " in ended.out
    assert "warn: W&B: export WANDB_MODE=offline" in ended.out  # nobody answers at that address
    assert "in HF_TOKEN" in ended.out
    told = ended.out + ended.err
    assert not [secret for secret in (*SECRETS.values(), "madeUpPassword") if secret in told]


def test_a_failure_is_exit_code_one_and_a_mistake_two(shell):
    ended = shell.run("doctor", "--output", "/proc/runs")
    assert ended.code == 1
    assert "fail: output: choose an --output" in ended.out
    assert "--timeout must be >= 1" in shell.mistake("doctor", "--timeout", "0")


def test_two_ranks_add_right_and_read_one_file(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, "-m", "launch.doctor", "--json", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    findings = {found["name"]: found for found in report["findings"]}
    assert report["ranks"] == 2
    assert findings["all-reduce, gloo"]["ranks"] == findings["threads"]["ranks"] == [0, 1]
    assert "2 ranks on one node" in findings["all-reduce, gloo"]["found"]
    assert findings["output on all ranks"]["found"] == "2 ranks read one file"
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_never_comes_is_a_failure_and_no_hang(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "launch.doctor", "--timeout", "1", "--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 1, done.stderr
    assert f"2 ranks at 127.0.0.1:{port}: no answer in 1 s" in done.stdout
    assert "GLOO_SOCKET_IFNAME" in done.stdout


def test_a_sharded_run_says_which_lock_is_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "some_op").mkdir()
    (tmp_path / "some_op" / "lock").touch()
    config, _ = parse(["zero=2"], entry="train", schema=RunSettings, about="")
    with loading(config):
        said = capsys.readouterr().err
    assert f"build lock: {tmp_path / 'some_op' / 'lock'}, 0 minutes old, held by no process" in said

"""The doctor's checks on this machine, and on what is made wrong here."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from framework.doctor import accounts, build, folder, machine, network
from framework.doctor.finding import Finding, Report, rows_of, within

ROOT = Path(__file__).parents[2]


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of built operators, one of them with a lock."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "some_op").mkdir()
    (tmp_path / "some_op" / "lock").touch()
    return tmp_path


def aged(lock: Path, minutes: float) -> Path:
    long_ago = time.time() - 60 * minutes
    os.utime(lock, (long_ago, long_ago))
    return lock


def test_an_old_lock_that_no_process_holds_is_named_with_the_command_that_removes_it(extensions):
    lock = aged(extensions / "some_op" / "lock", 61)
    (found,) = build.extensions()
    assert found.state == "fail"
    assert found.remedy == f"rm {lock}"
    assert f"{lock}, 61 minutes old" in found.found


def test_what_setting_up_deepspeed_waits_for_is_said_and_nothing_where_it_does_not_wait(extensions):
    operator, lock = extensions / "some_op" / "some_op.so", extensions / "some_op" / "lock"
    (said,) = build.awaited(on_gpu=False)
    assert said.startswith(f"build lock: {lock}, 0 minutes old, held by no process here; if nobody")
    with lock.open():
        assert build.awaited(on_gpu=False) == []
    lock.unlink()
    (said,) = build.awaited(on_gpu=False)
    assert said == f"DeepSpeed builds an operator in {extensions}, once: about a minute"
    assert build.awaited(on_gpu=True) == []
    operator.touch()
    assert build.awaited(on_gpu=False) == []


def test_a_lock_is_found_below_the_folder_of_a_python_too(extensions, monkeypatch):
    cache = extensions / "cache"
    lock = cache / "torch_extensions" / "py311_cpu" / "other_op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    aged(lock, 30)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert [found.remedy for found in build.extensions()] == [f"rm {lock}"]


def test_a_lock_that_a_process_holds_is_a_build_at_work_whatever_its_age(extensions):
    lock = extensions / "some_op" / "lock"
    with lock.open():
        aged(lock, 61)
        (found,) = build.extensions()
    assert found.state == "pass"
    assert f"process {os.getpid()}" in found.found


def test_a_young_lock_may_be_another_nodes_build(extensions):
    (found,) = build.extensions()
    assert (found.state, "another node" in found.remedy) == ("warn", True)


def test_a_folder_of_operators_that_cannot_be_made_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "below"))
    (found,) = build.extensions()
    assert (found.state, "TORCH_EXTENSIONS_DIR" in found.remedy) == ("fail", True)
    assert build.awaited(on_gpu=True) == build.awaited(on_gpu=False) == []  # who builds is told


def test_a_missing_compiler_and_a_missing_ninja_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compiler().state == build.ninja().state == "fail"


def test_a_compiler_that_cannot_compile_is_told(tmp_path, monkeypatch):
    (tmp_path / "bad").write_text("#!/bin/sh\necho 'error: no Python.h' >&2\nexit 1\n")
    (tmp_path / "bad").chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(tmp_path / "bad"))
    found = build.compiler()
    assert (found.state, "no Python.h" in found.found) == ("fail", True)


def test_this_folder_can_hold_runs_and_nothing_is_left_in_it(tmp_path):
    states = {found.name: found.state for found in folder.output_folder(tmp_path / "runs" / "x")}
    assert states["output"] == "pass"
    assert {"output speed", "output space", "umask"} <= states.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails_with_its_name():
    (found,) = folder.output_folder(Path("/proc/runs"))
    assert (found.state, "/proc/runs" in found.found) == ("fail", True)


@pytest.mark.parametrize(("mask", "state"), [(0o022, "pass"), (0o000, "warn"), (0o777, "fail")])
def test_a_umask_is_read_without_changing_it(mask, state):
    before = os.umask(mask)
    try:
        assert folder.umask().state == state
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_a_version_that_is_not_the_pinned_one_is_a_warning_and_comments_are_none(tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("# versions\nrich==1.0\ntorch>=2 ; python_version > '3'\nnumpy==0 ; 1 > '2'\n")
    found = machine.packages(pins)
    assert found.state == "warn"
    assert found.found.startswith("rich ")
    assert "numpy" not in found.found


def test_ranks_that_share_a_gpu_or_have_none_are_named():
    assert "0 and 2 share" in machine.shared_gpus(["a", "b", "a", "c"]).found
    assert "ranks 1 have none" in machine.shared_gpus(["a", None]).found
    assert machine.shared_gpus(["a", "b"]).state == machine.shared_gpus([None]).state == "pass"


def test_other_versions_on_another_rank_fail():
    assert machine.same_versions(["torch 1", "torch 1"]).state == "pass"
    found = machine.same_versions(["torch 1", "torch 1", "torch 2"])
    assert (found.state, "rank 2: torch 2" in found.found) == ("fail", True)


def test_more_threads_than_cores_are_told_with_the_number_that_fits(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert machine.threads().state == "pass"  # the tests run with one thread
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores + 1))
    assert machine.threads().state == "warn"


def test_offline_is_no_mistake_and_asks_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    hub = {found.name: found for found in accounts.hub()}["hub"]
    assert (hub.state, f"{tmp_path}/hub: 1 models" in hub.found) == ("pass", True)
    assert accounts.wandb_login({"WANDB_MODE": "offline"}).state == "pass"


def test_a_server_that_is_not_there_is_a_warning_that_says_how_to_go_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hf_secret@127.0.0.1:9")
    hub = {found.name: found for found in accounts.hub()}["hub"]
    assert (hub.state, "HF_HUB_OFFLINE=1" in hub.remedy) == ("warn", True)
    assert "hf_secret" not in str(hub)


def test_online_without_a_key_fails(tmp_path):
    environment = {"WANDB_MODE": "online", "NETRC": str(tmp_path / "none")}
    assert accounts.wandb_login(environment).state == "fail"


def test_a_job_of_slurm_tells_its_gpus_and_its_time(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "64")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 300))
    states = {found.name: found for found in accounts.slurm()}
    assert states["Slurm"].state == "pass"
    assert "--gpus-per-node" in states["Slurm's GPUs"].remedy
    assert states["Slurm's time"].state == "warn"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "slurm/doctor.sbatch" in accounts.slurm()[0].remedy


def test_an_interface_or_an_address_that_does_not_exist_fails(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert network.settings().state == "pass"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib77")
    assert network.settings().state == "fail"
    monkeypatch.setenv("MASTER_ADDR", "no.such.invalid")
    assert network.master().state == "fail"


def test_work_that_never_ends_is_given_up():
    with pytest.raises(TimeoutError, match=r"no answer in 0.05 s"):
        within(0.05, threading.Event().wait)
    with pytest.raises(ValueError, match="invalid"):
        within(250, lambda: int("x"))


def test_equal_findings_of_ranks_are_one_row_and_others_say_where():
    good, bad = Finding("a", "pass", "4 ms"), Finding("a", "fail", "gone", "bring it back")
    reports = [Report(0, "n1", [good]), Report(1, "n2", [bad]), Report(2, "n2", [bad])]
    assert [(row.ranks, row.where) for row in rows_of(reports)] == [
        ([0], "rank 0 on n1"),
        ([1, 2], "rank 1, 2 on n2"),
    ]
    passes = [Report(0, "n1", [good]), Report(1, "n2", [Finding("a", "pass", "5 ms")])]
    (row,) = rows_of(passes)
    assert (row.finding.found, row.where) == ("4 ms", "rank 0; other figures on others")
    assert [row.where for row in rows_of([Report(0, "n1", [good]), Report(1, "n2", [good])])] == [
        ""
    ]

"""slurm/job.sh: when a job goes back into the queue. Slurm's commands are stand-ins here.

That the scripts work on a real Slurm is what tests/slurm shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
echo "srun $*" >>calls
[ -z "$FAILS" ] || exit "$FAILS"
[ -n "$STEP" ] || exit 0
while [ ! -e warned ]; do sleep 0.02; done
while [ "$STEP" = 13 ] && [ ! -e signalled ]; do sleep 0.02; done # till the second signal
[ "$STEP" = killed ] || echo "$STEP" >"$LETHE_STOP_FILE"
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >>calls
touch warned
"""
SCONTROL = """#!/bin/bash
case $* in
    "show hostnames"*) echo n1 ;;
    *"show node"*) echo "NodeName=n1 NodeAddr=10.0.0.1 State=IDLE" ;;
    *) echo "scontrol $*" >>calls ;;
esac
"""


class Job:
    """A batch script that has started in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def run(
        self,
        *,
        said: str = "launch.train a=1",
        step: str = "",
        fails: str = "",
        signals: tuple[int, ...] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run it from the beginning, send it signals; `step`: where the run says it stopped."""
        for name in ("warned", "signalled"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "calls").write_text("")
        command = f"set -euo pipefail; source {ROOT}/slurm/job.sh; continued_on_all_nodes"
        process = subprocess.Popen(
            ["bash", "-c", f"{command} {said}"],
            cwd=self.folder,
            env={
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "STEP": step,
                "FAILS": fails,
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "n1",
                "SLURM_NNODES": "1",
                "PROCESSES_PER_NODE": "1",
                "REQUEUES": "5",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, heard in zip(signals, ("srun", "scancel"), strict=False):
            while heard not in self.calls():
                time.sleep(0.02)
            process.send_signal(number)
        (self.folder / "signalled").touch()
        out, err = process.communicate(timeout=250)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def calls(self) -> str:
        """What was asked of Slurm."""
        file = self.folder / "calls"
        return file.read_text() if file.exists() else ""

    def requeued(self) -> bool:
        return "scontrol requeue" in self.calls()

    def left(self) -> list[str]:
        return [path.name for path in self.folder.glob(".lethe-job-*")]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that has not started."""
    return Job(tmp_path)


def test_a_job_that_ends_by_itself_is_not_requeued(job: Job) -> None:
    assert (job.run().returncode, job.run(fails="3").returncode) == (0, 3)
    assert not job.requeued()
    assert job.left() == []


def test_the_first_start_is_as_typed_and_a_later_one_goes_on(job: Job) -> None:
    job.run()
    assert job.calls().endswith(" launch.train a=1\n")

    job.run(SLURM_RESTART_COUNT="1")
    assert job.calls().rstrip().endswith("launch.train a=1 resume=auto")


def test_a_sweep_that_starts_again_is_told_nothing_more(job: Job) -> None:
    job.run(said="launch.sweep study.yaml --index 3", SLURM_RESTART_COUNT="1")
    assert job.calls().endswith(" launch.sweep study.yaml --index 3\n")


def test_a_warned_job_hands_the_warning_on_and_is_requeued(job: Job) -> None:
    ended = job.run(step="12", signals=(signal.SIGUSR1,))

    assert ended.returncode == 0
    assert ended.stdout == "requeued after step 12\n"
    assert "scancel --signal=USR1 7\n" in job.calls()
    assert "scontrol requeue 7\n" in job.calls()


def test_a_task_of_an_array_means_itself_and_not_the_array(job: Job) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    job.run(step="12", signals=(signal.SIGUSR1,), **array)

    assert "scancel --signal=USR1 7_3\n" in job.calls()
    assert "scontrol requeue 7_3\n" in job.calls()


def test_a_cancelled_job_never_comes_back(job: Job) -> None:
    job.run(step="13", signals=(signal.SIGUSR1, signal.SIGTERM))

    assert "scancel" in job.calls()
    assert not job.requeued()
    assert job.left() == []


def test_a_warned_run_that_was_killed_before_it_saved_is_not_requeued(job: Job) -> None:
    job.run(step="killed", signals=(signal.SIGUSR1,))

    assert not job.requeued()


def test_a_job_without_progress_stops_with_a_message(job: Job) -> None:
    assert job.run(step="12", signals=(signal.SIGUSR1,)).returncode == 0
    stuck = job.run(step="12", signals=(signal.SIGUSR1,), SLURM_RESTART_COUNT="1")

    assert stuck.returncode == 1
    assert stuck.stderr == "error: still at step 12 after the last requeue; raise --time\n"
    assert not job.requeued()
    assert job.left() == []


def test_one_that_never_took_a_step_is_not_requeued_at_all(job: Job) -> None:
    stuck = job.run(step="0", signals=(signal.SIGUSR1,))

    assert (stuck.returncode, job.requeued()) == (1, False)
    assert stuck.stderr.startswith("error: still at step 0")


def test_requeues_have_an_end(job: Job) -> None:
    ended = job.run(step="12", signals=(signal.SIGUSR1,), SLURM_RESTART_COUNT="5")

    assert (ended.returncode, job.requeued()) == (1, False)
    assert ended.stderr == (
        "error: requeued 5 times (REQUEUES in slurm/cluster.sh); submit it again\n"
    )


def test_a_pipeline_without_a_folder_submits_nothing(job: Job) -> None:
    sbatch = job.folder / "bin" / "sbatch"
    sbatch.write_text("#!/bin/bash\necho 1\n")
    sbatch.chmod(0o755)
    ended = subprocess.run(
        ["bash", "slurm/pipeline.sh", "", "benchmark=mini"],
        cwd=ROOT,
        env={"PATH": f"{job.folder}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: FOLDER is empty; see slurm/pipeline.sh\n"

"""The frame of entry points: one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from framework.encoding import TruncationWarning
from framework.errors import DataError
from launch import entry
from launch.entry import run_entry
from trainers.primal_dual import DualCapWarning

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    if "interrupt" in arguments:
        os.kill(os.getpid(), signal.SIGINT)
    if "mistake" in arguments:
        raise DataError("there are no rows")
    if "full disk" in arguments:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
    if "defect" in arguments:
        raise ZeroDivisionError("ours")
    if "warnings" in arguments:
        warnings.warn("2 rows were cut", TruncationWarning, stacklevel=1)
        warnings.warn("the dual reached its cap", DualCapWarning, stacklevel=1)
        warnings.warn("of a library", FutureWarning, stacklevel=1)
    print(arguments)  # noqa: T201 - a command prints its results


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `main` with arguments: its exit code, and what it said on both streams."""

    def with_arguments(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code: int | str | None = 0
        try:
            run_entry(main)
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return with_arguments


def test_a_users_mistake_is_one_line(run) -> None:
    assert run("mistake") == (2, "", "error: there are no rows\n")


@pytest.mark.parametrize(
    ("rank", "local_rank", "said"),
    [
        ("0", "0", "error: there are no rows\n"),
        ("1", "1", "error on rank 1: there are no rows\n"),  # if nobody ends it
        ("2", "0", "error on rank 2: there are no rows\n"),  # the first of the second node
    ],
)
def test_a_users_mistake_is_told_by_one_process_of_a_node(
    run, monkeypatch: pytest.MonkeyPatch, rank: str, local_rank: str, said: str
) -> None:
    monkeypatch.setattr(entry, "ALONE", 0.0)
    for name, value in (("RANK", rank), ("WORLD_SIZE", "4"), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)

    assert run("mistake") == (2, "", said)


@pytest.mark.parametrize(
    ("those", "said"),
    [
        ("01", "error: there are no rows"),
        ("1", "error on rank 1: there are no rows"),
    ],
    ids=["both", "one alone"],
)
def test_of_two_processes_one_tells_what_they_met(tmp_path: Path, those: str, said: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, time
from framework.errors import DataError
from launch import entry

entry.ALONE = {30.0 if those == "01" else 0.5}

def main(arguments):
    if os.environ["RANK"] in "{those}":
        raise DataError("there are no rows")
    time.sleep(60)

entry.run_entry(main)
""")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    lines = ended.stderr.splitlines()
    assert [line for line in lines if line.startswith("error")] == [said]
    assert "exitcode  : 2" in ended.stderr


def test_a_file_that_cannot_be_written_is_one_line(run) -> None:
    code, _, said = run("full disk")

    assert code == 2
    assert (
        said == "error: [Errno 28] No space left on device: 'metrics.jsonl' (of the file system)\n"
    )


def test_our_own_defect_keeps_its_traceback(run) -> None:
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("defect")


def test_an_interrupt_leaves_as_shells_expect(run) -> None:
    assert run("interrupt") == (128 + signal.SIGINT, "", "")


@pytest.mark.filterwarnings("default")
def test_a_warning_of_rows_is_one_line_and_a_librarys_says_where(run) -> None:
    code, _, said = run("warnings")
    first, method, second, *_ = said.splitlines()

    assert code == 0
    assert first == "warning: 2 rows were cut"
    assert method == "warning: the dual reached its cap"
    assert second.endswith("FutureWarning: of a library")
    assert second.startswith(__file__)


@pytest.mark.parametrize("launchers", ["--local_rank=1", "--local-rank=1"])
def test_what_a_launcher_appends_is_not_an_argument_of_ours(launchers: str, run) -> None:
    assert run("trainer=npo", launchers)[1] == "['trainer=npo']\n"

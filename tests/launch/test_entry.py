"""The frame of entry points: one line and exit code 2 for a user's mistake."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from framework.errors import DataError
from launch.entry import run_entry

def main(arguments):
    if "interrupt" in arguments:
        os.kill(os.getpid(), signal.SIGINT)
    if "mistake" in arguments:
        raise DataError("there are no rows")
    if "defect" in arguments:
        raise ZeroDivisionError("ours")
    print(arguments)

run_entry(main)
"""


def run(*arguments: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "RANK": str(rank)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_users_mistake_is_one_line_on_rank_0() -> None:
    ended = run("mistake")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: there are no rows\n")

    elsewhere = run("mistake", rank=1)
    assert (elsewhere.returncode, elsewhere.stderr) == (2, "")


def test_our_own_defect_keeps_its_traceback() -> None:
    ended = run("defect")

    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_an_interrupt_leaves_as_shells_expect() -> None:
    ended = run("interrupt")

    assert ended.returncode == 128 + signal.SIGINT
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("launchers", ["--local_rank=1", "--local-rank=1"])
def test_what_a_launcher_appends_is_not_an_argument_of_ours(launchers: str) -> None:
    assert run("trainer=npo", launchers).stdout == "['trainer=npo']\n"

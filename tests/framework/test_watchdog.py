"""A process that hangs says where, and ends within the time stated; one that works does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from framework.watchdog import watching

HANGS = {
    "in Python": "time.sleep(60)",
    "in a library that keeps the interpreter": "ctypes.PyDLL(None).sleep(60)",
}
SCRIPT = """
import ctypes, time
from framework import watchdog
watchdog.GRACE = 0.5
def stuck_here():
    {hang}
with watchdog.watching(1.5 / 60):
    started = time.monotonic()
    stuck_here()
"""


@pytest.mark.parametrize("where", HANGS)
def test_a_process_that_hangs_shows_its_stack_and_ends(where: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(hang=HANGS[where])],
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )

    assert ended.returncode == 1
    assert "in stuck_here" in ended.stderr
    told = "error on rank 0: no step and no batch for 0.025 minutes (hang_timeout); this is where"
    assert ended.stderr.startswith(told if where == "in Python" else "Timeout (0:00:0")


def test_processes_that_hang_together_write_one_after_the_other() -> None:
    crowd = "[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(40)]"
    script = "import os, threading\nos.fork()\n" + SCRIPT.format(hang=f"{crowd}; time.sleep(60)")
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=55
    )

    nothing, *told = ended.stderr.split("error on rank 0: ")
    assert nothing == ""
    assert [text.count("(most recent call first)") for text in told] == [42, 42]
    assert all(text.count("in stuck_here") == 1 for text in told)


def test_a_process_that_makes_progress_is_left_alone_and_so_is_one_that_is_done() -> None:
    working = """
import time
from framework.terminal import progress
from framework.watchdog import watching
with watching(2 / 60):
    for _ in progress(range(30), description="working"):
        time.sleep(0.1)
time.sleep(2.5)
"""
    ended = subprocess.run([sys.executable, "-c", working], check=False, timeout=55)

    assert ended.returncode == 0


def test_no_time_is_no_watch() -> None:
    with watching(0):
        time.sleep(0.05)

"""A process that hangs says where, and ends within the time stated; one that works does not."""

from __future__ import annotations

import subprocess
import sys
import time

from framework.watchdog import watching

SCRIPT = """
import ctypes, threading, time
from framework import watchdog
watchdog.GRACE = {grace}
def stuck_here():
    {hang}
with watchdog.watching({minutes}):
    stuck_here()
"""
LONG_AGO = "watchdog._last -= 60"
"""In place of waiting: the last sign of life was a minute ago, however slow the machine is."""


def ended(script: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, which is not waited for as long as it would hang."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=250
    )


def test_a_process_that_hangs_shows_its_stack_and_ends() -> None:
    hang = f"{LONG_AGO}; time.sleep(600)"
    found = ended(SCRIPT.format(hang=hang, minutes=0.25, grace=10))

    assert found.returncode == 1
    told = "error on rank 0: no step and no batch for 0.25 minutes (hang_timeout); this is where"
    assert found.stderr.startswith(told)
    assert "in stuck_here" in found.stderr


def test_a_process_that_hangs_in_a_library_that_keeps_the_interpreter_ends_as_well() -> None:
    found = ended(SCRIPT.format(hang="ctypes.PyDLL(None).sleep(600)", minutes=1.5 / 60, grace=0.5))

    assert found.returncode == 1
    assert "in <module>" in found.stderr


def test_processes_that_hang_together_write_one_after_the_other() -> None:
    crowd = "[threading.Thread(target=time.sleep, args=(600,)).start() for _ in range(40)]"
    hang = f"{crowd}; {LONG_AGO}; time.sleep(600)"
    found = ended("import os\nos.fork()\n" + SCRIPT.format(hang=hang, minutes=0.25, grace=10))

    nothing, *told = found.stderr.split("error on rank 0: ")
    assert nothing == ""
    assert [text.count("(most recent call first)") for text in told] == [42, 42]
    assert all(text.count("in stuck_here") == 1 for text in told)


def test_a_process_that_makes_progress_is_left_alone_and_so_is_one_that_is_done() -> None:
    working = """
import threading, time
from framework import watchdog
from framework.terminal import progress
with watchdog.watching(20 / 60):
    for _ in progress(range(30), description="working"):
        watchdog._last -= 8  # as if this took eight seconds
        time.sleep(0.1)
assert threading.active_count() == 1
"""
    assert ended(working).returncode == 0


def test_no_time_is_no_watch() -> None:
    with watching(0):
        time.sleep(0.05)

"""Watchdog: a process that does nothing for too long says where it stands, and ends.

A rank that hangs, in a collective that another never reaches or on a file system that is gone,
would keep every other rank and their GPUs until the job's end. So every rank watches itself: each
step and each batch of an evaluation is a sign of life, and without one for the time allowed the
process prints the stacks of its threads and leaves with exit code 1; the launcher ends the others.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from .distributed import rank

GRACE = 10.0
"""Seconds after which a process whose interpreter is stuck, too, is ended from outside of it."""

_last = time.monotonic()


def alive() -> None:
    """Note a sign of life."""
    global _last  # noqa: PLW0603 (one process, one watchdog)
    _last = time.monotonic()


@contextmanager
def watching(minutes: float) -> Iterator[None]:
    """Inside, this process ends after so many minutes without a sign of life; 0: it never does."""
    if minutes == 0:
        yield
        return
    alive()
    stop = threading.Event()
    stream = sys.__stderr__ or sys.stderr  # a file, where the second may be anything
    watch = threading.Thread(target=_watch, args=(60 * minutes, stop, stream), daemon=True)
    _watch_from_outside(60 * minutes, stream)  # before the thread, which may come late to it
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()
        faulthandler.cancel_dump_traceback_later()


def _watch_from_outside(left: float, stream: TextIO | None) -> None:
    """End the process where even its threads stand still, unless this is put off in time."""
    # A C extension that never lets go of the interpreter stops every thread, but not that one.
    # It writes to a file descriptor, which what takes the place of stderr may not have.
    faulthandler.dump_traceback_later(left + GRACE, exit=True, file=stream or 2)


def _watch(seconds: float, stop: threading.Event, stream: TextIO | None) -> None:
    while True:
        left = seconds - (time.monotonic() - _last)
        if left <= 0:
            break
        _watch_from_outside(left, stream)
        if stop.wait(min(left, max(1.0, seconds / 10))):
            return
    try:
        with tempfile.TemporaryFile() as told:
            told.write(
                f"error on rank {rank()}: no step and no batch for {seconds / 60:g} minutes "
                "(hang_timeout); this is where it stands:\n".encode()
            )
            told.flush()
            faulthandler.dump_traceback(all_threads=True, file=told)
            told.seek(0)
            # in one piece: all ranks write to one place, at the same moment
            os.write(stream.fileno() if stream else 2, told.read())
    finally:
        os._exit(1)

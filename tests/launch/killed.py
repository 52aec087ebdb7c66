"""`launch.train` that dies of SIGKILL at a checkpoint, as on a machine that goes away.

    python killed.py after|before STEP <arguments of launch.train>

`after`: when the checkpoint of STEP is whole; `before`: when all but its manifest is written.
"""

import os
import signal
import sys
from pathlib import Path

from framework import checkpoint
from launch.entry import run_entry
from launch.train import main

when, step = sys.argv[1], int(sys.argv[2])
finish = checkpoint._finish


def die(partial: Path, final: Path, hashes: list[dict[str, tuple[int, str]]]) -> None:
    """Finish the checkpoint or not, and end."""
    here = final.name == f"step-{step:08d}"
    if not (here and when == "before"):
        finish(partial, final, hashes)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)


checkpoint._finish = die
sys.argv = ["train", *sys.argv[3:]]
run_entry(main)

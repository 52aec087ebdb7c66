"""The frame of every entry point: a user's mistake becomes one line and exit code 2."""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

import torch

from framework.distributed import disconnect, launcher_rank, local_rank
from framework.errors import ConfigError, LetheError
from framework.terminal import say

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
ALONE = 5.0
"""Seconds that a process lives on, which a launcher whose first has failed ends within one."""
OURS = ("framework", "launch", "trainers")


class Parser(argparse.ArgumentParser):
    """Argparse's parser, but what it cannot read is a user's mistake like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, where argparse prints its usage and ends the process."""
        raise ConfigError(f"{message}; --help says what there is")


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments; one process per node prints what can be mended.

    Another process prints what it alone has met: nobody ends it.

    The rank is the launcher's, since most mistakes are found before the processes have met. A disk
    that is full or a folder that cannot be read is a user's to mend, too.
    DeepSpeed's launcher appends `--local_rank=N`, which says nothing that the environment does not.
    """
    arguments = [
        text for text in sys.argv[1:] if not text.startswith(("--local_rank=", "--local-rank="))
    ]
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns when it has to find out
    warnings.showwarning = _show_warning
    # a hub that is not reached is told once, at the end, and not at each of its retries
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    try:
        main(arguments)
    except (LetheError, OSError) as error:
        told = str(error) if isinstance(error, LetheError) else f"{error} (of the file system)"
        if launcher_rank() == 0:
            print(f"error: {told}", file=sys.stderr)
        else:
            if local_rank() > 0:  # where its node's first met it, too, the launcher ends this one
                time.sleep(ALONE)
            print(f"error on rank {launcher_rank()}: {told}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    disconnect()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are of the user's rows and settings: one line, without a place in code."""
    if category.__module__.partition(".")[0] in OURS:
        say(f"warning: {message}")
        return
    text = warnings.formatwarning(message, category, filename, lineno, line)
    print(text, file=file or sys.stderr, end="")

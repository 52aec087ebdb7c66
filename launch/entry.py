"""The frame of every entry point: a user's mistake becomes one line and exit code 2."""

import sys
from collections.abc import Callable

from framework.distributed import is_main
from framework.errors import LetheError

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments; rank 0 prints what a user can mend.

    DeepSpeed's launcher appends `--local_rank=N`; it is dropped: the environment names the ranks.
    """
    arguments = [
        text for text in sys.argv[1:] if not text.startswith(("--local_rank=", "--local-rank="))
    ]
    try:
        main(arguments)
    except LetheError as error:
        if is_main():
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None

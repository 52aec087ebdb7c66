"""Progress and tables: what stands in a log file, and what a person sees on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.terminal import LiveTable, Progress, number, progress, table


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_ten_seconds_and_a_last_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("unlearn", 40, clock=clock) as shown:
        for step in range(40):
            clock.now += 0.5
            shown.advance(loss=2.0 / (step + 1))

    lines = capsys.readouterr().err.splitlines()

    # 40 steps of half a second: the first after a second, then one ten seconds later, then the end.
    assert lines == [
        "unlearn: 2/40 (5%), 2.0/s, 19 s left  loss 1.000",
        "unlearn: 22/40 (55%), 2.0/s, 9 s left  loss 0.091",
        "unlearn: 40/40 (100%), 2.0/s, took 20 s  loss 0.050",
    ]


def test_work_of_less_than_a_second_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], description="quick")) == [1, 2, 3]

    assert capsys.readouterr() == ("", "")


def test_the_pace_of_a_resumed_run_counts_only_its_own_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("unlearn", 100, done=90, clock=clock) as shown:
        clock.now += 8
        shown.advance(4)

    first, last = capsys.readouterr().err.splitlines()

    assert first == "unlearn: 94/100 (94%), 2.0 s each, 12 s left"
    assert last == "unlearn: 94/100 (94%), 2.0 s each, took 8 s"


def test_work_of_unknown_length_counts_without_a_percentage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("read", clock=clock) as shown:
        clock.now += 7200
        shown.advance(7200)

    assert capsys.readouterr().err.splitlines() == [
        "read: 7200, 1.0/s",
        "read: 7200, 1.0/s, took 2 h 00 min",
    ]


def test_an_error_inside_the_work_is_not_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def work() -> None:
        with Progress("divide", 2, clock=clock) as shown:
            clock.now += 3
            shown.advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()

    assert capsys.readouterr().err.splitlines()[-1] == "divide: 1/2 (50%), 3.0 s each, took 3 s"


def on_a_terminal(program: str) -> str:
    """What a Python program shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # how Linux says that the other end of a terminal was closed
        pass
    os.close(ours)
    assert child.wait(timeout=280) == 0
    return seen.decode()


def test_headings_are_broken_at_the_ends_of_words_where_a_terminal_is_narrow() -> None:
    program = (
        "from framework.terminal import table\n"
        "names = ['forget/rouge → gold', 'retain/rouge ↑', 'model_utility ↑', 'mia/auc → gold']\n"
        "rows = [['grad_diff x 2', *[0.5] * 6], ['gold', *[4e-8] * 6]]\n"
        "table('mini', ['model', *names, *names[:2]], rows)\n"
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(program)).splitlines()

    assert max(map(len, lines)) <= 100
    cells = {cell.strip() for line in lines for cell in re.split("[┃│]", line)}
    assert cells >= {"forget/", "retain/", "rouge ↑", "model_", "utility ↑", "mia/"}
    assert cells >= {"grad_diff x 2", "gold", "4.0e-08"}


def test_bars_stack_on_a_terminal_and_leave_one_line_each() -> None:
    program = (
        "from framework.terminal import LiveTable, Progress, say\n"
        "with LiveTable(['run', 'step']) as table:\n"
        "    table.show('2 runs', [['lr=1', '3/4'], ['lr=2', 'starting']])\n"
        "    say('above')\n"
        "now = [0.0]\n"
        "with Progress('unlearn', 4, clock=lambda: now[0]) as outer:\n"
        "    for _ in range(4):\n"
        "        now[0] += 2; outer.advance(loss=0.5)\n"
        "        with Progress('evaluate [b]', 2, clock=lambda: now[0]) as inner:\n"
        "            now[0] += 2; inner.advance(2)\n"
    )
    text = on_a_terminal(program)

    assert "━" in text
    assert "2 runs" in text
    assert "starting" in text
    assert "above\r\n" in text
    assert "unlearn: 4/4 (100%), 4.0 s each, took 16 s  loss 0.500" in text
    assert text.count("evaluate [b]: 2/2 (100%), 1.0/s, took 2 s") == 4


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    program = (
        "import sys; import torch.distributed as dist\n"
        "from framework.terminal import Progress, say, table\n"
        "store = dist.FileStore(sys.argv[1], 2)\n"
        "dist.init_process_group('gloo', store=store, rank=int(sys.argv[2]), world_size=2)\n"
        "now = [0.0]\n"
        "with Progress('work', 1, clock=lambda: now[0]) as shown:\n"
        "    now[0] += 12; shown.advance()\n"
        "say('text'); table('title', ['a'], [['b']])\n"
        "dist.barrier(); dist.destroy_process_group()"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    main, other = (rank.communicate(timeout=280)[0] for rank in ranks)

    assert "work: 1/1" in main
    assert "title" in main
    assert all(word not in other for word in ("work", "text", "title"))


def test_a_table_marks_the_best_and_says_undefined(capsys: pytest.CaptureFixture[str]) -> None:
    table(
        "Mini",
        ["method", "forget rouge", "privacy"],
        [["target [1]", 0.98765, None], ["x" * 90, 1.5e-12, 3]],
        best={(1, 1)},
    )

    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "│" in line]

    assert [cell.strip() for cell in rows[0].split("│")[1:4]] == [
        "target [1]",
        "0.988",
        "undefined",
    ]
    assert [cell.strip() for cell in rows[1].split("│")[1:4]] == ["x" * 90, "1.5e-12 *", "3"]


def test_numbers_keep_what_can_be_read() -> None:
    values = [0.0, 0.5, 0.0004, -12.3456, 3, 123456.0, float("nan")]
    assert [number(value) for value in values] == [
        "0.000",
        "0.500",
        "4.0e-04",
        "-12.346",
        "3",
        "1.2e+05",
        "nan",
    ]


def test_a_live_table_off_a_terminal_is_plain_lines_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with LiveTable(["run", "step", "loss"], clock=clock) as shown:
        for step in range(4):
            shown.show("2 runs", [["a", f"{step}/4", 1.5], ["b", "starting", ""]])
            clock.now += 5

    assert capsys.readouterr().err.splitlines() == [
        "a: step 2/4  loss 1.500",
        "b: step starting",
    ]

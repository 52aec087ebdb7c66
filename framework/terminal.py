"""What a person sees while waiting: a progress bar and a table, on rank 0 only.

On a terminal the bar is live. Piped, or in a Slurm log, it is a plain line every ten seconds, so
that logs stay readable. Both leave one last line. Work of less than a second shows nothing.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache
from itertools import groupby
from types import MappingProxyType, TracebackType
from typing import Literal, TypeVar

from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBar
from rich.table import Table
from rich.text import Text

from . import watchdog
from .distributed import is_main

QUIET_SECONDS = 1.0  # shorter work shows nothing
LINE_SECONDS = 10.0  # between two plain lines
NAME = 24  # characters of a row's name that stay on one line, however narrow the terminal

Cell = str | float | None
T = TypeVar("T")


@cache
def _stderr() -> Console:
    """The console of all bars: rich stacks live displays only where they share their console."""
    return Console(stderr=True, highlight=False)


class Progress:
    """A context in which `advance` counts finished items and shows fields such as loss=1.2."""

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` is None where nobody knows it; `done` items were finished before a resume."""
        self.description = description
        self.total = total
        self.done = self._done_before = done
        self._clock = clock
        self._fields = ""
        self._started = self._last_line = clock()
        self._bar: LiveBar | None = None

    def __enter__(self) -> "Progress":  # noqa: PYI034 (typing.Self needs Python 3.11)
        self._started = self._last_line = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if is_main() and self._clock() - self._started >= QUIET_SECONDS:
            self._print_line(ended=True)

    def advance(self, n: int = 1, **fields: float | str) -> None:
        """Count `n` more finished items and show `fields` beside the count: a sign of life."""
        watchdog.alive()
        self.done += n
        if fields:
            self._fields = "  ".join(f"{name} {_text(value)}" for name, value in fields.items())
        if not is_main():
            return
        now = self._clock()
        if now - self._started < QUIET_SECONDS:
            return
        if _live():
            self._draw()
        elif self._last_line == self._started or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._print_line(ended=False)

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = LiveBar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[values]}", markup=False),
                console=_stderr(),
                transient=True,
                expand=True,
            )
            self._bar.add_task(self.description, total=self.total, pace="", values="")
            self._bar.start()
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self.done, pace=self._pace(), values=self._fields)

    def _print_line(self, *, ended: bool) -> None:
        seconds = self._clock() - self._started
        parts = [self._count(), self._pace()]
        if ended:
            parts.append(f"took {_duration(seconds)}")
        elif self.total is not None and self.done > self._done_before:
            left = seconds * (self.total - self.done) / (self.done - self._done_before)
            parts.append(f"{_duration(left)} left")
        text = ", ".join(part for part in parts if part)
        say(f"{self.description}: {text}  {self._fields}".rstrip())

    def _count(self) -> str:
        if not self.total:
            return str(self.done)
        return f"{self.done}/{self.total} ({100 * self.done // self.total}%)"

    def _pace(self) -> str:
        finished, seconds = self.done - self._done_before, self._clock() - self._started
        if finished <= 0 or seconds <= 0:
            return ""
        rate = finished / seconds
        return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def progress(iterable: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, their progress shown; `total` is its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(description, total) as shown:
        for item in iterable:
            yield item
            shown.advance()


def say(text: str) -> None:
    """Print one line on standard error, above the bars, on rank 0."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    best: Collection[tuple[int, int]] = (),
    prose: bool = False,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Print `rows` on standard output; a (row, column) in `best` is bold and carries a star.

    Columns of `prose`, unlike numbers, begin at the left; a cell that says what `colors` knows has
    its color.
    """
    if not is_main():
        return
    console = Console(highlight=False)

    def with_headings(names: Sequence[str]) -> tuple[Table, int]:
        drawn = _drawn(title, names, rows, best, prose=prose, colors=colors or {})
        wide = console.options.update(max_width=10_000)
        return drawn, Measurement.get(console, wide, drawn).maximum

    drawn, width = with_headings(columns)
    if not console.is_terminal:  # a file has no width: nothing needs to be folded
        console.width = width
    elif width > console.width:  # at the ends of words, before anything is folded within them
        drawn, _ = with_headings([re.sub(r"[/_ ](?=\w)", r"\g<0>\n", name) for name in columns])
    console.print(drawn)


class LiveTable:
    """A context in which `show` redraws one table below what `say` prints.

    Off a terminal each row is a plain line, every ten seconds.
    """

    def __init__(
        self, columns: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`columns` are the headings."""
        self.columns = columns
        self._clock = clock
        self._last_lines = clock()
        self._live: Live | None = None

    def __enter__(self) -> "LiveTable":  # noqa: PYI034 (typing.Self needs Python 3.11)
        if is_main() and _live():
            self._live = Live(console=_stderr(), transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, title: str, rows: Sequence[Sequence[Cell]]) -> None:
        """Draw `rows` in place of the last ones."""
        if self._live is not None:
            self._live.update(_drawn(title, self.columns, rows), refresh=True)
        elif self._clock() - self._last_lines >= LINE_SECONDS:
            self._last_lines = self._clock()
            for first, *rest in rows:
                cells = zip(self.columns[1:], rest, strict=True)
                told = [f"{name} {_text(cell)}" for name, cell in cells if cell != ""]
                say(f"{_text(first)}: {'  '.join(told)}")


def number(value: float) -> str:
    """`value` with three digits behind the point, or an exponent where they would say 0.000."""
    if isinstance(value, int) or math.isinf(value) or math.isnan(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.3f}"


def _drawn(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    best: Collection[tuple[int, int]] = (),
    *,
    prose: bool = False,
    colors: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    drawn = Table(title=Text(title, style="bold"), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index and not prose else "left"
        named = not index and not prose and all(len(_text(row[0])) <= NAME for row in rows)
        drawn.add_column(Text(column), justify=justify, overflow="fold", no_wrap=named)
    for row_index, row in enumerate(rows):
        cells = []
        for index, cell in enumerate(row):
            chosen = (row_index, index) in best
            mark = "" if index == 0 or prose else " *" if chosen else "  "
            style = "bold green" if chosen else colors.get(_text(cell), "")
            cells.append(Text(_text(cell) + mark, style=style))
        drawn.add_row(*cells)
    return drawn


def print_marked(title: str, pieces: Sequence[str], marked: Collection[int]) -> None:
    """Print `title` and a text in pieces on standard output; those `marked` (by index) stand out.

    In color on a terminal; elsewhere in brackets, a space before a piece outside of them.
    """
    if not is_main():
        return
    console = Console(highlight=False)
    text = Text()
    for is_marked, group in groupby(range(len(pieces)), key=lambda i: i in marked):
        joined = "".join(pieces[i] for i in group)
        inner = joined.lstrip() if is_marked else joined
        text.append(joined[: len(joined) - len(inner)])
        brackets = is_marked and not console.is_terminal
        text.append(f"[{inner}]" if brackets else inner, style="bold green" if is_marked else "")
    console.print(Text(title, style="bold"), text, Text(), sep="\n", soft_wrap=True)


def _text(cell: Cell) -> str:
    if cell is None:
        return "undefined"
    return cell if isinstance(cell, str) else number(cell)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _live() -> bool:
    """Whether standard error can redraw; FORCE_COLOR, which CI sets, does not make it so."""
    return sys.stderr.isatty() and not _stderr().is_dumb_terminal

"""Stopping: a run that is asked to end does so after a step, all ranks after the same one.

    SIGUSR1   the machine is about to be taken away (Slurm's warning before a time limit or a
              preemption): the run saves, and is to be continued
    SIGTERM   somebody ends the run (`scancel`, `kill`): it saves, and stays ended

A signal reaches the ranks at different moments, or some of them only. So its handler does no more
than note it, and the ranks agree between two steps. An evaluation in training they leave together,
each after a batch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

import torch

from .distributed import max_over_ranks

LISTENED = (signal.SIGUSR1, signal.SIGTERM)
"""In rising order of rank: of two signals the later one here counts."""


class Asked(BaseException):
    """A signal that ends the work at hand where it stands."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


_heeded: ContextVar[Stopping | None] = ContextVar("heeded", default=None)


class Stopping:
    """What the run was asked to do, by signals that arrived while it was `listening`."""

    def __init__(self) -> None:
        self._seen = 0  # 0: nothing; else the number in LISTENED, from 1
        self._at_once = False

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[Stopping]:
        """Inside, the signals are noted, and end nothing by themselves."""
        stopping = cls()
        before = {}
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            before = {number: signal.signal(number, stopping._note) for number in LISTENED}
        try:
            yield stopping
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._seen = max(self._seen, 1 + LISTENED.index(signal.Signals(number)))
        if self._at_once:
            raise Asked(signal.Signals(number))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Asked on the rank that it reaches, without agreement.

        For hours of work after which nothing is left to save: the ranks that heard nothing are
        ended by the launcher. A signal from before raises it at once.
        """
        self._at_once = True
        try:
            if self._seen:
                raise Asked(LISTENED[self._seen - 1])
            yield
        finally:
            self._at_once = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, a signal ends work in batches: it raises Asked, on every rank at the same work.

        For what is in the way of a checkpoint, and is done again where the run goes on.
        """
        before = _heeded.set(self)
        try:
            yield
        finally:
            _heeded.reset(before)

    def heard(self) -> bool:
        """Whether a signal reached this rank."""
        return self._seen > 0

    def agreed(self) -> signal.Signals | None:
        """The signal that reached any rank, the same on all of them; every rank must ask.

        It travels between host memories: no rank waits for its GPU.
        """
        seen = int(max_over_ranks(torch.tensor(self._seen)))
        return LISTENED[seen - 1] if seen else None


def heard(*, together: bool) -> bool:
    """Whether the batch at hand need not be ended, since `leave` comes after it.

    `together`: every rank takes part in the batch, and asks here; all are told the same.
    """
    stopping = _heeded.get()
    if stopping is None:
        return False
    return stopping.agreed() is not None if together else stopping.heard()


def leave() -> None:
    """Raise Asked where a signal is heeded and reached any rank; every rank asks after each batch.

    A rank that heard it waits here for the others' batch, not for their whole share of the work.
    """
    stopping = _heeded.get()
    asked = None if stopping is None else stopping.agreed()
    if asked is not None:
        raise Asked(asked)

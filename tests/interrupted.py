"""A benchmark in whose measuring the process is told to end, as its machine is taken away."""

from __future__ import annotations

import os
import signal

from framework.evaluation.benchmark import Evaluation
from framework.evaluation.mini import Mini
from framework.language_model import LanguageModel


class Interrupted(Mini):
    """Mini, but one time that it measures, the first as a rule, it is warned of the end."""

    left: int | None = 0
    """How often it measures before; None: it is not warned, or was."""

    def measure(self, model: LanguageModel, gold: Evaluation | None = None) -> Evaluation:
        """Mini's numbers; SIGUSR1 arrives as it begins."""
        left = Interrupted.left
        Interrupted.left = left - 1 if left else None  # the signal may end it right there
        if left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().measure(model, gold)

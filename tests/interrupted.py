"""A benchmark in whose measuring the process is told to end, as its machine is taken away."""

from __future__ import annotations

import os
import signal

from framework.evaluation.benchmark import Evaluation
from framework.evaluation.mini import Mini
from framework.language_model import LanguageModel


class Interrupted(Mini):
    """Mini, but the first time it measures it is warned of the end by SIGUSR1."""

    warned = False

    def measure(self, model: LanguageModel, gold: Evaluation | None = None) -> Evaluation:
        """Mini's numbers, the second time."""
        if not Interrupted.warned:
            Interrupted.warned = True
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().measure(model, gold)

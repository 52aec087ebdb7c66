"""A method that fails, hangs or becomes NaN at one step on one rank, as the environment says."""

from __future__ import annotations

import math
import os
import time

from torch import Tensor

from framework.data import Rows
from framework.distributed import rank
from trainers.npo import NPO


class Faulty(NPO):
    """NPO; FAULT=error|hang|loss|gradient, FAULT_STEP and FAULT_RANK: what goes wrong and where.

    An error comes at the step's second reading: under SAM where the model is shifted.
    """

    readings = 0

    def forget_loss(self, rows: Rows) -> Tensor:
        """NPO's, or what the fault makes of it."""
        loss = super().forget_loss(rows)
        here = f"{self.steps_done} {rank()}"
        if here != f"{os.environ.get('FAULT_STEP')} {os.environ.get('FAULT_RANK')}":
            return loss
        fault = os.environ["FAULT"]
        self.readings += 1
        if fault == "error" and self.readings == 2:
            raise RuntimeError("the fault of one rank")
        if fault == "hang":
            time.sleep(600)
        if fault == "gradient" and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss * math.nan if fault == "loss" else loss

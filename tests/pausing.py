"""A method that waits in its fourth step until it is asked to end: a run that cannot be missed."""

from __future__ import annotations

import os
import signal

from torch import Tensor

from framework.data import Rows
from trainers.finetune import Finetune


class Pausing(Finetune):
    """Finetune; each start waits once for SIGTERM, and then is asked to end as if it had not."""

    taken = 0

    def retain_loss(self, rows: Rows) -> Tensor:
        """Finetune's, now or later."""
        self.taken += 1
        if self.taken == 4:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            signal.sigwait([signal.SIGTERM])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)
        return super().retain_loss(rows)

"""All that two ranks are asked for, in one process group: what they import, they import once.

    torchrun --nproc_per_node 2 worker.py FOLDER

FOLDER holds the cases of each worker that is asked, as `zero_worker.json`; what it measured is
written there, as `zero_worker.results.json`.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import collectives_worker
import resume_worker
import torch
import zero_worker

from framework import distributed

WORKERS = (collectives_worker, resume_worker, zero_worker)


def main(folder: Path) -> None:
    """Run the workers that are asked, one after another."""
    gc.freeze()  # each new engine of DeepSpeed's collects garbage, among all that was imported
    distributed.connect()
    try:
        for worker in WORKERS:
            asked = folder / f"{worker.__name__}.json"
            if asked.is_file():
                worker.main(asked, asked.with_suffix(".results.json"))
        distributed.barrier()
    finally:
        distributed.disconnect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

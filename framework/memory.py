"""Memory: the most a process has used, and what a model will need per rank under ZeRO."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 1 << 30


def peak_memory_gib() -> float:
    """The most memory this process has held so far: on its GPU, or resident on a CPU, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def model_state_bytes(
    parameters: int,
    trainable: int,
    *,
    stage: str,
    ranks: int,
    offload: bool,
    bf16: bool,
    vectors: int,
    frozen_copies: int,
    optimizer: float = 8.0,
) -> dict[str, float]:
    """Bytes per rank of model states, activations apart: {"device", "host"}.

    `stage`: none (plain torch), 0, 1, 2 or 3. `vectors`: sharded fp32 vectors held at a time beside
    the gradient: one per further objective, and three while the model is shifted (the shift, where
    it leads, what it became). `frozen_copies`: whole models beside the trained one. `optimizer`:
    bytes of the optimizer's own state per trained parameter; AdamW's two moments unless told.
    """
    level = 0 if stage == "none" else int(stage)
    sharded = ranks if level >= 1 else 1
    width = 2 if bf16 else 4
    weights = parameters * width / (ranks if level == 3 else 1)
    masters = 4 * trainable / sharded if bf16 or level >= 1 else 0.0
    moments = optimizer * trainable / sharded
    # stage 1 reduces whole gradients, kept in fp32 beside the backward pass's own in bf16
    gradient = trainable * (6 if bf16 and level == 1 else 4) / (ranks if level >= 2 else 1)
    held = 4 * trainable * vectors / sharded
    frozen = frozen_copies * parameters * width
    if offload:
        host = masters + moments + held + 4 * trainable / sharded
        return {"device": weights + gradient + frozen, "host": host}
    return {"device": weights + gradient + masters + moments + held + frozen, "host": 0.0}

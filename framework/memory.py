"""Memory: the most that a process has used, how much there is, and which of it a tensor has."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor

GIB = 1 << 30
MIB = 1 << 20


def in_words(size: int) -> str:
    """A number of bytes, in the unit that leaves something before the point."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def peak_memory_gib() -> float:
    """The most memory this process has held so far: on its GPU, or resident on a CPU, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def device_memory() -> int | None:
    """Bytes of the GPU's memory that a run can count on; None without a GPU.

    Nine tenths: the allocator's rounding and the kernels' workspaces take their part.
    """
    if not torch.cuda.is_available():
        return None
    return int(0.9 * torch.cuda.mem_get_info()[1])


def storage_of(tensor: Tensor) -> int:
    """Which memory it lies in; tensors without memory, of a dry run, have a storage as well."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - data_ptr is 0 for all of those

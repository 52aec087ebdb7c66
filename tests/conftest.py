"""What every test runs under: no network, no W&B server, one thread, a folder for kernels."""

import os
from pathlib import Path

DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_EXTENSIONS_DIR": str(Path(__file__).parents[1] / ".cache" / "torch_extensions"),
    "WANDB_MODE": "offline",
}
# Set before any library is imported, for several read them only then; processes that the tests
# start inherit them.
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402 - after the environment is set

# The rounding of a sum depends on how many threads share it, and so would the exactness tests.
torch.set_num_threads(1)

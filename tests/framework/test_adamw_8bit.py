"""AdamW with moments of 8 bits: the word how to get it, and, where it is installed, what it does.

bitsandbytes is no part of the test environment: peft imports it wherever it is installed, which
would slow every process of the suite down. `pip install -c constraints.txt -e '.[8bit]'` adds the
second half of this file.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import tiny
import torch

from framework import ConfigError
from framework.optimizers import AdamW, AdamW8bit


def test_without_bitsandbytes_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # Python's own word for "not there"
    with pytest.raises(ConfigError, match=r"is not installed; type pip install .*'\.\[8bit\]'"):
        AdamW8bit(AdamW8bit.Config(learning_rate=1e-3))


if importlib.util.find_spec("bitsandbytes") is not None:

    def stepped(kind: type[AdamW], *, steps: int) -> tuple[torch.Tensor, torch.optim.Optimizer]:
        """A 100 x 128 matrix after some steps along random directions."""
        draw = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(100, 128))
        settings = kind.Config(learning_rate=0.01, weight_decay=0.1)
        built = kind(settings).build([{"params": [weight]}])
        for _ in range(steps):
            weight.grad = torch.randn(100, 128, generator=draw)
            built.step()
        return weight.detach(), built

    def test_its_steps_are_adamws_to_the_rounding_of_8_bits():
        right, _ = stepped(AdamW, steps=20)
        found, built = stepped(AdamW8bit, steps=20)
        (state,) = built.state.values()
        assert state["state1"].dtype == state["state2"].dtype == torch.uint8
        assert 0 < (found - right).norm() / right.norm() < 0.03

    def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
        plan = tiny.step_rows(4)
        sizes = {"hidden_size": 64, "intermediate_size": 128}  # 4096 elements and more
        optimizer = AdamW8bit(AdamW8bit.Config(learning_rate=1e-3))

        def run(engine: tiny.LocalEngine, steps: slice) -> dict[str, torch.Tensor]:
            model = tiny.language_model(**sizes)
            trainer = tiny.trainer(engine, model, plan, method="npo", optimizer=optimizer)
            tiny.train(trainer, plan[steps], tokens=30)
            return engine.master_weights()

        engine = tiny.local_engine(optimizer, **sizes)
        run(engine, slice(0, 2))
        engine.save(tmp_path)
        right = run(engine, slice(2, 4))
        again = tiny.local_engine(optimizer, seed=1, **sizes)
        again.load(tmp_path)
        found = run(again, slice(2, 4))
        assert all(torch.equal(found[name], right[name]) for name in right)

"""Memory: what a process used, and what the model states of a run will need."""

from __future__ import annotations

import pytest
import torch

from framework.memory import model_state_bytes, peak_memory_gib

BILLION = 1_000_000_000
RUN = {
    "parameters": BILLION,
    "trainable": BILLION,
    "ranks": 8,
    "offload": False,
    "bf16": True,
    "vectors": 0,
    "frozen_copies": 0,
}


def test_the_peak_is_no_less_than_what_is_held():
    before = peak_memory_gib()
    held = torch.ones(64 << 20)  # 256 MiB
    assert peak_memory_gib() >= 0.25
    assert peak_memory_gib() >= before
    assert held.sum() > 0


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"), [("1", 8 + 12 / 8), ("2", 2 + 16 / 8), ("3", 18 / 8)]
)
def test_bf16_model_states_per_rank(stage, bytes_per_parameter):
    # 2 bytes of weights; fp32 gradient, master and two moments, 16 in all (arXiv:1910.02054). At
    # stage 1 every rank holds the whole gradient, in fp32 and, while it is made, in bf16.
    found = model_state_bytes(**{**RUN, "stage": stage})
    assert found == {"device": pytest.approx(bytes_per_parameter * BILLION), "host": 0}


@pytest.mark.parametrize("stage", ["none", "0"])
def test_fp32_model_states_without_sharding(stage):
    # weights, gradient and two moments; the weights are their own masters
    found = model_state_bytes(**{**RUN, "stage": stage, "bf16": False})
    assert found == {"device": pytest.approx(16 * BILLION), "host": 0}


def test_what_a_vector_a_frozen_model_and_offload_add():
    plain = model_state_bytes(**{**RUN, "stage": "2"})
    two = model_state_bytes(**{**RUN, "stage": "2", "vectors": 1})
    frozen = model_state_bytes(**{**RUN, "stage": "2", "frozen_copies": 1})
    offloaded = model_state_bytes(**{**RUN, "stage": "2", "offload": True})
    assert two["device"] - plain["device"] == pytest.approx(4 / 8 * BILLION)
    assert frozen["device"] - plain["device"] == pytest.approx(2 * BILLION)
    assert offloaded == {
        "device": pytest.approx((2 + 4 / 8) * BILLION),
        "host": pytest.approx(16 / 8 * BILLION),
    }


def test_an_optimizer_of_two_bytes_saves_six_of_each_parameter():
    plain, small = (
        model_state_bytes(**{**RUN, "stage": "2", "optimizer": n})["device"] for n in (8.0, 2.0)
    )
    assert plain - small == pytest.approx(6 / 8 * BILLION)


def test_lora_costs_the_weights_and_little_else():
    lora = model_state_bytes(**{**RUN, "stage": "2", "trainable": BILLION // 100})
    assert lora["device"] == pytest.approx((2 + 16 / 8 / 100) * BILLION)

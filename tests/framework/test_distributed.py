"""Processes: everything works for one, and work that a process does alone counts one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from framework import distributed


def test_without_a_group_this_process_is_all_there_is():
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.is_main()
    distributed.barrier()
    distributed.disconnect()
    assert distributed.all_gather_objects("a") == ["a"]
    assert distributed.broadcast_object("a") == "a"


@pytest.mark.parametrize("combine", [distributed.sum_over_ranks, distributed.max_over_ranks])
def test_a_sum_or_maximum_of_one_is_a_copy(combine):
    values = torch.tensor([1.0, 2.0])
    result = combine(values)
    assert torch.equal(result, values)
    result.zero_()
    assert values.tolist() == [1, 2]


def test_a_launcher_is_known_by_its_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed.launched()
    assert distributed.local_rank() == 0
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.launched()
    assert distributed.local_rank() == 1


def test_alone_ends_with_its_block_even_after_an_error(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert distributed.world_size() == 1
        with pytest.raises(ZeroDivisionError), distributed.alone():
            distributed.rank() / distributed.rank()
        distributed.connect()  # once connected, nothing happens
        assert distributed.all_gather_objects([1]) == [[1]]
    finally:
        distributed.disconnect()
    assert not dist.is_initialized()

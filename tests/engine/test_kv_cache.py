"""Where keys and values lie, and how slots are moved."""

from __future__ import annotations

import torch

from engine.kv_cache import KVCache, KVShape


def test_every_layer_begins_at_a_cache_line() -> None:
    """Of a cache as large as real ones: what numpy takes from the system itself is not so aligned."""
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(KVShape(3, 3, 64, dtype), 1000, 16, torch.device("cpu"))
        assert {tensor.data_ptr() % 64 for tensor in (*cache.keys, *cache.values)} == {0}


def test_slots_that_overlap_are_moved_in_every_layer() -> None:
    cache = KVCache(KVShape(2, 1, 2, torch.float32), 2, 4, torch.device("cpu"))
    tensors = [*cache.keys, *cache.values]
    for i, tensor in enumerate(tensors):
        tensor.copy_(10 * i + torch.arange(9.0)[:, None, None].expand(-1, 1, 2))
    cache.move(torch.tensor([3, 5, 6]), torch.tensor([2, 3, 5]))
    for i, tensor in enumerate(tensors):
        assert (tensor[:, 0, 0] - 10 * i).tolist() == [0, 1, 3, 5, 4, 6, 6, 7, 8]

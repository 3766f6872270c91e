"""What goes to a GPU in one copy arrives as it was."""

from __future__ import annotations

import numpy as np
import torch

from engine.transfer import in_one_copy


def test_shapes_and_numbers_survive_being_joined() -> None:
    arrays = [np.arange(3), np.arange(6).reshape(3, 2) - (1 << 62), np.empty(0, np.int64), np.array([[7]])]
    for array, tensor in zip(arrays, in_one_copy(arrays, torch.device("cpu")), strict=True):
        assert tensor.dtype == torch.int64
        np.testing.assert_array_equal(tensor.numpy(), array)

"""Transfers the integer arrays of a step to the device, in one copy that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch


def to_device(arrays: Seq[npt.NDArray[np.int64]], device: torch.device) -> list[torch.Tensor]:
    """Return the arrays as tensors of the same shapes; on a CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return in_one_copy(arrays, device)


def in_one_copy(arrays: Seq[npt.NDArray[np.int64]], device: torch.device) -> list[torch.Tensor]:
    """Copy all arrays at once; returns views of one tensor.

    Copies to CUDA are made from pinned memory, which torch keeps until the copy is complete.
    """
    joined = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        joined = joined.pin_memory()
    parts = joined.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

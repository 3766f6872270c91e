"""Chooses the arithmetic precision of a run if its settings leave that open."""

from __future__ import annotations

import torch

from training.settings import TrainSettings

BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""CPU capabilities for multiplying bfloat16, as torch names them; the last two are Arm's."""


def with_precision(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """Return ``settings`` with ``mixed_precision`` ``auto`` resolved for ``device``.

    On a CPU without instructions for bfloat16, it is many times slower than float32.
    """
    if settings.mixed_precision != "auto":
        return settings
    # Older releases of torch do not report capabilities.
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    slow = device.type == "cpu" and not any(can.get(name, False) for name in BF16)
    return settings.model_copy(update={"mixed_precision": "no" if slow else "bf16"})

"""Which precision the arithmetic of a run has where its settings leave that open."""

from __future__ import annotations

import torch

from training.settings import TrainSettings

BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of what a CPU can have to multiply bfloat16; the last two are Arm's."""


def with_precision(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """``settings`` with ``auto`` decided for this device: a CPU that has no instructions for bfloat16 takes
    many times longer for it than for float32.
    """
    if settings.mixed_precision != "auto":
        return settings
    # Older releases of torch cannot tell.
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    slow = device.type == "cpu" and not any(can.get(name, False) for name in BF16)
    return settings.model_copy(update={"mixed_precision": "no" if slow else "bf16"})

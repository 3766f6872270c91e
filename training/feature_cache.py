"""On-disk cache of the teacher's outputs, so that epochs after the first need no forward pass of the teacher.

Flat files, mapped into memory and shared by the processes of one machine, for the T tokens of all examples:
bfloat16 ``[T, 2, hidden]`` (input embedding, feature), float32 ``[T]`` (scores, if the teacher has them), and
bytes ``[T]`` that mark the tokens already cached. A pass is read from the cache if all its tokens are there.
Features are rounded to bfloat16 whether they are read or have just been computed, so a run resumed in the
middle of an epoch learns the same as an uninterrupted one.

The operating system writes the files to the disk in any order: if it stops without warning, tokens may be
marked whose values are lost. Files are therefore used only until the next boot.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
from torch import Tensor

from training.batches import Batch
from training.errors import TrainingError
from training.teacher import Seen, Teacher

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FeatureCache:
    """A cached ``teacher.see``.

    ``num_tokens``: number of tokens in all examples. ``key``: changes with everything that the features
    depend on; files with another key in ``folder``, or of an earlier boot, are removed.

    Raises ``TrainingError`` if it would need more than ``limit_gb`` (1e9 bytes) or more than the disk has.
    """

    def __init__(self, teacher: Teacher, folder: Path, num_tokens: int, key: str, limit_gb: float) -> None:
        hidden = int(teacher.text_config.hidden_size)
        parts = {"values": (num_tokens * 2 * hidden, torch.bfloat16), "known": (num_tokens, torch.uint8)}
        if teacher.knows_attention:
            parts["scores"] = (num_tokens, torch.float32)
        needed = sum(count * kind.itemsize for count, kind in parts.values())
        if needed > limit_gb * 1e9:
            raise TrainingError(
                f"the target's features for {num_tokens} tokens take {needed / 1e9:.3g} GB, more than "
                f"--feature-cache-gb {limit_gb:g}; raise it, or set it to 0 to run the target in every epoch"
            )
        self._teacher = teacher
        # Memory mapped from a network disk is not shared between machines, so each one has its own files.
        start = f"features-{socket.gethostname()}-"
        self._paths = {part: folder / f"{start}{_boot()}{key}.{part}" for part in parts}
        for old in set(folder.glob(f"{start}*")) - set(self._paths.values()):
            old.unlink()
        mapped = {part: _mapped(self._paths[part], *wanted) for part, wanted in parts.items()}
        self._values, self._known = mapped["values"].view(num_tokens, 2, hidden), mapped["known"]
        self._scores = mapped.get("scores")

    def see(self, batch: Batch) -> Seen:
        """Return what ``Teacher.see`` returns, rounded to bfloat16."""
        real = batch.slots >= 0
        slots = batch.slots[real].cpu()
        if not bool(self._known[slots].all()):
            seen = self._teacher.see(batch)
            self._values[slots] = (
                torch.stack([seen.embeddings[real], seen.features[real]], dim=1).bfloat16().cpu()
            )
            if self._scores is not None and seen.scores is not None:
                self._scores[slots] = seen.scores[real].cpu()
            self._known[slots] = 1  # last, because another process may be reading
        embeddings, features = (self._spread(values, real) for values in self._values[slots].unbind(1))
        scores = None if self._scores is None else self._spread(self._scores[slots], real)
        return Seen(embeddings, features, self._teacher.positions(batch), scores)

    def _spread(self, values: Tensor, real: Tensor) -> Tensor:
        """Scatter the ``values`` of real tokens, as float32 on the teacher's device; padding gets zeros."""
        spread = real.new_zeros((*real.shape, *values.shape[1:]), dtype=torch.float32)
        spread[real] = values.to(real.device).float()
        return spread

    def remove(self) -> None:
        """Delete the files; the cache must not be used afterwards."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def _boot() -> str:
    """Return what tells this boot of the machine from others; empty where the system has no such thing."""
    try:
        return f"{_BOOT_ID.read_text().strip()}-"
    except OSError:
        return ""


def _mapped(path: Path, count: int, kind: torch.dtype) -> Tensor:
    """Map a file, created with zeros if missing, as a shared tensor ``[count]``."""
    size = count * kind.itemsize
    try:
        with open(path, "ab") as file:
            # Allocate the space now: a disk that fills up later would kill the process without a message.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise TrainingError(
            f"no room for {size / 1e9:.3g} GB of features in {path.parent}: {error.strerror}"
        ) from error
    return torch.from_file(str(path), shared=True, size=count, dtype=kind)

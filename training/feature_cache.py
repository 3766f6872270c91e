"""What the teacher gives, kept on disk: every epoch but the first does without the teacher's forward.

Flat files, mapped into memory and shared by the processes of one machine, for the T tokens of all examples:
bfloat16 ``[T, 2, hidden]`` (input embedding, feature), float32 ``[T]`` (scores) where there are any, and
bytes ``[T]`` that say which are there. A pass is read when all of its tokens are there. Features go through
bfloat16 whether they are read or have just been made, so a run that goes on in the middle of an epoch learns
what an unbroken one does.
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


class FeatureCache:
    """``teacher.see`` with a memory. ``num_tokens``: of all examples. ``key``: changes with everything that
    the features depend on. Files of another key in ``folder`` are removed.

    Raises ``TrainingError`` where it would take more than ``limit_gb`` (1e9 bytes) or the disk has.
    """

    def __init__(self, teacher: Teacher, folder: Path, num_tokens: int, key: str, limit_gb: float) -> None:
        hidden = int(teacher.text_config.hidden_size)
        parts = {"values": (num_tokens * 2 * hidden, torch.bfloat16), "known": (num_tokens, torch.uint8)}
        if teacher.knows_attention:
            parts["scores"] = (num_tokens, torch.float32)
        needed = sum(count * kind.itemsize for count, kind in parts.values())
        if needed > limit_gb * 1e9:
            raise TrainingError(
                f"the teacher's features of {num_tokens} tokens take {needed / 1e9:.3g} GB, more than "
                f"--feature-cache-gb {limit_gb:g}; raise it, or set it to 0 to run the teacher in every epoch"
            )
        self._teacher = teacher
        # Memory mapped from a network disk is not shared between machines, so each has its own.
        start = f"features-{socket.gethostname()}-"
        self._paths = {part: folder / f"{start}{key}.{part}" for part in parts}
        for old in set(folder.glob(f"{start}*")) - set(self._paths.values()):
            old.unlink()
        mapped = {part: _mapped(self._paths[part], *wanted) for part, wanted in parts.items()}
        self._values, self._known = mapped["values"].view(num_tokens, 2, hidden), mapped["known"]
        self._scores = mapped.get("scores")

    def see(self, batch: Batch) -> Seen:
        """As ``Teacher.see``, rounded to bfloat16."""
        real = batch.slots >= 0
        slots = batch.slots[real].cpu()
        if not bool(self._known[slots].all()):
            seen = self._teacher.see(batch)
            self._values[slots] = (
                torch.stack([seen.embeddings[real], seen.features[real]], dim=1).bfloat16().cpu()
            )
            if self._scores is not None and seen.scores is not None:
                self._scores[slots] = seen.scores[real].cpu()
            self._known[slots] = 1  # after the rest: another process may be reading
        embeddings, features = (self._spread(values, real) for values in self._values[slots].unbind(1))
        scores = None if self._scores is None else self._spread(self._scores[slots], real)
        return Seen(embeddings, features, self._teacher.positions(batch), scores)

    def _spread(self, values: Tensor, real: Tensor) -> Tensor:
        """``values`` of the real tokens, float32 on the teacher's device; zeros for padding."""
        spread = real.new_zeros((*real.shape, *values.shape[1:]), dtype=torch.float32)
        spread[real] = values.to(real.device).float()
        return spread

    def remove(self) -> None:
        """The files; nothing may be asked of it afterwards."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def _mapped(path: Path, count: int, kind: torch.dtype) -> Tensor:
    """A file of zeros where there was none; ``[count]``, shared."""
    size = count * kind.itemsize
    try:
        with open(path, "ab") as file:
            # Room is taken now: a disk that fills up under mapped memory ends a process without a word.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise TrainingError(
            f"no room for {size / 1e9:.3g} GB of features at {path.parent}: {error.strerror}"
        ) from error
    return torch.from_file(str(path), shared=True, size=count, dtype=kind)

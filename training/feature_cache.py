"""What the teacher gives, kept on disk: every epoch but the first does without the teacher's forward.

One flat file of bfloat16 ``[T, 2, hidden]`` (input embedding, feature) for the T tokens of all examples,
and one of bytes ``[T]`` that says which are there; both are mapped into memory and shared by the
processes of one machine. A pass is read when all of its tokens are there. Features go through bfloat16
whether they are read or have just been made, so a run that goes on in the middle of an epoch learns what
an unbroken one does.
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
        needed = num_tokens * (4 * hidden + 1)
        if needed > limit_gb * 1e9:
            raise TrainingError(
                f"the teacher's features of {num_tokens} tokens take {needed / 1e9:.3g} GB, more than "
                f"--feature-cache-gb {limit_gb:g}; raise it, or set it to 0 to run the teacher in every epoch"
            )
        self._teacher = teacher
        # Memory mapped from a network disk is not shared between machines, so each has its own.
        start = f"features-{socket.gethostname()}-"
        self._paths = [folder / f"{start}{key}.{part}" for part in ("values", "known")]
        for old in set(folder.glob(f"{start}*")) - set(self._paths):
            old.unlink()
        values, known = (
            _mapped(path, count, kind)
            for path, count, kind in zip(
                self._paths, (num_tokens * 2 * hidden, num_tokens), (torch.bfloat16, torch.uint8), strict=True
            )
        )
        self._values, self._known = values.view(num_tokens, 2, hidden), known

    def see(self, batch: Batch) -> Seen:
        """As ``Teacher.see``, rounded to bfloat16."""
        real = batch.slots >= 0
        slots = batch.slots[real].cpu()
        if bool(self._known[slots].all()):
            both = self._values[slots].to(self._teacher.device)
        else:
            seen = self._teacher.see(batch)
            both = torch.stack([seen.embeddings[real], seen.features[real]], dim=1).bfloat16()
            self._values[slots] = both.cpu()
            self._known[slots] = 1  # after the values: another process may be reading
        embeddings, features = (
            both.new_zeros((*real.shape, both.shape[-1]), dtype=torch.float32) for _ in range(2)
        )
        embeddings[real], features[real] = both[:, 0].float(), both[:, 1].float()
        return Seen(embeddings, features, self._teacher.positions(batch))

    def remove(self) -> None:
        """The files; nothing may be asked of it afterwards."""
        for path in self._paths:
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

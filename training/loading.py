"""Worker processes that prepare data ahead of the one that trains."""

from __future__ import annotations

import signal
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def load_ahead(data: Dataset[T], workers: int) -> DataLoader[T]:
    """The items of ``data`` in order, made by ``workers`` processes; 0: by this one."""
    return DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_signals_alone,
    )


def _leave_signals_alone(worker: int) -> None:  # noqa: ARG001 (what torch calls it with)
    """Ctrl-C, and whoever stops a container, signal all processes of a group. The one that trains then
    finishes its step and saves, for which it needs its workers; they end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

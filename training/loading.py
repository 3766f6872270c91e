"""Worker processes that prepare data ahead of the one that trains."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def load_ahead(data: Dataset[T], workers: int) -> DataLoader[T]:
    """Load the items of ``data`` in order in ``workers`` processes; 0 loads them in this one."""
    return DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_signals_alone,
    )


def _leave_signals_alone(worker: int) -> None:  # noqa: ARG001 (torch passes it)
    """Ignore SIGINT and SIGTERM in a worker.

    Ctrl-C and the stopping of a container signal all processes of a group. The training process then finishes
    its step and saves, for which it needs its workers; they end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # a training process that is killed cannot end them
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

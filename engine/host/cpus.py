"""How many processors' worth of time this process may take, and threads to match."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.host.cgroups import CGROUPS, OWN_CGROUP, own_groups


def set_num_threads(wanted: int | None) -> None:
    """Torch's, of which the CPU kernels have as many. ``None``: torch's own choice, but no more than there is
    time for.
    """
    if wanted is None:
        own = torch.get_num_threads()
        wanted = min(own, cpu_quota() or own)
    torch.set_num_threads(wanted)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many of torch's own threads meanwhile. One alone is quicker at what a step of few rows leaves to
    torch: a draw from 49,152 words took 1.55 ms with one, and 2.0 with two, which it has to wake each time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_quota(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int | None:
    """Processors, rounded up, that a container or a service is limited to (cgroup v2); ``None``: no limit.

    More threads than that would use up the quota early in each period, and all stand still until its end.
    """
    groups = own_groups(cgroups, own_cgroup)
    quotas = [quota for group in groups if (quota := _quota(group)) is not None]
    return math.ceil(min(quotas)) if quotas else None


def _quota(group: Path) -> float | None:
    """``cpu.max`` holds microseconds of a period, or ``max``, and the period."""
    try:
        most, period = (group / "cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # not a group of v2, or not ours to read
        return None

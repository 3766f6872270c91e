"""The host memory that is available to this process. No torch."""

from __future__ import annotations

from pathlib import Path

import psutil

from engine.host.cgroups import CGROUPS, OWN_CGROUP, own_groups


def available_memory(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Return the available bytes: those of the machine, or less if a container or service has its own limit.

    Only cgroup v2 limits are detected, not v1. Beyond the limit the kernel kills the process, however much
    memory the machine has left.
    """
    groups = own_groups(cgroups, own_cgroup)
    rooms = [room for group in groups if (room := _room(group)) is not None]
    return min([int(psutil.virtual_memory().available), *rooms])


def _room(group: Path) -> int | None:
    """Return the bytes left to the limit of one group; its reclaimable file cache counts as available."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(counts.get("inactive_file", "0")))
    except (OSError, ValueError):  # not a v2 group, or not readable
        return None

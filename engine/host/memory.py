"""How much of the host's memory this process may still take. No torch."""

from __future__ import annotations

from pathlib import Path

import psutil

from engine.host.cgroups import CGROUPS, OWN_CGROUP, own_groups


def available_memory(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Bytes. What the machine has, or less where a container or a service has a limit of its own (cgroup v2;
    a limit of v1 is not seen): beyond that the kernel kills, however much the machine has left.
    """
    groups = own_groups(cgroups, own_cgroup)
    rooms = [room for group in groups if (room := _room(group)) is not None]
    return min([int(psutil.virtual_memory().available), *rooms])


def _room(group: Path) -> int | None:
    """Bytes up to the limit of one group; what it holds of files that can be dropped counts as room."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(counts.get("inactive_file", "0")))
    except (OSError, ValueError):  # not a group of v2, or not ours to read
        return None

"""How much of the host's memory this process may still take. No torch."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_memory(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Bytes. What the machine has, or less where a container or a service has a limit of its own (cgroup v2;
    a limit of v1 is not seen): beyond that the kernel kills, however much the machine has left.
    """
    folder = _own_folder(cgroups, own_cgroup)
    groups = [] if folder is None else [folder, *folder.parents]
    rooms = [room for group in groups if group.is_relative_to(cgroups) and (room := _room(group)) is not None]
    return min([int(psutil.virtual_memory().available), *rooms])


def _own_folder(cgroups: Path, own_cgroup: Path) -> Path | None:
    """``0::/system.slice/specvlm.service``; in a container usually ``0::/``."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return None
    found = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return cgroups / found[0].lstrip("/") if found else None


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

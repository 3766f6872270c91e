"""The control groups (v2) of this process: a container may have less than the machine has. No torch."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def own_groups(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> list[Path]:
    """Folders of the group that this process is in and of those around it. None where there is no v2."""
    folder = _own_folder(cgroups, own_cgroup)
    groups = [] if folder is None else [folder, *folder.parents]
    return [group for group in groups if group.is_relative_to(cgroups)]


def _own_folder(cgroups: Path, own_cgroup: Path) -> Path | None:
    """``0::/system.slice/specvlm.service``; in a container usually ``0::/``."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return None
    found = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return cgroups / found[0].lstrip("/") if found else None

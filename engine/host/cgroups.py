"""The control groups (v2) of this process: a container may be limited to less than the machine. No torch."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def own_groups(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> list[Path]:
    """Return the folders of this process's group and of its ancestors; none without cgroup v2."""
    folder = _own_folder(cgroups, own_cgroup)
    groups = [] if folder is None else [folder, *folder.parents]
    return [group for group in groups if group.is_relative_to(cgroups)]


def _own_folder(cgroups: Path, own_cgroup: Path) -> Path | None:
    """Parse a line such as ``0::/system.slice/specvlm.service``; in a container usually ``0::/``."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return None
    found = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return cgroups / found[0].lstrip("/") if found else None

"""Records the conditions of a measurement: machine, versions, commit, and load from other processes."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("specvlm", "torch", "transformers", "tokenizers", "numpy")

# Share of the CPU that other processes may use before the results get a warning.
BUSY = 0.15


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }


def load(seconds: float = 1.0) -> dict[str, Any]:
    """Return the load average, and the share of the CPU in use over ``seconds`` while this process sleeps."""
    one, five, _ = psutil.getloadavg()
    return {"load_1min": one, "load_5min": five, "cpu_share": psutil.cpu_percent(interval=seconds) / 100.0}


def busy_warning(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Return a warning if other processes used the machine, as the results are then unreliable."""
    share = max(before["cpu_share"], after["cpu_share"])
    if share <= BUSY:
        return None
    return (
        f"other processes used {share:.0%} of the CPU around this run: ratios are approximate, and absolute "
        "times even less reliable"
    )


def commit() -> str | None:
    """Return the commit of the checkout, with ``+dirty`` if tracked files differ; ``None`` if installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

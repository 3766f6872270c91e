"""The cache folder: its location, atomic folders, a lock between builders, manifests that are quick to check.

Deals with files only; imports nothing heavy.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


class DemoUnavailableError(RuntimeError):
    """The demo model cannot be provided; the message says why and what to do."""


def cache_root() -> Path:
    """Return ``$XDG_CACHE_HOME/specvlm``, by default ``~/.cache/specvlm``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "specvlm"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hex digest."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; other builders wait. The kernel releases it if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``target`` if the block succeeds and is removed if it fails.

    Hold the lock of ``target`` when calling it: scratch folders left by a killed builder are removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_manifest(folder: Path, inputs: dict[str, str]) -> None:
    """Record size, mtime and hash of every file in ``folder``, and the ``inputs`` they were made from."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"inputs": inputs, "files": files}, indent=1) + "\n")


def intact(folder: Path) -> bool:
    """Return whether all files of the manifest are unchanged: by size and mtime, by hash if mtime differs."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return bool(files) and all(_same(folder / name, known) for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _same(path: Path, known: dict[str, str | int]) -> bool:
    found = path.stat()
    if found.st_size != known["size"]:
        return False
    return found.st_mtime_ns == known["mtime_ns"] or sha256(path) == known["sha256"]

"""Output files of a run; they are checked before it begins, since they are written after all the work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.load.errors import BenchError


def check_writable(flag: str, path: Path) -> None:
    """Raise ``BenchError`` if ``path`` cannot be written as a file."""
    folder = path.absolute().parent
    if path.exists() and not path.is_file():
        raise BenchError(f"{flag} {str(path)!r} exists and is not a file")
    if not folder.is_dir():
        raise BenchError(f"{flag} {str(path)!r}: there is no folder {str(folder)!r}")
    if not os.access(folder, os.W_OK):
        raise BenchError(f"{flag} {str(path)!r}: the folder {str(folder)!r} is not writable")


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write ``document`` to ``path`` atomically. Raises ``BenchError``."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(document) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise BenchError(f"{str(path)!r} cannot be written: {error.strerror}") from error

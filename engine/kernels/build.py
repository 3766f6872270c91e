"""Compiles ``cpu.cpp`` once for this machine and keeps the library in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
# No -ffast-math: a NaN in the KV must stay a NaN, since that is how it is detected.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-pthread",
    "-shared",
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120.0


def load_library(folder: Path) -> ctypes.CDLL | None:
    """Load the compiled library from ``folder``, or compile it now (a few seconds).

    Returns ``None``, with a warning that says what would help, if that is not possible.
    """
    compiler = _compiler()
    if compiler is None:
        log.warning("no C++ compiler found (CXX, %s): decoding runs slower", ", ".join(_COMPILERS))
        return None
    try:
        path = folder / f"cpu-{_key(compiler)}.so"
        _private(folder)
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        command = shlex.join(compiler)
        log.warning("%s could not compile the CPU kernels, decoding runs slower: %s", command, error.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("the CPU kernels cannot be used, decoding runs slower: %s", error)
    return None


def _compiler() -> list[str] | None:
    """Return the compiler command; ``CXX`` may contain arguments, or a launcher before the compiler."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    commands = (shlex.split(one) for one in wanted)
    return next(([found, *more] for name, *more in commands if (found := shutil.which(name))), None)


def _private(folder: Path) -> None:
    """Create a folder for this user only. Raises ``OSError`` if others could put a library there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to or can be written by others; make it private (chmod 700)")


def _key(compiler: list[str]) -> str:
    """Return a key of source, flags, compiler and processor: several machines may share the folder."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_SECONDS, check=True)  # noqa: S603
    sources = (path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    parts = (*sources, " ".join([*compiler[1:], *FLAGS]).encode(), version.stdout, _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    kinds = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _compile(compiler: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch, "cpu.so")
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)  # noqa: S603
        os.replace(made, path)

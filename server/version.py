"""The installed version (a plain checkout has none), and a fingerprint of all that answers depend on."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

from engine.messages import EngineInfo

try:
    VERSION = version("specvlm")
except PackageNotFoundError:
    VERSION = "0+checkout"


def system_fingerprint(info: EngineInfo) -> str:
    """Return a value that changes when the same seed may give another answer: with the version, model, dtype
    or device.
    """
    described = "\0".join((VERSION, info.model, info.dtype, info.device))
    return "fp_" + sha256(described.encode()).hexdigest()[:12]

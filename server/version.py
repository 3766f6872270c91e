"""The version that is installed (a plain checkout has none), and what else an answer may depend on."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

from engine.messages import EngineInfo

try:
    VERSION = version("specvlm")
except PackageNotFoundError:
    VERSION = "0+checkout"


def system_fingerprint(info: EngineInfo) -> str:
    """Changes when the same seed may draw another answer: a new version, model, type of weights or device."""
    described = "\0".join((VERSION, info.model, info.dtype, info.device))
    return "fp_" + sha256(described.encode()).hexdigest()[:12]

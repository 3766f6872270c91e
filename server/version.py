"""The version that is installed; a plain checkout has none."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("specvlm")
except PackageNotFoundError:
    VERSION = "0+checkout"

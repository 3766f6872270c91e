"""The CPU kernels for tests, or a skip where no compiler is."""

from __future__ import annotations

import pytest

from engine.host.cache_folder import cache_folder
from engine.kernels.cpu import Kernels


def own_kernels() -> Kernels:
    found = Kernels.load(cache_folder() / "kernels")
    if found is None:
        pytest.skip("no C++ compiler")
    return found

"""How many threads torch has during a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden, request, run_core
from tests.golden.test_greedy import load


def test_torch_has_one_thread_where_little_is_left_to_it(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all of them again for pictures, for long rows, and for whoever else is in the process."""
    golden, before = load_golden(tiny("llava")), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        core, seen = load(golden), dict[str, set[int]]()
        if core.target.kernels is None:
            pytest.skip("no compiler, no kernels: torch does all the work")
        for name, owner in (("embed", core.target), ("encode_images", core.target.adapter)):
            inner, found = getattr(owner, name), seen.setdefault(name, set())

            def watched(*given: Any, inner: Any = inner, found: set[int] = found) -> Any:
                found.add(torch.get_num_threads())
                return inner(*given)

            monkeypatch.setattr(owner, name, watched)
        run_core(core, [(0, request("a", golden.prompt("What is this?", (1,)), max_tokens=5))])
        assert seen == {"embed": {1}, "encode_images": {2}}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

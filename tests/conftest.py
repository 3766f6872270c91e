"""What every test shares: quiet and offline libraries, tiny checkpoints, and a CI that may not skip."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from engine.host.cache_folder import cache_folder


def own_cache() -> Path:
    """A cache folder for this session, since what tests measure says nothing of real models. What takes long
    to make and is the same for all stays in the user's: compiled kernels and the demo model.
    """
    users, own = cache_folder(), Path(tempfile.mkdtemp(prefix="specvlm-tests-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    (own / "specvlm").mkdir()
    for name in ("kernels", "models", "downloads"):
        (users / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (own / "specvlm" / name).symlink_to(users / name)
    return own


# Before anything imports the libraries that read them; processes that tests start inherit them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: threads would spend their time waiting for each other, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run in its interpreter, without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["XDG_CACHE_HOME"] = str(own_cache())

# In CI a test that skips is a test that does not run: there a skip fails, except where a GPU is missing, or a
# program that pip cannot bring. The summary at the end names every skip.
REQUIRE_ALL = os.environ.get("REQUIRE_ALL_TESTS") == "1"
MAY_SKIP = ("gpu", "program")

BuildCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BuildCheckpoint:
    """``tiny("llava")``: folder of that tiny checkpoint, built once a session. Treat it as read-only."""
    from tests.models import Family, build_tiny

    built: dict[tuple[Family, int], Path] = {}

    def build(family: Family, seed: int = 0) -> Path:
        if (family, seed) not in built:
            folder = tmp_path_factory.mktemp(f"{family}-{seed}-")
            built[family, seed] = build_tiny(family, folder, seed=seed)
        return built[family, seed]

    return build


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = hasattr(report, "wasxfail") or any(item.get_closest_marker(name) for name in MAY_SKIP)
    if REQUIRE_ALL and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped, and REQUIRE_ALL_TESTS=1 allows none: {call.excinfo}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} skipped as a whole, and REQUIRE_ALL_TESTS=1 allows none"
    return report

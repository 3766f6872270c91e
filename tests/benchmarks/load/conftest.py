"""Servers to put load on: ours with a fake engine, and somebody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import document
from tests.benchmarks.load.peer import Peer, running_peer
from tests.server.conftest import Live, quiet_logs, start_live, stop_live


@pytest.fixture(autouse=True)
def _no_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip measuring the load, which takes a second before and after each run, and hide the caller's key."""
    monkeypatch.setattr(document, "load", lambda: {"cpu_share": 0.0})
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def shared_live() -> Iterator[Live]:
    with quiet_logs():
        live = start_live()
        yield live
        stop_live(live)


@pytest.fixture
def live(shared_live: Live) -> Live:
    shared_live.engine.reset()
    return shared_live


@pytest.fixture
def peer() -> Iterator[Peer]:
    with running_peer() as peer:
        yield peer


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """A file of four questions without pictures, which the fake server could not read."""
    path = tmp_path / "questions.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"Question {number}?"}]} for number in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)

"""What the documents say, held against the code: links lead somewhere, commands are ones that there are.

What they compute, answer or draw is tested where that is: ``tests/http``, ``tests/deploy``, ``tests/server``.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_settings import CliApp

from benchmarks.load.published import PUBLISHED
from server.cli import program
from server.schemas.chat import ChatRequest
from tests.imports import ROOT

PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("demo/**/*.md"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OURS = (["specvlm"], ["python", "-m", "server"])


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for found, content in BLOCK.findall((ROOT / page).read_text()):
            if found == language:
                yield page, content


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for written in LINK.findall((ROOT / page).read_text()):
            target = "".join(written)
            if not re.match(r"[a-z]+:", target):
                yield page, target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every command line of ours in a block of shell; what stands in ``NAME=$(…)``, too."""
    for page in PAGES:
        blocks = BLOCK.findall((ROOT / page).read_text())
        for block in (content for language, content in blocks if language in ("", "sh")):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line.strip())
                if line.startswith(("specvlm ", "python -m ")):
                    words = shlex.split(line, comments=True)
                    yield page, words[: words.index(">")] if ">" in words else words


def ours() -> list[tuple[str, list[str]]]:
    return [
        (str(page), words[len(start) :])
        for page, words in commands()
        for start in OURS
        if words[: len(start)] == start
    ]


@pytest.mark.parametrize(("page", "target"), list(links()), ids=str)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page}: {target}"
    if anchor:
        assert anchor in anchors(file), f"{page}: {target}"


@pytest.mark.parametrize(("page", "arguments"), ours(), ids=lambda value: str(value)[:60])
def test_commands_have_the_flags_that_are_written(
    page: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed and checked as when they run, and not run; so are the flags of a server that they start."""
    asked = parsed(arguments, monkeypatch)
    if serve := getattr(asked, "serve", ""):
        parsed(["serve", *shlex.split(serve)], monkeypatch)


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    found: list[object] = []
    monkeypatch.setattr(CliApp, "run_subcommand", lambda model: found.append(model))
    CliApp.run(program(), cli_args=arguments)
    [root] = found
    [command] = [value for _, value in root if value is not None]  # type: ignore[attr-defined]
    return command


def test_there_are_commands_of_each_kind() -> None:
    assert {arguments[0] for _, arguments in ours()} >= {"serve", "train", "bench", "selftest", "demo"}


@pytest.mark.parametrize(
    "module", sorted({words[2] for _, words in commands() if words[0] == "python"} - {"server"})
)
def test_modules_that_are_run_have_their_flags(module: str) -> None:
    written = [words[3:] for _, words in commands() if words[:3] == ["python", "-m", module]]
    help_text = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    flags = {word for words in written for word in words if word.startswith("--")}
    assert flags <= set(re.findall(r"--[a-z-]+", help_text))


@pytest.mark.parametrize(("page", "block"), list(blocks("json")), ids=lambda value: str(value)[:40])
def test_json_is_json_and_requests_are_valid(page: Path, block: str) -> None:
    """Each of them that has messages is a chat's request, and unknown fields are refused there."""
    value = json.loads(block)
    if "messages" in value:
        ChatRequest.model_validate(value)


def test_there_are_requests_to_validate() -> None:
    pages = [page.name for page, block in blocks("json") if "messages" in json.loads(block)]
    assert {"api.md", "tools.md"} <= set(pages)


def test_the_code_that_compresses_a_picture() -> None:
    [code] = [block for page, block in blocks("python") if "training_free" in block]
    names: dict[str, Any] = {"tokens": torch.randn(576, 8)}
    exec(code, names)
    small = names["small"]
    assert (tuple(small.values.shape), small.sources.dtype, len(small.sources)) == (
        (120, 8),
        torch.int64,
        120,
    )


def test_every_published_set_is_told_of() -> None:
    text = (ROOT / "docs" / "reproducing.md").read_text()
    assert set(re.findall(r"`([a-z0-9-]+):DIR`", text)) == set(PUBLISHED)

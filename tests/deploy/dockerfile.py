"""Reads our Dockerfile and does what its build stage does, in folders of this machine.

Knows the instructions that we use and refuses others. What apt-get installs has to be here already.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.imports import ROOT

SKIPPED = ("ARG", "EXPOSE", "SHELL")


@dataclass(frozen=True, slots=True)
class Stage:
    """Instructions after one ``FROM``: (name, rest of the line, continued lines joined)."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, wanted: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == wanted]

    def last(self, wanted: str) -> str:
        return self.all(wanted)[-1]

    def argv(self, wanted: str) -> list[str]:
        """Of an instruction in its exec form, options such as ``--interval`` left out."""
        words: list[Any] = json.loads(self.last(wanted)[self.last(wanted).index("[") :])
        return [str(word) for word in words]

    @property
    def environment(self) -> dict[str, str]:
        pairs = [word.partition("=") for rest in self.all("ENV") for word in shlex.split(rest)]
        return {name: value for name, _, value in pairs}


def read(path: Path = ROOT / "Dockerfile") -> list[Stage]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stages.append(Stage(rest.partition(" AS ")[2]))
        elif name and stages:
            stages[-1].instructions.append((name, rest))
    return stages


def build(stage: Stage, context: Path, places: Mapping[str, Path], environment: Mapping[str, str]) -> None:
    """Run ``stage``. ``places``: folders of this machine that stand for absolute ones of the container."""

    def here(text: str) -> str:
        for inside, outside in places.items():
            text = re.sub(rf"(?<![\w/]){re.escape(inside)}(?![\w])", str(outside), text)
        return text

    folder: Path | None = None
    for name, rest in stage.instructions:
        if name == "WORKDIR":
            folder = Path(here(rest))
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            assert folder is not None
            *sources, target = rest.split()
            assert target in (".", "./"), rest
            for source in sources:
                copy(context / source, folder)
        elif name == "RUN" and not rest.startswith("apt-get "):
            command = here(re.sub(r"^(--mount=\S+\s+)*", "", rest))
            result = subprocess.run(
                ["/bin/sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        elif name not in (*SKIPPED, "RUN"):
            raise ValueError(f"no stand-in for {name} {rest}")


def copy(source: Path, folder: Path) -> None:
    """As COPY: the content of a folder, or a file."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        shutil.copy(source, folder)


def build_context(folder: Path) -> Path:
    """The files that git knows and ``.dockerignore`` lets in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "--", *let_in], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder

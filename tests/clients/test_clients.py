"""langchain-openai, litellm and instructor against a live server, in an environment of their own.

Their tests are those in ``inner``; ``docs/clients.md`` says which pass, and has to be right.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.http.conftest import LiveServer
from tests.imports import ROOT

FOLDER = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv-clients"
PAGE = ROOT / "docs" / "clients.md"
CLIENTS = ("langchain", "litellm", "instructor")
WAIT_SECONDS = 850.0

needs_clients = pytest.mark.skipif(
    not (ENVIRONMENT / ".installed").exists(), reason="no client libraries in .venv-clients: make clients"
)
pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

# Of a developer's own settings none may reach the clients; and none of them may ask elsewhere for anything.
FOREIGN = re.compile(r"SPECVLM_|OPENAI_|LITELLM_|LANG|PYTEST_|PYTHON|.*_proxy$", re.IGNORECASE)
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}


class Run:
    """One client's tests in a process of their own."""

    def __init__(self, client: str, server: LiveServer, folder: Path) -> None:
        self.report, self.log = folder / f"{client}.xml", folder / f"{client}.log"
        command = [str(ENVIRONMENT / "bin" / "python"), "-I", "-m", "pytest", "-c", "pytest.ini"]
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--junitxml={self.report}", f"{client}_checks.py"],
                cwd=FOLDER / "inner",
                env=kept | OFFLINE | {"CLIENTS_BASE_URL": server.base_url},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def cases(self) -> list[ElementTree.Element]:
        self.process.wait(WAIT_SECONDS)
        assert self.report.exists(), f"no test ran:\n{self.log.read_text()[-4000:]}"
        return list(ElementTree.parse(self.report).iter("testcase"))


@pytest.fixture(scope="module")
def runs(demo_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All at once: the server answers them together, while each imports for seconds."""
    folder = tmp_path_factory.mktemp("clients")
    started = {client: Run(client, demo_server, folder) for client in CLIENTS}
    yield started
    for run in started.values():
        run.process.kill()
        run.process.wait()


def documented(client: str) -> tuple[int, set[str]]:
    """How many tests pass by ``docs/clients.md``, and which are skipped."""
    text = PAGE.read_text()
    passed = re.search(rf"`tests/clients/inner/{client}_checks.py`: (\d+) pass", text)
    assert passed, f"{PAGE.name} says of {client}_checks.py nothing"
    return int(passed[1]), set(re.findall(rf"^\| {client} `(test_\w+)` \|", text, re.MULTILINE))


@needs_clients
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_passes_and_skips_what_the_page_says(runs: dict[str, Run], client: str) -> None:
    cases = runs[client].cases()
    wrong = [
        f"{case.get('name')}:\n{found.text}"
        for case in cases
        for found in (*case.findall("failure"), *case.findall("error"))
    ]
    assert not wrong, "\n\n".join(wrong)
    skipped = {str(case.get("name")).partition("[")[0] for case in cases if case.find("skipped") is not None}
    passed = sum(case.find("skipped") is None for case in cases)
    assert (passed, skipped) == documented(client)


@needs_clients
def test_the_pinned_versions_are_installed() -> None:
    listed = [sys.executable, "-m", "pip", "--python", str(ENVIRONMENT), "list", "--format=freeze"]
    result = subprocess.run(listed, capture_output=True, text=True, timeout=120, check=True)
    installed = {line.lower().replace("_", "-") for line in result.stdout.splitlines()}
    pinned = {line.lower().replace("_", "-") for line in pins(FOLDER / "requirements.txt")}
    assert pinned <= installed


def pins(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def test_the_page_names_the_pinned_versions() -> None:
    pinned = {*pins(FOLDER / "requirements.txt"), *pins(ROOT / "constraints.txt")}
    node = (ROOT / "tests" / "http" / "node" / "package.json").read_text()
    pinned |= {f"{name} (npm)=={version}" for name, version in re.findall(r'"(openai)": "([\d.]+)"', node)}
    rows = re.findall(r"^\| (\S+(?: \(npm\))?) (\d\S*) \|", PAGE.read_text(), re.MULTILINE)
    named = {f"{name}=={version}" for name, version in rows}
    assert len(named) >= 6
    assert named <= pinned, f"not pinned so: {named - pinned}"

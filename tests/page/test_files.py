"""The page's files and how they are served, without a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from server.routes.page import FOLDER, PUBLIC_PATHS, read_files
from tests.imports import ROOT
from tests.server.conftest import StartServer

TSC = ROOT / "tests/http/node/node_modules/.bin/tsc"
SCRIPTS = sorted(FOLDER.glob("*.js"))
TEXTS = [*SCRIPTS, *sorted(FOLDER.glob("*.css")), FOLDER / "index.html"]
MAX_LINES = 300


class Markup(HTMLParser):
    """What a strict policy forbids, and every address that is named."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        self.inline += [f"{tag} {name}" for name in named if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in named):
            self.inline.append(tag)


def test_what_editors_leave_is_neither_served_nor_in_the_way(tmp_path: Path) -> None:
    for name in ("a.js", ".DS_Store", ".a.js.swp", "a.js~", "#a.js#"):
        (tmp_path / name).write_text("x")
    assert list(read_files(tmp_path)) == ["a.js"]
    (tmp_path / "a.exe").write_text("x")
    with pytest.raises(ValueError, match=r"a\.exe has no media type"):
        read_files(tmp_path)


def test_the_policy_is_strict_and_on_every_file(start_server: StartServer) -> None:
    with start_server().http() as http:
        for path in PUBLIC_PATHS:
            headers = http.get(path).headers
            parts = headers["Content-Security-Policy"].split("; ")
            policy = dict(part.split(" ", 1) for part in parts)
            assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
            assert "unsafe" not in str(policy)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"


def test_files_come_whole_once_and_by_exact_name_only(start_server: StartServer) -> None:
    with start_server().http() as http:
        first = http.get("/page/app.js")
        assert first.headers["Content-Type"].startswith("text/javascript")
        again = http.get("/page/app.js", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert http.get("/page/app.js", headers={"If-None-Match": '"old"'}).content == first.content
        assert http.head("/").headers["Content-Length"] == str(len(http.get("/").content))
        assert http.post("/").status_code == 405
        for path in ("/page/", "/page/nowhere.js", "/page/%2e%2e%2fapp.py", "/page/APP.js"):
            assert http.get(path).status_code == 404, path
        assert not any(path.startswith("/page") for path in http.get("/openapi.json").json()["paths"])


def test_nothing_is_inline_and_every_named_file_is_there() -> None:
    markup = Markup()
    markup.feed((FOLDER / "index.html").read_text())
    assert markup.inline == []
    assert {f"/{address}" for address in markup.addresses} <= PUBLIC_PATHS, (
        "relative, so that any prefix works"
    )
    for script in SCRIPTS:
        for name in re.findall(r'^import .* from "\./(.*)";$', script.read_text(), re.MULTILINE):
            assert f"/page/{name}" in PUBLIC_PATHS


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_stay_small_and_parse_no_html(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not TSC.exists(), reason="npm package typescript is not installed: make node")
def test_the_types_that_the_comments_give_hold() -> None:
    command = [str(TSC), "-p", str(Path(__file__).parent / "tsconfig.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout

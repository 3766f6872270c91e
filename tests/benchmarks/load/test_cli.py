"""The command itself: what goes where, and how it ends."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import own_server
from server import cli
from tests.benchmarks.load.peer import Peer
from tests.conftest import BuildCheckpoint


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    return caught.value.code


def test_json_on_stdout_a_table_on_stderr(
    peer: Peer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.takes_salt = True
    plot = tmp_path / "figures.svg"
    flags = ["--data", questions, "--num-prompts", "4", "--concurrency", "1", "2", "--repeats", "1"]
    assert run("--url", peer.url, *flags, "--goodput", "ttft:900", "e2e:9000", "--plot", str(plot)) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [point["concurrency"] for point in document["points"]] == [1, 2]
    assert document["settings"]["url"] == peer.url
    assert "goodput/s" in err
    assert err.count("1.50") >= 2, "tokens a round"
    assert "</svg>" in plot.read_text()


def test_failures_are_in_the_exit_code(
    peer: Peer, questions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.fails_at = 2
    flags = ["--data", questions, "--num-prompts", "4", "--concurrency", "1", "--repeats", "1"]
    assert run("--url", peer.url, *flags) == 1
    [point] = json.loads(capsys.readouterr().out)["points"]
    assert point["sides"]["server"]["errors"] == {"500: Out of memory": 1}


def two_points(peer: Peer, questions: str) -> list[str]:
    """A greeting, then four questions one at a time, then four two at a time."""
    peer.takes_salt = True
    flags = ["--data", questions, "--num-prompts", "4", "--concurrency", "1", "2", "--repeats", "1"]
    return ["--url", peer.url, *flags]


def assert_first_point(document: dict[str, Any]) -> None:
    assert document["incomplete"] is True
    [point] = document["points"]
    assert (point["concurrency"], point["sides"]["server"]["failed"]) == (1, 0)


def test_a_run_that_fails_keeps_what_was_measured(
    peer: Peer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.fails_from = 5
    out, plot = tmp_path / "run.json", tmp_path / "run.svg"
    code = run(*two_points(peer, questions), "--out", str(out), "--plot", str(plot))
    assert "answered none of 4 requests: 500: Out of memory" in str(code)
    printed = capsys.readouterr()
    assert_first_point(json.loads(out.read_text()))
    assert printed.out == ""
    assert "tok/s" in printed.err, "the table"
    assert "cut short" in plot.read_text()


def test_a_run_that_is_interrupted_keeps_what_was_measured(
    peer: Peer, questions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.interrupts_at = 6
    # A shell's background jobs, as tests may be, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(*two_points(peer, questions)) == "specvlm: interrupted"
    finally:
        signal.signal(signal.SIGINT, before)
    assert_first_point(json.loads(capsys.readouterr().out))


def test_a_file_holds_the_whole_document_in_the_end(
    peer: Peer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    out.write_text("of another run")
    assert run(*two_points(peer, questions), "--out", str(out)) == 0
    document = json.loads(out.read_text())
    assert (document["incomplete"], len(document["points"])) == (False, 2)
    assert capsys.readouterr().out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "questions.jsonl"}


def test_a_plot_is_what_its_name_says(peer: Peer, questions: str, tmp_path: Path) -> None:
    plot = tmp_path / "run.png"
    assert run(*two_points(peer, questions), "--plot", str(plot)) == 0
    with Image.open(plot) as image:
        assert image.format == "PNG"


def test_what_the_disk_does_not_take_is_printed(
    peer: Peer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    (tmp_path / "run.json.partial").mkdir()
    code = run(*two_points(peer, questions), "--out", str(out))
    assert f"specvlm: {str(out)!r} cannot be written" in str(code)
    assert_first_point(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_asked(
    flag: str, peer: Peer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    complaints = {"gone/run.svg": "there is no folder", folder.name: "exists and is not a file"}
    for name, complaint in complaints.items():
        code = run(*two_points(peer, questions), flag, str(tmp_path / name))
        assert f"specvlm: {flag} " in str(code)
        assert complaint in str(code)
    code = run(*two_points(peer, questions), "--plot", str(tmp_path / "run.jpg"))
    assert "must end in .svg or .png" in f"{code}{capsys.readouterr().err}"
    assert peer.bodies == []


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--url", "http://127.0.0.1:9"], "specvlm: http://127.0.0.1:9/v1 cannot be queried"),
        (
            ["--url", "http://127.0.0.1:9", "--data", "/nothing"],
            "specvlm: there is no file or folder '/nothing'",
        ),
        (["--compare", "plain"], "--compare needs exactly two sides"),
        (["--num-prompts", "2", "--concurrency", "4"], "--num-prompts 2 is too few for --concurrency 4"),
        (["--goodput", "itl:5"], "--goodput 'itl:5' must be NAME:MILLISECONDS"),
        (["--goodput", "ttft:soon"], "--goodput 'ttft:soon'"),
        (["--url", "http://a", "--serve", "--port 1"], "--serve and --url cannot be combined"),
        (["--concurrency", "0"], "greater than or equal to 1"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_wrong_is_one_line(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(*flags)
    out, err = capsys.readouterr()
    assert code not in (0, None)
    assert complaint in f"{code}{err}"
    assert "Traceback" not in f"{code}{err}"
    assert out == ""


def test_without_a_url_a_server_is_started(
    tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "TELL_SECONDS", 0.2)
    flags = ["--model", str(tiny("llava")), "--serve", "--device cpu --dtype float32"]
    flags += ["--compare", "speculation", "plain", "--data", "demo:describe", "--max-tokens", "12"]
    assert run(*flags, "--num-prompts", "2", "--concurrency", "2", "--repeats", "1") == 0
    out, err = capsys.readouterr()
    [point] = json.loads(out)["points"]
    assert point["comparison"]["same_answers"] == 2
    assert re.search(r"waiting for the server, \d+ s: .*\w", err), "what it does meanwhile"
    assert point["sides"]["speculation"]["prompt_tokens"] > 20, "a picture was sent"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    code = run("--model", str(tmp_path / "nothing"), "--data", "demo:text")
    assert "specvlm serve exited with code 1" in str(code)
    assert "nothing" in str(code)

"""The command itself: what goes where, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import cli
from tests.bench.peer import Peer
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


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--url", "http://127.0.0.1:9"], "specvlm: http://127.0.0.1:9/v1 cannot be asked"),
        (
            ["--url", "http://127.0.0.1:9", "--data", "/nothing"],
            "specvlm: there is no file or folder '/nothing'",
        ),
        (["--compare", "plain"], "--compare takes two sides"),
        (["--num-prompts", "2", "--concurrency", "4"], "--num-prompts 2 cannot keep --concurrency 4 busy"),
        (["--goodput", "itl:5"], "--goodput 'itl:5' is not NAME:MILLISECONDS"),
        (["--goodput", "ttft:soon"], "--goodput 'ttft:soon'"),
        (["--url", "http://a", "--serve", "--port 1"], "--serve is for a server of our own"),
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


def test_without_a_url_a_server_is_started(tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(tiny("llava")), "--serve", "--device cpu --dtype float32"]
    flags += ["--compare", "speculation", "plain", "--data", "demo:describe", "--max-tokens", "12"]
    assert run(*flags, "--num-prompts", "2", "--concurrency", "2", "--repeats", "1") == 0
    [point] = json.loads(capsys.readouterr().out)["points"]
    assert point["comparison"]["same_answers"] == 2
    assert point["sides"]["speculation"]["prompt_tokens"] > 20, "a picture was sent"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    code = run("--model", str(tmp_path / "nothing"), "--data", "demo:text")
    assert "specvlm serve ended with code 1" in str(code)
    assert "nothing" in str(code)

"""The command: its flags, what it prints, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from tests.training.targets import recitals, reciting_target
from training.cli import Train, stop_signal
from training.generate import answers_path
from training.journal import read_log

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--device", "cpu", "--mixed-precision", "no", "--workers", "1", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_target(tmp_path_factory.mktemp("reciting"))


def test_a_folder_that_cannot_be_made_is_named(reciting: Path, tmp_path: Path) -> None:
    data = recitals(tmp_path / "a.jsonl", 2)
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")
    with pytest.raises(SystemExit, match=f"--out {out} cannot be created: "):
        CliApp.run(Train, cli_args=["--model", str(reciting), "--data", str(data), "--out", out, *FLAGS])


def test_a_model_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = recitals(tmp_path / "a.jsonl", 2)
    for model in (str(tmp_path / "nope"), "no/such"):
        flags = ["--model", model, "--data", str(data), "--out", str(tmp_path / "out"), *FLAGS]
        with pytest.raises(
            SystemExit, match=f"--model {model} is not a folder and cannot be downloaded from the hub: "
        ) as end:
            CliApp.run(Train, cli_args=flags)
        assert "\n" not in str(end.value.code)


def test_generate_and_train_by_flags(
    reciting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recitals(tmp_path / "a.jsonl", 6)
    flags = ["--model", str(reciting), "--data", str(data), "--out", str(tmp_path / "out"), *FLAGS]
    flags += ["--generate-max-tokens", "8"]
    CliApp.run(Train, cli_args=[*flags, "--generate", "only"])
    assert capsys.readouterr().out.split() == [str(answers_path(data))]
    CliApp.run(Train, cli_args=[*flags, "--generate", "first", "--batch-size", "3"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "draft")]
    assert (tmp_path / "out" / "draft" / "config.json").exists()


def test_errors_are_one_line_for_the_user(reciting: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    flags = ["--model", str(reciting), "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"^specvlm: a\.jsonl:1: a record needs"):
        CliApp.run(Train, cli_args=[*flags, *FLAGS])
    with pytest.raises(ValidationError, match="draft_vocab"):
        CliApp.run(Train, cli_args=[*flags, "--draft-vocab", "0"])


def test_the_first_signal_asks_and_the_second_ends() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        asked = stop_signal()
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_a_signal_to_the_whole_group_stops_it_as_one_to_the_command_does(
    reciting: Path, tmp_path: Path
) -> None:
    """As Ctrl-C in a shell, and as a container is stopped: the workers get it too."""
    data, out = recitals(tmp_path / "a.jsonl", 64), tmp_path / "out"
    flags = ["--model", str(reciting), "--data", str(data), "--out", str(out), *FLAGS]
    flags += ["--batch-size", "1", "--epochs", "1000", "--log-every", "1"]
    command = [sys.executable, "-m", "server", "train", *flags]
    started = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while len(read_log(out / "log.jsonl")) < 5:
            assert started.poll() is None
            time.sleep(0.1)
        os.killpg(started.pid, signal.SIGTERM)
        assert started.wait(timeout=60) == 0
    finally:
        started.kill()
    assert (out / "draft" / "config.json").exists()
    steps = [line["step"] for line in read_log(out / "log.jsonl")]
    assert 5 <= steps[-1] < 64_000

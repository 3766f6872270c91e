"""The command line and where settings come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from engine.config import EngineConfig, SpeculativeConfig, VisualCompression
from server import cli
from server.settings import ServeSettings

FLAGS = (
    *("--model", "--served-model-name", "--host", "--port", "--api-key", "--dtype", "--device"),
    *("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--max-num-queued-reqs"),
    *("--gpu-memory-utilization", "--kv-cache-memory", "--limit-mm-per-prompt", "--allowed-media-domains"),
    *("--allowed-local-media-path", "--chat-template", "--root-path", "--ssl-keyfile", "--ssl-certfile"),
    *("--shutdown-timeout", "--revision", "--metrics-prefix", "--trust-remote-code", "--log-level"),
    *("--scheduling-policy", "--max-image-pixels", "--draft", "--speculative-config"),
    *("--max-num-queued-tokens", "--request-timeout", "--allowed-origins"),
)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What ``specvlm serve`` would have served with."""
    seen: list[ServeSettings] = []
    monkeypatch.setattr(cli.Serve, "cli_cmd", seen.append)
    return seen


def test_help_is_quick_and_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert flag + " " in text
    assert "(default: 8000)" in text
    heavy = "{'torch', 'transformers', 'fastapi', 'uvicorn'}"
    code = f"import sys, server.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_flags(parsed: list[ServeSettings]) -> None:
    flags = ["--model", "m", "--port", "0", "--kv-cache-memory", "2GiB", "--max-num-seqs", "3"]
    flags += ["--api-key", "a", "--api-key", "b,c", "--served-model-name", "x", "--trust-remote-code"]
    flags += ["--no-enable-prefix-caching", "--limit-mm-per-prompt", '{"image": 8}', "--num-threads", "2"]
    cli.main(["serve", *flags])
    [settings] = parsed
    assert settings.kv_cache_memory == 2 * 2**30
    assert settings.api_keys() == ["a", "b", "c"]
    assert settings.names == ["x"]
    assert settings.max_images == 8
    config = settings.engine_config("m")
    assert (config.max_num_seqs, config.enable_prefix_caching, config.trust_remote_code) == (3, False, True)
    assert (config.kv_cache_memory, config.num_threads) == (2 * 2**30, 2)
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config, (
        "it reaches a process"
    )


def test_the_demo_model_has_a_name_of_its_own(parsed: list[ServeSettings]) -> None:
    cli.main(["serve"])
    assert parsed[0].names == ["specvlm-demo"]
    assert (parsed[0].host, parsed[0].port) == ("127.0.0.1", 8000)


def test_flags_come_before_environment_before_file(
    parsed: list[ServeSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"port": 1, "max-num-seqs": 2, "host": "file"}))
    monkeypatch.setenv("SPECVLM_PORT", "3")
    monkeypatch.setenv("SPECVLM_MAX_NUM_SEQS", "4")
    monkeypatch.setenv("SPECVLM_API_KEY", "k1,k2")
    cli.main(["serve", "--config", str(file), "--port", "5"])
    monkeypatch.setenv("SPECVLM_CONFIG", str(file))
    cli.main(["serve"])
    assert [(s.port, s.max_num_seqs, s.host) for s in parsed] == [(5, 4, "file"), (3, 4, "file")]
    assert parsed[0].api_keys() == ["k1", "k2"]


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('max_num_seqs = 7\nserved-model-name = ["a", "b"]\n')
    settings = ServeSettings(config=file)
    assert (settings.max_num_seqs, settings.names) == (7, ["a", "b"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--draft", ""],
        ["--speculative-config", '{"num_draft_tokens": 64}'],
        ["--target-visual-compression", '{"method": "zip"}'],
        ["--target-visual-compression", '{"method": "pool", "ratio": 0.5}'],
        ["--nonsense"],
        ["--port", "65536"],
        ["--num-threads", "100000"],
        ["--kv-cache-memory", "2 bananas"],
        ["--limit-mm-per-prompt", '{"video": 1}'],
        ["--ssl-keyfile", "key"],
        ["--metrics-prefix", "a b"],
        ["--root-path", "x/"],
        ["--api-key", ""],
        ["--config", "/nowhere.json"],
        ["--ssl-keyfile", "/nowhere.pem", "--ssl-certfile", __file__],
        ["--ssl-keyfile", __file__, "--ssl-certfile", __file__],
        ["--api-key-file", "/nowhere.txt"],
        ["--api-key-file", "/dev/null"],
        ["--allowed-local-media-path", "/nowhere"],
        ["--allowed-local-media-path", __file__],
        ["--allowed-origins", "https://a.example/"],
        ["--model", "/nowhere"],
        ["--draft", "./nowhere"],
    ],
)
def test_bad_flags_end_with_a_word_about_them(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", *flags])
    message = f"{caught.value.code}{capsys.readouterr().err}"
    assert caught.value.code not in (0, None)
    assert flags[0].lstrip("-").split("-")[0] in message
    assert "Traceback" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--root-path", "foo/", "'foo/' must start with a slash and not end with one, such as '/vlm'"),
        ("--allowed-origins", "example.com", "'example.com' must look like 'https://example.com', or be '*'"),
        ("--metrics-prefix", "a-b", "'a-b' must be letters, digits and underscores"),
        ("--limit-mm-per-prompt", "x", "'x' is not a JSON object such as '{\"image\": 8}'"),
        ("--limit-mm-per-prompt", "[1]", "'[1]' is not a JSON object such as '{\"image\": 8}'"),
        ("--api-key", "[", "starting with '[' must be a JSON list such as '[\"a\", \"b\"]'"),
        ("--allowed-origins", "[1,", "starting with '[' must be a JSON list such as '[\"a\", \"b\"]'"),
    ],
)
def test_bad_values_are_told_in_words_with_their_flag_or_variable(
    flag: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "SPECVLM_" + flag.lstrip("-").upper().replace("-", "_")
    for name, argv in ((flag, [flag, value]), (variable, [])):
        with pytest.raises(SystemExit) as caught:
            cli.main(["serve", *argv])
        message = str(caught.value.code)
        assert message.startswith(f"specvlm: {name}: ")
        assert words in message
        assert "\n" not in message
        monkeypatch.setenv(variable, value)


def test_speculation_reaches_the_engine(
    parsed: list[ServeSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli.main(["serve"])
    cli.main(["serve", "--draft", "ngram", "--speculative-config", '{"num_steps": 2, "topk": 1}'])
    monkeypatch.setenv("SPECVLM_DRAFT", "none")
    monkeypatch.setenv("SPECVLM_SPECULATIVE_CONFIG", '{"num_draft_tokens": 5}')
    cli.main(["serve"])
    monkeypatch.delenv("SPECVLM_SPECULATIVE_CONFIG")
    file = tmp_path / "settings.toml"
    file.write_text("[speculative-config]\nnum_steps = 0\n")
    cli.main(["serve", "--config", str(file)])
    configs = [settings.engine_config("m") for settings in parsed]
    assert [(config.draft, config.speculative) for config in configs] == [
        ("auto", SpeculativeConfig()),
        ("ngram", SpeculativeConfig(num_steps=2, topk=1)),
        ("none", SpeculativeConfig(num_draft_tokens=5)),
        ("none", SpeculativeConfig(num_steps=0)),
    ]


def test_lossy_compression_is_off_unless_it_is_asked_for(parsed: list[ServeSettings]) -> None:
    cli.main(["serve"])
    cli.main(["serve", "--target-visual-compression", '{"method": "pool"}'])
    told = [settings.engine_config("m").target_visual_compression for settings in parsed]
    assert told == [None, VisualCompression(method="pool", ratio=4.0)]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "truncated"),
        ("{bad", "JSON is malformed"),
        ('{"depth": 3}', "unknown field `depth`"),
        ('{"num_steps": 33}', "num_steps must lie in 0..32, got 33"),
        ('{"topk": true}', "Expected `int`, got `bool`"),
    ],
)
def test_a_bad_speculative_config_is_one_clear_line(
    config: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for flags in (["--speculative-config", config], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(["serve", *flags])
        said.append(str(caught.value.code))
        monkeypatch.setenv("SPECVLM_SPECULATIVE_CONFIG", config)
    assert said[0].startswith("specvlm: --speculative-config: ")
    assert said[1] == said[0].replace("--speculative-config", "SPECVLM_SPECULATIVE_CONFIG")
    assert complaint in said[0]
    assert "\n" not in said[0]


def test_unknown_keys_fail_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="prot"):
        ServeSettings(prot=1)
    file = tmp_path / "settings.json"
    file.write_text('{"port": 5, "max-num-sequences": 1}')
    with pytest.raises(SettingsError, match=rf"{file}: 'max-num-sequences'"):
        ServeSettings(config=file)
    file.write_text('{"config": "another.json"}')
    with pytest.raises(SettingsError, match=rf"{file}: 'config'"):
        ServeSettings(config=file)
    monkeypatch.setenv("SPECVLM_PROT", "1")
    with pytest.raises(SettingsError, match="SPECVLM_PROT"):
        ServeSettings()


def test_a_pass_must_hold_a_token_of_each_answer() -> None:
    """Known before a model is loaded."""
    with pytest.raises(ValidationError, match="--max-num-batched-tokens 32 is less than --max-num-seqs 64"):
        ServeSettings(max_num_batched_tokens=32)
    assert ServeSettings(max_num_batched_tokens=32, max_num_seqs=32).max_num_seqs == 32


def test_keys_are_not_shown() -> None:
    assert "hunter2" not in repr(ServeSettings(api_key=["hunter2"]))


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVLM_API_KEY", "")
    monkeypatch.setenv("SPECVLM_PORT", "")
    assert (ServeSettings().api_keys(), ServeSettings().port) == ([], 8000)


def test_an_empty_key_file_does_not_open_the_server(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n")
    with pytest.raises(ValueError, match="no key"):
        ServeSettings(api_key_file=file)


def test_a_key_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"s\xe9k\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--api-key-file", str(file)])
    assert str(caught.value.code).startswith(f"specvlm: --api-key-file {file} cannot be read as UTF-8: ")
    file.write_text("s\xe9k\n", encoding="utf-8")
    assert ServeSettings(api_key_file=file).api_keys() == ["s\xe9k"]


def test_comments_and_byte_order_marks_are_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n# of the second team\r\n\r\n  second  \r\n")
    assert ServeSettings(api_key_file=file).api_keys() == ["first", "second"]
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match="holds no key"):
        ServeSettings(api_key_file=file).api_keys()


def test_a_folder_without_a_model_ends_with_a_word_about_it(tmp_path: Path) -> None:
    done = run_program("serve", "--model", str(tmp_path), "--port", "0", "--log-format", "json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["event"], line["model"]) == ("model_unusable", str(tmp_path))


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECVLM_")}
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_python_m_server_is_the_program() -> None:
    assert run_program("--help").stdout.startswith("usage: specvlm ")


def test_a_flag_of_a_command_within_a_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "eval", "--samples", "0"])
    assert "--samples: " in f"{caught.value.code}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--fields", "xx", "--seed", "1"], "--fields: 'xx'"),
        (["--fields=xx"], "--fields: 'xx'"),
        (["--compare", "plain", "{a"], "--compare: 'plain {a'"),
    ],
)
def test_what_is_no_json_is_told_with_its_flag(given: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *given])
    assert str(caught.value.code).startswith(f"specvlm: {said} is not valid; write JSON such as ")


def test_nobody_to_evaluate_is_one_clear_line() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "eval", "--url", "http://127.0.0.1:1"])
    assert caught.value.code == "specvlm: request to --url http://127.0.0.1:1 failed: Connection error."


def test_a_checkpoint_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "export", "--checkpoint", str(tmp_path / "no.pt"), "--out", str(tmp_path / "out")])
    assert str(caught.value.code).startswith("specvlm: ")
    assert "no.pt" in str(caught.value.code)
    assert not (tmp_path / "out").exists()

"""What docs/operating.md says, held against the code. (Its PromQL is run in ``test_prometheus``.)"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from engine.config import EngineConfig
from engine.kv_cache import KVShape
from engine.sizing import choose_sizes
from server.settings import ServeSettings
from tests.conftest import BuildCheckpoint
from tests.deploy.files import GUIDE, alert_rules, compose
from tests.imports import ROOT

TEXT = GUIDE.read_text()
TABLE_ROW = re.compile(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \| (\w+) \| (\d+) \|$", re.MULTILINE)
OTHERS_FLAGS = {"--init", "--profile", "--gpus"}  # Docker's
GIB = 1 << 30


def test_every_flag_and_variable_exists() -> None:
    fields = set(ServeSettings.model_fields)
    flags = set(re.findall(r"--[a-z][a-z-]+", TEXT)) - OTHERS_FLAGS
    named = {re.sub("^no_", "", flag[2:].replace("-", "_")) for flag in flags} - {"help"}
    assert len(named) > 15
    assert named <= fields
    assert {name.lower() for name in re.findall(r"SPECVLM_([A-Z_]+)", TEXT)} <= fields


def test_containers_have_an_init_process() -> None:
    """The server as process 1 would not hear SIGTERM before it is ready."""
    commands = re.findall(r"^docker run .*", TEXT, re.MULTILINE)
    assert commands
    assert all(" --init " in command for command in commands)


def test_variables_of_the_compose_file_are_explained() -> None:
    read = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert read == set(re.findall(r"^\| `([A-Z_]+)` \|", TEXT, re.MULTILINE))
    assert set(re.findall(r"--profile (\w+)", TEXT)) == {
        profile for service in compose()["services"].values() for profile in service["profiles"]
    }


def test_every_alert_has_its_advice() -> None:
    assert re.findall(r"^\| `(Specvlm\w+)` \|", TEXT, re.MULTILINE) == [
        rule["alert"] for rule in alert_rules()
    ]


def test_the_table_of_kv_sizes() -> None:
    rows = TABLE_ROW.findall(TEXT)
    assert len(rows) == 3
    for name, layers, heads, size, dtype, told in rows:
        shape = KVShape(int(layers), int(heads), int(size), getattr(torch, dtype))
        assert shape.bytes_per_token == int(told), name


def test_the_code_that_sizes_another_model(tiny: BuildCheckpoint) -> None:
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = code.replace('"MODEL"', repr(str(tiny("llava"))))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


def test_the_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 24 * GIB - int(7.06e9 * 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 24 * GIB))
    shape = KVShape(32, 32, 128, torch.bfloat16)
    config = EngineConfig(model="m", draft="folder")
    sizes = choose_sizes(config, shape, 4096, torch.device("cuda"), reserved=lambda _: int(1.5 * GIB))
    assert f"for {sizes.num_pages * config.page_size:,} tokens" in TEXT
    assert sizes.max_model_len == 4096
    assert f"{7.06e9 * 2 / GIB:.1f}. If" in TEXT

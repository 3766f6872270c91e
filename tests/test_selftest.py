"""``specvlm selftest``: passes on a tiny model, and says so when something computes the wrong thing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from engine.target import TargetModel
from selftest import answers, kernels, run
from server import cli
from tests.conftest import BuildCheckpoint
from tests.engine.own_kernels import own_kernels

Report = dict[str, Any]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SIZES", ((7, 1, 24),))
    monkeypatch.setattr(run, "GOLDEN_TOKENS", 6)
    monkeypatch.setattr(run, "SPEED_TOKENS", 6)


def report_of(flags: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Report]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["selftest", *flags])
    return int(str(ended.value.code)), json.loads(capsys.readouterr().out)


def failed(report: Report) -> list[str]:
    return [check["name"] for check in report["checks"] if not check["passed"]]


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_passes_on_a_tiny_model(
    family: str, tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = report_of(["--model", str(tiny(family)), "--device", "cpu"], capsys)
    assert (code, report["passed"]) == (0, True), failed(report)
    answers, speculation = report["checks"][-2:]
    assert answers["equal"] + answers["near_ties"] == answers["answers"] > 0
    assert answers["near_ties"] <= 1
    assert speculation["speed_up"] > 0


def test_rounded_weights_are_compared_with_rounded_weights(
    tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU, kernels compute in float32 from weights in bfloat16: as tight a comparison as in float32."""
    own_kernels()
    flags = ["--model", str(tiny("llava")), "--device", "cpu", "--dtype", "bfloat16"]
    code, report = report_of(flags, capsys)
    assert (code, failed(report)) == (0, [])
    assert (report["weights"], report["dtype"]) == ("bfloat16", "float32")


def test_fails_where_attention_is_wrong(
    tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that see nothing, and a model that runs on them."""
    monkeypatch.setattr(TargetModel, "attention", property(lambda _: Blind(), lambda *_: None), raising=False)
    code, report = report_of(["--model", str(tiny("llava")), "--device", "cpu"], capsys)
    assert (code, report["passed"]) == (1, False)
    wrong = failed(report)
    assert any(name.startswith("attention: cpu kernels") for name in wrong)
    assert not any(name.startswith("attention: torch") for name in wrong)
    assert "answers match transformers.generate" in wrong


class Blind:
    """Says of every row that it is zero."""

    def plan(self, batch: Any) -> Any:
        self.sequences = range(batch.num_sequences)
        return self

    def attend(
        self, query: Any, keys: Any, values: Any, out: torch.Tensor, scaling: Any, sliding_window: Any
    ) -> None:
        out.zero_()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_what_is_missing(tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = report_of(["--model", str(tiny("llava")), "--device", "cuda"], capsys)
    assert (code, report["passed"]) == (1, False)
    assert "no CUDA device" in report["error"]


def test_an_answer_that_merely_ends_early_or_late_is_no_near_tie() -> None:
    class Lenient:
        def largest_gap(self, inputs: Any, token_ids: list[int]) -> float:
            return 0.001

    def gap(got: list[int], want: list[int]) -> float:
        return answers.gap(Lenient(), {}, got, want)  # type: ignore[arg-type]

    assert gap([1, 2, 3], [1, 2, 3]) == 0.0
    assert gap([1, 2, 4], [1, 2, 3]) == gap([1, 4], [1, 2, 3]) == 0.001
    assert gap([1, 2], [1, 2, 3]) == gap([1, 2, 3], [1, 2]) == gap([], [1]) == float("inf")

"""The arithmetic on answers whose figures are known by hand."""

from __future__ import annotations

import pytest

from benchmarks.load.counters import read_counters
from benchmarks.load.metrics import Window, acceptance, distribution, figures, goodput
from benchmarks.load.stream import Answer
from tests.benchmarks.load.peer import COUNTERS


def answer(*times: float, tokens: int, latency: float | None = None, error: str | None = None) -> Answer:
    taken = latency if latency is not None else times[-1]
    return Answer(0.0, taken, list(times), "x", 10, tokens, "stop", None, error)


def test_percentiles_are_linear_between_neighbours() -> None:
    found = distribution([float(value) for value in range(1, 101)])
    assert found == {
        "mean": 50.5,
        "p50": 50.5,
        "p90": pytest.approx(90.1),
        "p95": pytest.approx(95.05),
        "p99": pytest.approx(99.01),
        "max": 100.0,
    }
    assert distribution([]) is None


def test_figures_of_two_windows() -> None:
    windows = [
        Window(2.0, [answer(0.5, 1.0, 1.5, tokens=5), answer(1.0, 2.0, tokens=3)]),
        Window(4.0, [answer(0.2, tokens=1), answer(tokens=0, latency=9.0, error="503: full")]),
    ]
    found = figures(windows, {})
    assert (found["requests"], found["failed"], found["errors"]) == (4, 1, {"503: full": 1})
    assert (found["output_tokens"], found["prompt_tokens"]) == (9, 30)
    assert found["tokens_per_second"] == 9 / 6.0, "all tokens over the time of all windows"
    assert found["requests_per_second"] == 3 / 6.0
    assert found["ttft"]["max"] == 1.0
    assert found["e2e"]["max"] == 2.0, "a request that failed has no latency"
    assert found["itl"]["mean"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert found["tpot"]["mean"] == pytest.approx((1.0 / 4 + 1.0 / 2) / 2), "of answers of two tokens or more"
    assert (found["goodput"], found["speculation"]) == (None, None)


def test_goodput_counts_requests_that_kept_every_limit() -> None:
    windows = [
        Window(
            2.0,
            [
                answer(0.1, 0.5, tokens=5),  # 0.1 s a token
                answer(0.3, 0.5, tokens=5),  # too late a first token
                answer(0.1, 2.1, tokens=5),  # 0.5 s a token
                answer(0.1, tokens=1),  # nothing after the first token
                answer(0.1, 0.2, tokens=5, error="cut"),
            ],
        )
    ]
    found = goodput(windows, {"ttft": 0.2, "tpot": 0.2})
    assert (found["share"], found["requests_per_second"]) == (2 / 5, 1.0)
    assert goodput(windows, {"e2e": 0.5})["share"] == 3 / 5


def test_acceptance_is_of_sums_and_no_mean_of_means() -> None:
    reports = [
        {
            "num_spec_steps": 1,
            "num_draft_tokens": 4,
            "num_accepted_draft_tokens": 3,
            "num_spec_tokens": 4,
            "acceptance_histogram": [0, 0, 0, 1],
            "draft_visual_tokens": 5,
            "compressor": "prune",
        },
        {
            "num_spec_steps": 3,
            "num_draft_tokens": 8,
            "num_accepted_draft_tokens": 1,
            "num_spec_tokens": 4,
            "acceptance_histogram": [2, 1],
        },
    ]
    found = acceptance(reports)
    assert found is not None
    assert (found["mean_acceptance_length"], found["draft_acceptance_rate"]) == (8 / 4, 4 / 12)
    assert found["acceptance_histogram"] == [2, 1, 0, 1]
    assert (found["visual_tokens"], found["draft_visual_tokens"]) == (None, 5)
    assert found["compressors"] == {"prune": 1}
    idle = acceptance([{"num_spec_steps": 0}])
    assert idle is not None
    assert (idle["mean_acceptance_length"], idle["draft_acceptance_rate"]) == (None, None)


def test_counters_are_found_under_any_prefix_and_summed_over_engines() -> None:
    two = (
        COUNTERS.format(drafts=2, tokens=6, accepted=1) + 'vllm:spec_decode_num_drafts_total{engine="1"} 3\n'
    )
    ours = COUNTERS.format(drafts=2, tokens=6, accepted=1).replace("vllm:", "specvlm:")
    expected = {"num_spec_steps": 2, "num_draft_tokens": 6, "num_accepted_draft_tokens": 1}
    assert read_counters(ours) == expected
    assert read_counters(two) == expected | {"num_spec_steps": 5}
    assert read_counters("up 1\n") == {}

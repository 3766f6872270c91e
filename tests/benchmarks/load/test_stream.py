"""What a reader saw and when, from the bytes of a stream: a wrong time here is a wrong figure everywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.load.stream import Recording, events, parse


def data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def said(text: str, finish: str | None = None) -> bytes:
    return data({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


USAGE = data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})
DONE = b"data: [DONE]\n\n"


def recorded(*reads: tuple[float, bytes], end: float = 4.0) -> Recording:
    return Recording(start=1.0, end=end, reads=list(reads))


def test_an_answer_and_its_times() -> None:
    role = data({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    answer = parse(
        recorded(
            (1.1, role),
            (1.5, said("Hel")),
            (2.0, said("lo, ")),
            (3.0, said("world", "stop") + USAGE + DONE),
        )
    )
    assert (answer.text, answer.finish_reason, answer.error) == ("Hello, world", "stop", None)
    assert (answer.prompt_tokens, answer.output_tokens) == (9, 5)
    assert answer.times == [0.5, 1.0, 2.0]
    assert (answer.ttft, answer.latency) == (0.5, 3.0), "the role is no text; the end counts"
    assert answer.gaps == [0.5, 1.0]
    assert answer.tpot == pytest.approx((3.0 - 0.5) / 4)


def test_an_event_has_the_time_of_the_read_that_completed_it() -> None:
    whole = said("a") + b": keep-alive\r\n\r\n" + said("b").replace(b"\n", b"\r\n") + b"data: x\ndata: y\n\n"
    middle = whole.index(b'"b"')
    found = list(events([(1.0, whole[:3]), (2.0, whole[3:middle]), (3.0, whole[middle:])]))
    assert [time for time, _ in found] == [2.0, 3.0, 3.0]
    assert [json.loads(content)["choices"][0]["delta"]["content"] for _, content in found[:2]] == ["a", "b"]
    assert found[2][1] == b"x\ny"


def test_thoughts_are_text_too() -> None:
    thought = data({"choices": [{"delta": {"reasoning_content": "hm "}}]})
    assert parse(recorded((1.2, thought), (1.3, said("yes", "stop") + USAGE + DONE))).text == "hm yes"


def test_the_servers_own_report_is_kept() -> None:
    report = {"num_spec_steps": 2}
    last = data({"choices": [], "usage": {}, "metrics": {"speculative_decoding": report}})
    assert parse(recorded((1.2, said("yes", "stop") + last + DONE))).speculation == report


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (said("half"), "ended before the answer"),
        (said("half") + data({"error": {"message": "The engine stopped."}}), "The engine stopped."),
        (said("whole", "stop") + DONE, "reports no usage"),
        (b"data: <html>\n\n", "not in OpenAI's format"),
        (b'data: {"choices": 3}\n\n', "not in OpenAI's format"),
        (b'data: "\xff"\n\n', "not in OpenAI's format"),
        (b"", "ended before the answer"),
    ],
)
def test_what_is_no_whole_answer_says_why(content: bytes, complaint: str) -> None:
    assert complaint in str(parse(recorded((1.5, content))).error)


def test_an_answer_without_text_has_no_first_token() -> None:
    answer = parse(recorded((1.5, said("", "stop") + USAGE + DONE)))
    assert (answer.error, answer.ttft, answer.tpot, answer.gaps) == (None, None, None, [])

"""The codec: what goes in comes out, and what is not a message is a ``WireError``, whatever it is."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.ipc.wire import DTYPES, WireError, from_engine, request_id_in, to_engine
from engine.messages import (
    AbortRequest,
    EngineInfo,
    EngineStats,
    GenerateRequest,
    LoadFailed,
    RequestError,
    RequestOutput,
    RequestTimings,
    SamplingParams,
    Shutdown,
    SpeculationStats,
    SpeculativeParams,
    StepReport,
    TokenLogprobs,
    TracedRound,
)
from processing.prompt import ImageInput, Prompt

arrays = hnp.arrays(
    dtype=st.sampled_from(list(DTYPES.values())),
    shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
text = st.text(max_size=20)
token_ids = st.lists(st.integers(0, 2**31), max_size=20)
images = st.builds(
    ImageInput,
    hash=st.binary(max_size=32),
    spans=st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), max_size=3),
    tensors=st.dictionaries(text, arrays, max_size=3),
)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 2**31),
    temperature=st.floats(0, 2),
    logit_bias=st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100), max_size=3),
    seed=st.integers(-(2**63), 2**64 - 1),
    logprobs=st.none() | st.integers(0, 20),
)
requests = st.builds(
    GenerateRequest,
    request_id=text,
    prompt=st.builds(Prompt, token_ids=token_ids, images=st.lists(images, max_size=2)),
    sampling=sampling,
    speculative=st.builds(SpeculativeParams, topk=st.none() | st.integers(0, 32), trace=st.booleans()),
    cache_salt=text,
)
client_messages = requests | st.builds(AbortRequest, request_ids=st.lists(text)) | st.just(Shutdown())
seconds = st.floats(0, 1e6)
rounds = st.builds(
    TracedRound,
    token_ids=token_ids,
    parents=st.lists(st.integers(-1, 63), max_size=9),
    accepted=token_ids,
    bonus_token_id=st.integers(0, 2**31),
)
outputs = st.builds(
    RequestOutput,
    request_id=text,
    token_ids=token_ids,
    logprobs=st.none()
    | st.lists(
        st.builds(TokenLogprobs, logprob=seconds, top_ids=token_ids, top_logprobs=st.lists(seconds)),
        max_size=2,
    ),
    finish_reason=st.sampled_from([None, "stop", "length", "abort", "error"]),
    timings=st.none() | st.builds(RequestTimings, queue=seconds, prefill=seconds, decode=seconds),
    error=st.none() | st.builds(RequestError, code=st.just("invalid_request"), message=text),
    speculation=st.none() | st.builds(SpeculationStats, acceptance_histogram=token_ids),
    rounds=st.none() | st.lists(rounds, max_size=2),
)
engine_messages = (
    st.builds(StepReport, outputs=st.lists(outputs, max_size=3), stats=st.builds(EngineStats))
    | st.builds(LoadFailed, message=text)
    | st.builds(
        EngineInfo,
        **dict.fromkeys(("vocab_size", "max_model_len", "num_pages", "page_size"), st.integers(0, 2**40)),
        max_images=st.none() | st.integers(0, 9),
        load_seconds=seconds,
    )
)


def plain(value: Any) -> Any:
    """``value`` with arrays spelled out, so that two can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, msgspec.Struct):
        return type(value), [plain(item) for item in msgspec.structs.astuple(value)]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def request_with(**tensors: np.ndarray) -> GenerateRequest:
    image = ImageInput(hash=b"h", spans=[(0, 1)], tensors=tensors)
    prompt = Prompt(token_ids=[1, 2], images=[image])
    return GenerateRequest(request_id="r", prompt=prompt, sampling=SamplingParams(max_tokens=1))


@settings(deadline=None)
@given(client_messages)
def test_client_messages_round_trip(message: Any) -> None:
    frames = [bytes(frame) for frame in to_engine.encode(message)]
    assert plain(to_engine.decode(frames)) == plain(message)


@settings(deadline=None)
@given(engine_messages)
def test_engine_messages_round_trip(message: Any) -> None:
    assert plain(from_engine.decode(from_engine.encode(message))) == plain(message)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=4))
def test_garbage_is_a_wire_error(frames: list[bytes]) -> None:
    for codec in (to_engine, from_engine):
        with pytest.raises(WireError):
            codec.decode(frames)
    assert request_id_in(frames) is None


@settings(deadline=None)
@given(requests, st.data())
def test_damaged_messages_decode_or_are_wire_errors(message: GenerateRequest, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in to_engine.encode(message)]
    for _ in range(data.draw(st.integers(1, 3))):
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        to_engine.decode([bytes(frame) for frame in frames])
    except WireError:
        request_id_in([bytes(frame) for frame in frames])


def test_strided_arrays_arrive_in_order() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    decoded = to_engine.decode(to_engine.encode(request_with(pixels=array)))
    assert isinstance(decoded, GenerateRequest)
    np.testing.assert_array_equal(decoded.prompt.images[0].tensors["pixels"], array)


def test_arrays_are_read_only_views_of_their_frames() -> None:
    source = np.arange(100_000, dtype=np.float32)
    frames = to_engine.encode(request_with(pixels=source))
    assert np.shares_memory(np.frombuffer(frames[1], np.float32), source)
    received = [zmq.Frame(bytes(frame)) for frame in frames]
    decoded = to_engine.decode(received)
    assert isinstance(decoded, GenerateRequest)
    pixels = decoded.prompt.images[0].tensors["pixels"]
    assert np.shares_memory(pixels, np.frombuffer(received[1].buffer, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 1


def test_unaligned_frames_are_copied_into_place() -> None:
    source = np.arange(5, dtype=np.float64)
    body, data = to_engine.encode(request_with(pixels=source))
    shifted = memoryview(bytearray(b"x") + bytes(data))[1:]
    decoded = to_engine.decode([body, shifted])
    assert isinstance(decoded, GenerateRequest)
    pixels = decoded.prompt.images[0].tensors["pixels"]
    assert pixels.flags.aligned
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, source)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, dtype=">f4"),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype=np.complex64),
        np.zeros((1,) * 9),
    ],
    ids=["object", "str", "big-endian", "record", "complex", "9-d"],
)
def test_other_arrays_are_refused_before_they_are_sent(array: np.ndarray) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        to_engine.encode(request_with(pixels=array))


@pytest.mark.parametrize("change", [{"request_id": "\ud800"}, {"priority": 2**70}, {"prompt": object()}])
def test_what_msgpack_cannot_say_is_a_wire_error(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        to_engine.encode(msgspec.structs.replace(request_with(), **change))


def with_header(header: object) -> bytes:
    """A request whose picture's array has this header."""
    message = msgspec.to_builtins(request_with(pixels=np.zeros(0)), enc_hook=lambda _: header)
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    ("header", "frames"),
    [
        (["float32", [2], 0], [b"1234567"]),
        (["float32", [2], 0], []),
        (["float32", [2], 1], [b"12345678"]),
        (["float32", [2], -1], [b"12345678"]),
        (["float32", [2], 0], [b"12345678", b""]),
        (["object", [1], 0], [b"12345678"]),
        (["float32", [-1, -2], 0], [b"12345678"]),
        (["float32", [2**62, 8], 0], [b""]),
        (["float32", [0, 2**62, 2**62], 0], [b""]),
        (["uint8", [1] * 100, 0], [b"1"]),
        (["float32", "2", 0], [b"12345678"]),
        ({"dtype": "float32"}, [b""]),
        (None, []),
    ],
)
def test_headers_that_lie_are_wire_errors(header: object, frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        to_engine.decode([with_header(header), *frames])
    assert request_id_in([with_header(header), *frames]) == "r"


def test_one_frame_is_not_used_by_two_arrays() -> None:
    body, first, _ = to_engine.encode(request_with(a=np.zeros(2), b=np.zeros(2)))
    doubled = bytes(body).replace(b"\x93\xa7float64\x91\x02\x01", b"\x93\xa7float64\x91\x02\x00")
    assert doubled != body
    with pytest.raises(WireError, match="used twice"):
        to_engine.decode([doubled, first])


def test_deep_nesting_is_a_wire_error() -> None:
    bomb = b"\x81\xa1b" + b"\x91" * 100_000 + b"\x01"
    with pytest.raises(WireError):
        to_engine.decode([bomb])
    assert request_id_in([bomb]) is None

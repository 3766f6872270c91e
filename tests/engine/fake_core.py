"""A core without a model: what it answers follows from the prompt, and prompts can ask it to misbehave."""

from __future__ import annotations

import ctypes
import os
import time
import zlib
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.messages import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerateRequest,
    RequestError,
    RequestOutput,
    SamplingParams,
    StepReport,
)
from processing.prompt import ImageInput, Prompt

# As the first token of a prompt, these make the engine misbehave; REJECT only refuses the request.
BREAK, HANG, DIE, REJECT, FORGET, HANG_HARD, COMPUTE = -1, -2, -3, -4, -5, -6, -7


class Script(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the fake engine behaves. Travels as ``EngineConfig.model``."""

    load_seconds: float = 0.0
    step_seconds: float = 0.0
    load_error: str | None = None
    device: str = "cpu"
    # A file with one byte for each load that still has to go wrong, shared by successive processes.
    failing_loads: str | None = None
    refused_loads: str | None = None

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(model=msgspec.json.encode(self).decode())


class FakeCore:
    """One token per running request and step: ``first_token(request) + i``."""

    def __init__(self, script: Script | None = None) -> None:
        self._script = script or Script()
        self._requests: dict[str, GenerateRequest] = {}
        self._produced: dict[str, int] = {}
        self._aborted: list[str] = []
        self.num_steps = 0
        self._num_tokens = 0

    @classmethod
    def load(cls, config: EngineConfig) -> FakeCore:
        script = msgspec.json.decode(config.model, type=Script)
        time.sleep(script.load_seconds)
        if script.load_error is not None:
            raise ModelLoadError(script.load_error)
        if _take_one(script.failing_loads):
            os._exit(7)
        if _take_one(script.refused_loads):
            raise ModelLoadError("refused this time")
        return cls(script)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="fake", family="fake", dtype="float32", device=self._script.device, vocab_size=1000,
            max_model_len=1000, max_images=None, num_pages=1, page_size=16,
            load_seconds=self._script.load_seconds,
        )  # fmt: skip

    @property
    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._requests), generation_tokens=self._num_tokens)

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._aborted)

    def add(self, request: GenerateRequest) -> None:
        if request.prompt.token_ids[:1] != [FORGET]:
            self._requests[request.request_id] = request
            self._produced[request.request_id] = 0

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            if self._requests.pop(request_id, None) is not None:
                self._aborted.append(request_id)

    def step(self) -> StepReport:
        time.sleep(self._script.step_seconds)
        self.num_steps += 1
        outputs = [_ended(request_id, "abort") for request_id in self._aborted]
        self._aborted = []
        for request in list(self._requests.values()):
            output = self._advance(request)
            if output.finish_reason is not None:
                del self._requests[request.request_id]
            outputs.append(output)
        return StepReport(outputs=outputs, stats=self.stats, num_tokens=len(outputs))

    def _advance(self, request: GenerateRequest) -> RequestOutput:
        match request.prompt.token_ids[:1]:
            case [-1]:
                raise RuntimeError("broken on request, at 0xdeadbeef")
            case [-2]:
                time.sleep(3600)
            case [-6]:  # in native code, with the interpreter's lock, whatever signals come
                mutex = ctypes.create_string_buffer(64)
                while True:
                    ctypes.PyDLL(None).pthread_mutex_lock(mutex)
            case [-7]:  # one long step, as of a large picture on a CPU
                until = time.monotonic() + 5
                while not self._produced[request.request_id] and time.monotonic() < until:
                    pass
            case [-3]:
                os._exit(9)
            case [-4]:
                error = RequestError(code="context_length_exceeded", message="too long")
                return _ended(request.request_id, "error", error)
        count = self._produced[request.request_id]
        self._produced[request.request_id] += 1
        self._num_tokens += 1
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[first_token(request) + count],
            finish_reason="length" if count + 1 == request.sampling.max_tokens else None,
        )


def first_token(request: GenerateRequest) -> int:
    """Depends on every byte that travelled."""
    value = zlib.crc32(repr(request.prompt.token_ids).encode())
    for image in request.prompt.images:
        for name, array in image.tensors.items():
            value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def expected(request: GenerateRequest) -> list[int]:
    return [first_token(request) + i for i in range(request.sampling.max_tokens)]


def make_request(
    request_id: str, *token_ids: int, max_tokens: int = 3, pixels: np.ndarray | None = None
) -> GenerateRequest:
    images = []
    if pixels is not None:
        key = pixels.tobytes() if pixels.dtype != object else b"h"
        images.append(ImageInput(hash=sha256(key).digest(), spans=[(0, 1)], tensors={"pixels": pixels}))
    return GenerateRequest(
        request_id=request_id,
        prompt=Prompt(token_ids=list(token_ids) or [1, 2, 3], images=images),
        sampling=SamplingParams(max_tokens=max_tokens),
    )


def _ended(request_id: str, reason: FinishReason, error: RequestError | None = None) -> RequestOutput:
    return RequestOutput(request_id=request_id, token_ids=[], finish_reason=reason, error=error)


def _take_one(path: str | None) -> bool:
    """Whether ``path`` still holds a byte; takes it."""
    if path is None or not Path(path).read_bytes():
        return False
    Path(path).write_bytes(Path(path).read_bytes()[1:])
    return True

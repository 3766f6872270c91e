"""Encodes messages as frames and back: a msgpack body, followed by the raw bytes of each array as a frame.

Independent of sockets and of the meaning of messages. Both ends run on the same machine, so numbers keep its
byte order. Nothing in a frame is ever executed, and sizes are validated before they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
import zmq

from engine.messages import ClientMessage, EngineMessage

Frame = bytes | memoryview | zmq.Frame
M = TypeVar("M")

# By name, so that a dtype string from the wire is only looked up, never interpreted.
DTYPES = {
    np.dtype(scalar).name: np.dtype(scalar)
    for scalar in (
        *(np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64),
        *(np.float16, np.float32, np.float64),
    )
}

MAX_DIMENSIONS = 8


class WireError(ValueError):
    """A message that cannot be encoded, or frames that are not a message."""


class _ArrayHeader(msgspec.Struct, frozen=True, array_like=True):
    """Placeholder for an array in the body; ``frame`` is its index among the frames after the body."""

    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    frame: int


class Codec(Generic[M]):
    """Encodes and decodes the messages of one direction. Stateless, so threads can share it."""

    def __init__(self, message_type: Any) -> None:  # a union of structs, for which there is no type form yet
        self._type = message_type

    def encode(self, message: M) -> list[bytes | memoryview]:
        """Return the frames to send. Arrays are not copied (unless strided): do not modify them before."""
        arrays: list[bytes | memoryview] = []

        def write(value: object) -> _ArrayHeader:
            if not isinstance(value, np.ndarray):
                raise WireError(f"values of type {type(value).__name__} cannot be sent")
            arrays.append(_bytes_of(value))
            return _ArrayHeader(value.dtype.name, list(value.shape), len(arrays) - 1)

        try:
            body = msgspec.msgpack.encode(message, enc_hook=write)
        except WireError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise WireError(f"this message cannot be encoded: {error}") from error
        return [body, *arrays]

    def decode(self, frames: Sequence[Frame]) -> M:
        """Return the message in ``frames``. Its arrays are read-only views of their frames."""
        if not frames:
            raise WireError("a message without frames")
        unread = dict(enumerate(frames[1:]))

        def read(_type: type, value: object) -> np.ndarray:
            header = msgspec.convert(value, _ArrayHeader)
            if header.frame not in unread:
                raise WireError(f"frame {header.frame} is missing or used twice")
            return _array_from(unread.pop(header.frame), header)

        try:
            message: M = msgspec.msgpack.decode(_view(frames[0]), type=self._type, dec_hook=read)
        except (ValueError, RecursionError) as error:  # msgspec, UnicodeDecodeError and WireError among them
            raise WireError(f"not a message: {error}") from error
        if unread:
            raise WireError(f"{len(unread)} frames belong to no array")
        return message


class _Addressed(msgspec.Struct):
    request_id: str


def request_id_in(frames: Sequence[Frame]) -> str | None:
    """Return the request id in ``frames`` that are not a valid message, if at least that is readable."""
    if not frames:
        return None
    try:
        return msgspec.msgpack.decode(_view(frames[0]), type=_Addressed).request_id
    except (ValueError, RecursionError):
        return None


def _bytes_of(array: np.ndarray) -> memoryview:
    if DTYPES.get(array.dtype.name) != array.dtype:  # the name alone does not show a foreign byte order
        raise WireError(f"arrays of {array.dtype} cannot be sent")
    if array.ndim > MAX_DIMENSIONS:
        raise WireError(f"arrays of {array.ndim} dimensions cannot be sent")
    return array.reshape(-1).view(np.uint8).data


def _array_from(frame: Frame, header: _ArrayHeader) -> np.ndarray:
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise WireError("an array of unknown dtype")
    data = _view(frame)
    if math.prod(header.shape) * dtype.itemsize != data.nbytes:
        raise WireError(f"{data.nbytes} bytes are not a {header.dtype} array of shape {header.shape}")
    # Huge dimensions next to a zero still overflow in numpy; that is a ValueError, which decode() reports.
    array = np.frombuffer(data, dtype).reshape(header.shape)
    if not array.flags.aligned:  # ZeroMQ delivers small frames at any address
        array = array.copy()
    array.flags.writeable = False
    return array


def _view(frame: Frame) -> memoryview:
    return memoryview(frame.buffer if isinstance(frame, zmq.Frame) else frame)


to_engine: Codec[ClientMessage] = Codec(ClientMessage)
from_engine: Codec[EngineMessage] = Codec(EngineMessage)

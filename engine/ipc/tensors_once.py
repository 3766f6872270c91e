"""A picture travels to the engine once: while a request with it is open, later ones go without its tensors.

All choices of an answer have the same pictures, and so have the turns of a dialogue. One end says what it
leaves out, the other keeps what it was sent until it is told to forget it; messages keep their order, so
both always agree. No transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from msgspec.structs import replace

from engine.messages import GenerateRequest
from processing.prompt import ImageInput


class TensorsSent:
    """The sender's end: whose tensors the engine has, by the requests that are open."""

    def __init__(self) -> None:
        self._hashes: dict[str, set[bytes]] = {}  # of the pictures of each open request
        self._holders: Counter[bytes] = Counter()

    def leave_out(self, request: GenerateRequest) -> GenerateRequest:
        """``request``, which is open from now on, without the tensors that the engine has."""
        if not request.prompt.images:
            return request
        hashes = {image.hash for image in request.prompt.images}
        new = hashes - self._holders.keys()
        self._hashes[request.request_id] = hashes
        self._holders.update(hashes)
        images = []
        for image in request.prompt.images:  # one that is there twice is new once
            images.append(image if image.hash in new else replace(image, tensors={}))
            new.discard(image.hash)
        return _with_images(request, images)

    def release(self, request_id: str) -> list[bytes]:
        """The request is open no more. Pictures that the engine is to forget, by their hashes."""
        hashes = self._hashes.pop(request_id, set())
        self._holders.subtract(hashes)
        gone = [key for key in hashes if not self._holders[key]]
        for key in gone:
            del self._holders[key]
        return gone


class TensorsKept:
    """The engine's end."""

    def __init__(self) -> None:
        self._tensors: dict[bytes, dict[str, np.ndarray]] = {}

    def complete(self, request: GenerateRequest) -> GenerateRequest:
        """``request`` with all its tensors; keeps those it came with. ``KeyError`` if some never came."""
        if not request.prompt.images:
            return request
        for image in request.prompt.images:
            if image.tensors:
                self._tensors[image.hash] = image.tensors
        images = [replace(image, tensors=self._tensors[image.hash]) for image in request.prompt.images]
        return _with_images(request, images)

    def forget(self, hashes: Iterable[bytes]) -> None:
        for key in hashes:
            self._tensors.pop(key, None)


def _with_images(request: GenerateRequest, images: list[ImageInput]) -> GenerateRequest:
    return replace(request, prompt=replace(request.prompt, images=images))

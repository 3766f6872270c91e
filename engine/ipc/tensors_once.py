"""Sends each picture to the engine only once: while a request with it is open, others omit its tensors.

All choices of an answer share the same pictures, and so do the turns of a dialogue. The sender tracks what
the engine has, and the engine keeps tensors until it is told to forget them; messages stay in order, so both
sides always agree. No transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from msgspec.structs import replace

from engine.messages import GenerateRequest
from processing.prompt import ImageInput


class TensorsSent:
    """The sender's side: tracks which tensors the engine has, based on the open requests."""

    def __init__(self) -> None:
        self._hashes: dict[str, set[bytes]] = {}  # picture hashes of each open request
        self._holders: Counter[bytes] = Counter()

    def leave_out(self, request: GenerateRequest) -> GenerateRequest:
        """Return ``request`` without the tensors that the engine has; it counts as open from now on."""
        if not request.prompt.images:
            return request
        hashes = {image.hash for image in request.prompt.images}
        new = hashes - self._holders.keys()
        self._hashes[request.request_id] = hashes
        self._holders.update(hashes)
        images = []
        for image in request.prompt.images:  # a picture that occurs twice is sent once
            images.append(image if image.hash in new else replace(image, tensors={}))
            new.discard(image.hash)
        return _with_images(request, images)

    def release(self, request_id: str) -> list[bytes]:
        """Mark a request as ended; return the hashes of the pictures that the engine is to forget."""
        hashes = self._hashes.pop(request_id, set())
        self._holders.subtract(hashes)
        gone = [key for key in hashes if not self._holders[key]]
        for key in gone:
            del self._holders[key]
        return gone


class TensorsKept:
    """The engine's side: keeps the tensors of pictures until told to forget them."""

    def __init__(self) -> None:
        self._tensors: dict[bytes, dict[str, np.ndarray]] = {}

    def complete(self, request: GenerateRequest) -> GenerateRequest:
        """Return ``request`` with all its tensors, and keep those that came with it.

        Raises ``KeyError`` if some were never received.
        """
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

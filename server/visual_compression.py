"""Lossy compression of pictures in requests: whether it is allowed, and how many tokens may be left."""

from __future__ import annotations

from engine.config import VisualCompression
from processing.prompt import Prompt
from server.errors import bad_request


def least_len(prompt: Prompt, asked: VisualCompression | None, default: VisualCompression | None) -> int:
    """Return the minimum length of ``prompt`` in the engine, in tokens. Only the engine knows how many tokens
    a picture keeps: at least one in each of its spans. ``default`` is the server's setting, ``None`` if it
    allows no compression. Raises ``ApiError`` for a request that asks for compression nevertheless.
    """
    how = asked or default
    if how is None or how.method == "none":
        return len(prompt.token_ids)
    if default is None:
        raise bad_request(
            "'visual_compression' changes what the model sees and thus its answers; this server was started "
            "without '--target-visual-compression', which allows it.",
            param="visual_compression",
            code="unsupported_parameter",
        )
    return len(prompt.token_ids) - sum(image.num_tokens - len(image.spans) for image in prompt.images)

"""Lossy compression of pictures between HTTP and engine: whether it is allowed, and what may be left."""

from __future__ import annotations

from engine.config import VisualCompression
from processing.prompt import Prompt
from server.errors import bad_request


def least_len(prompt: Prompt, asked: VisualCompression | None, default: VisualCompression | None) -> int:
    """Tokens that the engine makes of ``prompt`` at least: only it knows how many a picture keeps, which is
    one in each of its places or more. ``default``: the server's, ``None`` where it allows no compression.
    Raises ``ApiError`` for a request that asks for some nevertheless.
    """
    how = asked or default
    if how is None or how.method == "none":
        return len(prompt.token_ids)
    if default is None:
        raise bad_request(
            "'visual_compression' changes what the model sees, and answers with it; this server was started "
            "without '--target-visual-compression', which allows it.",
            param="visual_compression",
            code="unsupported_parameter",
        )
    return len(prompt.token_ids) - sum(image.num_tokens - len(image.spans) for image in prompt.images)

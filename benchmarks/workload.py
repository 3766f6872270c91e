"""Seeded pictures and questions, and the trace of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from engine.messages import SpeculationStats

QUESTIONS = (
    "What is in this picture?",
    "Describe the image in a few sentences, from left to right.",
    "Which colours do you see, and where are they?",
    "How many different shapes are there? Explain how you counted them.",
    "Write a short story that starts with what you see here.",
    "What would you change in this image to make it more balanced?",
    "List five words that fit this picture and say why.",
    "Is there any text in the image? If not, what could be written there?",
)

Chat = list[dict[str, Any]]


@dataclass(slots=True)
class Trace:
    """The trace of a generation. ``token_times``: arrival of each output token, on the clock of ``start``."""

    start: float
    token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    speculation: SpeculationStats | None = None

    @property
    def first_token(self) -> float:
        """Seconds from ``start`` to the first token."""
        return self.token_times[0] - self.start

    @property
    def decode_seconds(self) -> float:
        """Seconds from the first token to the last."""
        return self.token_times[-1] - self.token_times[0]

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first token."""
        return (len(self.token_times) - 1) / self.decode_seconds


def picture(seed: int, size: int = 240) -> Image.Image:
    """Draw coarse coloured blocks with noise; no two seeds give the same processed pixels."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, size=(6, 6, 3)).repeat(size // 6, axis=0).repeat(size // 6, axis=1)
    noise = rng.integers(-8, 9, size=blocks.shape)
    return Image.fromarray((blocks + noise).clip(0, 255).astype(np.uint8))


def question(index: int) -> str:
    return QUESTIONS[index % len(QUESTIONS)]


def chat(image: Image.Image, text: str) -> Chat:
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Return the index at which two outputs first differ, or ``None`` if they are equal."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((i for i, (x, y) in pairs if x != y), None)

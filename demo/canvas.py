"""Drawing helpers shared by all scenes: canvases, colours with a little jitter, text with its box.

Knows Pillow and the vocabulary, not questions. All randomness comes from the generator passed in.
"""

from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from demo.scene import Box
from demo.words import BACKGROUNDS, COLORS

RGB = tuple[int, int, int]

_ASPECTS = ((1.0, 1.0), (1.0, 1.0), (4 / 3, 1.0), (1.0, 4 / 3), (3 / 2, 1.0), (1.2, 1.0), (1.0, 1.2))


@lru_cache(maxsize=128)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in scalable font, which is the same on every machine."""
    return ImageFont.load_default(size)


class Canvas:
    """A picture being drawn; boxes are reported as fractions of its size."""

    def __init__(self, rng: Random, background: RGB, aspects: tuple[tuple[float, float], ...] = _ASPECTS):
        base = rng.choice((224, 240, 256, 288, 320, 384))
        wide, high = aspects[rng.randrange(len(aspects))]
        self.width, self.height = int(base * wide), int(base * high)
        self.image = Image.new("RGB", (self.width, self.height), background)
        self.draw = ImageDraw.Draw(self.image)
        self.unit = min(self.width, self.height)

    def box(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Convert pixels to fractions of the picture's size."""
        return left / self.width, top / self.height, right / self.width, bottom / self.height

    def text(self, at: tuple[float, float], text: str, size: int, fill: RGB, anchor: str = "mm") -> Box:
        """Write ``text`` anchored at pixel ``at`` and return its box."""
        face = font(size)
        self.draw.text(at, text, fill=fill, font=face, anchor=anchor)
        return self.box(*self.draw.textbbox(at, text, font=face, anchor=anchor))

    def fit(self, text: str, width: float, largest: int, smallest: int = 10) -> int:
        """Return the largest font size, up to ``largest``, at which ``text`` fits into ``width`` pixels."""
        needed = font(100).getlength(text) / 100
        return max(smallest, min(largest, int(width / max(needed, 1e-6))))


def tint(name: str, rng: Random, spread: int = 12) -> RGB:
    """Return a named colour with a jitter that is too small to change its name."""
    red, green, blue = COLORS[name]
    return _shift(red, rng, spread), _shift(green, rng, spread), _shift(blue, rng, spread)


def backdrop(name: str, rng: Random) -> RGB:
    """Return a named background colour with a very small jitter."""
    red, green, blue = BACKGROUNDS[name]
    return _shift(red, rng, 4), _shift(green, rng, 4), _shift(blue, rng, 4)


def _shift(value: int, rng: Random, spread: int) -> int:
    return max(0, min(255, value + rng.randint(-spread, spread)))

"""Videos as lists of pictures: frames that a client wrote one after the other, or those of an animation.

Blocking; knows Pillow, no network. Video containers are not read: their decoders are what attackers look for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from PIL import Image

from server.media_image import upright_rgb
from server.media_url import MediaError

MAX_SAMPLED: Final = 16
"""Frames of one animation that a model is shown."""
MAX_FRAMES: Final = 1024
"""Of one animation. All before the last that is shown are decoded."""

FRAMES = re.compile(r"data:video/jpeg;base64,", re.IGNORECASE)
ANIMATION = re.compile(r"data:image/(gif|webp|a?png);base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Video:
    """``max_frames``: of an animation. Those that a client wrote himself are all shown."""

    url: str
    max_frames: int = MAX_SAMPLED


def is_animation(url: str) -> bool:
    return ANIMATION.match(url) is not None


def num_frames(url: str) -> int:
    """As far as the URL tells: those that are written in it, and one where it is an animation."""
    return url.count(",") if FRAMES.match(url) else 1


def frames_in(url: str) -> list[str]:
    """Each frame that ``url`` has, or the whole animation, in base64. Raises ``MediaError``."""
    if found := FRAMES.match(url):
        return url[found.end() :].split(",")
    if found := ANIMATION.match(url):
        return [url[found.end() :]]
    raise MediaError(
        "unsupported_video",
        "Send a video as frames, 'data:video/jpeg;base64,FRAME,FRAME,...', each a JPEG, PNG or WebP picture, "
        "or as a GIF, WebP or PNG animation, 'data:image/gif;base64,...'.",
    )


def count_frames(image: Image.Image, max_total_pixels: int) -> int:
    """Of an opened animation, none of which may have more than so many pixels in all frames together."""
    size = image.size
    most = min(MAX_FRAMES, max_total_pixels // (image.width * image.height))
    try:
        for number in range(1, most + 1):
            image.seek(number)  # decodes the one before
            if image.size != size:  # Pillow follows a GIF's frame beyond the screen that was checked
                raise MediaError("invalid_image", "A frame of the animation is larger than the first.")
    except EOFError:
        return number
    except MediaError:
        raise
    except Exception:  # decoders of hostile bytes raise whatever they like
        raise MediaError("invalid_image", "The animation is damaged or incomplete.") from None
    raise MediaError("image_too_large", f"An animation of this size may have {most} frames; send fewer.")


def sampled(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` frames, evenly, from the first to the last.

    >>> sampled(10, 4), sampled(3, 4), sampled(9, 1)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)] if most > 1 else [0]


def decode_frames(image: Image.Image, indices: list[int]) -> list[Image.Image]:
    """Of an opened animation, as people see them."""
    frames = []
    try:
        for index in indices:
            image.seek(index)
            image.load()
            frames.append(upright_rgb(image.copy()))
    except Exception:
        raise MediaError("invalid_image", "The animation is damaged or incomplete.") from None
    return frames

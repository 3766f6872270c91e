"""Videos as lists of pictures: frames that a client sent one after the other, or those of an animation.

Blocking; knows Pillow, no network. Video containers are not read: their decoders are a target of attacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image

from server.media_image import upright_rgb
from server.media_url import MediaError

MAX_SAMPLED: Final = 16
"""Maximum frames of one animation shown to the model."""
MAX_FRAMES: Final = 1024
"""Maximum frames of one animation. All before the last one shown are decoded."""

FRAMES = re.compile(r"data:video/jpeg;base64,", re.IGNORECASE)
ANIMATED: Final = ("GIF", "WEBP", "PNG")
ANIMATION = re.compile(r"data:image/(gif|webp|a?png);base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Video:
    """``max_frames`` applies to animations. Frames that a client sent one by one are all shown."""

    url: str
    max_frames: int = MAX_SAMPLED


def is_animation(url: str) -> bool:
    return ANIMATION.match(url) is not None


def num_frames(url: str) -> int:
    """Return the number of frames written in the URL, or 1 for an animation, which is not read for this."""
    return url.count(",") if FRAMES.match(url) else 1


def frames_in(url: str) -> list[str]:
    """Return each frame in ``url``, or the whole animation, in base64. Raises ``MediaError``."""
    if found := FRAMES.match(url):
        return url[found.end() :].split(",")
    if found := ANIMATION.match(url):
        return [url[found.end() :]]
    raise MediaError(
        "unsupported_video",
        "Send a video as frames, 'data:video/jpeg;base64,FRAME,FRAME,...', each a JPEG, PNG or WebP image, "
        "or as a GIF, WebP or PNG animation, 'data:image/gif;base64,...'.",
    )


def count_frames(image: Image.Image, max_total_pixels: int) -> int:
    """Return the number of frames of an opened animation. Raises ``MediaError`` for more than ``MAX_FRAMES``,
    for more pixels in all frames than ``max_total_pixels``, and for a frame larger than the first.
    """
    if image.format not in ANIMATED:
        return 1  # the further pictures of an MPO are no frames, and may all be the same megabytes
    size = image.size
    most = min(MAX_FRAMES, max_total_pixels // (image.width * image.height))
    try:
        for number in range(1, most + 1):
            image.seek(number)  # decodes the one before
            if image.size != size:  # Pillow enlarges a GIF for frames beyond the screen that was checked
                raise MediaError("invalid_image", "A frame of the animation is larger than the first.")
    except EOFError:
        return number
    except (MediaError, MemoryError):
        raise
    except Exception:  # decoders may raise anything on malicious bytes
        raise MediaError("invalid_image", "The animation is damaged or incomplete.") from None
    raise MediaError("image_too_large", f"Animations of this size may have {most} frames; send fewer.")


def sampled(count: int, most: int) -> list[int]:
    """Return the indices of at most ``most`` of ``count`` frames, evenly spaced from first to last.

    >>> sampled(10, 4), sampled(3, 4), sampled(9, 1)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)] if most > 1 else [0]


def decode_frames(image: Image.Image, indices: Iterable[int]) -> Iterator[Image.Image]:
    """Yield frames of an opened animation, upright and in RGB."""
    for index in indices:
        try:
            image.seek(index)
            image.load()
            frame = upright_rgb(image.copy())
        except MemoryError:
            raise
        except Exception:
            raise MediaError("invalid_image", "The animation is damaged or incomplete.") from None
        yield frame

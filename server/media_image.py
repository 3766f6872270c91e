"""Decodes untrusted bytes to an RGB picture. Blocking; knows Pillow, no network. Callers bound its cost.

Size and format are checked in the header, before any pixel is decoded. Messages are fixed: a library's
message has leaked an address before (CVE-2026-22778). Only the first frame of an animation is read, so
thousands of further ones (CVE-2026-5497) cost nothing; ``media_video`` handles what was sent as a video.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from processing.errors import PromptError
from processing.pictures import check_shape, to_rgb
from server.media_url import MediaError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")

_DATA_HEADER = re.compile(r"data:(image/[a-z0-9.+-]+)?(;[a-z0-9._=-]+)*;base64", re.IGNORECASE)
_MAX_HEADER_LEN: Final = 200


def too_large(max_bytes: int) -> MediaError:
    return MediaError("image_too_large", f"The image has more than {max_bytes} bytes; send a smaller one.")


def read_data_url(url: str, max_bytes: int) -> bytes:
    """Return the content of ``data:image/…;base64,…``, whose size is checked before it is decoded."""
    comma = url.find(",", 0, _MAX_HEADER_LEN)
    if comma < 0 or _DATA_HEADER.fullmatch(url, 0, comma) is None:
        raise MediaError(
            "invalid_image_url", "A data: URL must begin with 'data:image/TYPE;base64,' and hold an image."
        )
    return read_base64(url[comma + 1 :], max_bytes)


def read_base64(text: str, max_bytes: int) -> bytes:
    if len(text) * 3 // 4 > max_bytes + 2:  # padding may stand for two bytes
        raise too_large(max_bytes)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("invalid_image_url", "The data: URL does not hold valid base64.") from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Check the header of a picture and return it, with its pixels not decoded yet."""
    image = _open(data, max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    try:
        check_shape(image.size)
    except PromptError as error:
        raise MediaError("invalid_image", f"The image was rejected: {error}.") from None
    return image


def decode_picture(image: Image.Image) -> Image.Image:
    """Return an opened picture as people see it: first frame, upright, RGB, transparency on white."""
    try:
        image.load()
        return upright_rgb(image)
    except MemoryError:
        raise
    except Exception:  # decoders may raise anything on malicious bytes
        raise MediaError("invalid_image", "The image is damaged or incomplete.") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture upright and in RGB."""
    return to_rgb(_upright(image))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise MediaError(
            "unsupported_image_format", "The content is not a PNG, JPEG, WebP or GIF image."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)) from None
    except MemoryError:
        raise
    except Exception:
        raise MediaError("invalid_image", "The image is damaged or incomplete.") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        return image  # broken EXIF data does not make the picture unusable


def _too_many_pixels(max_pixels: int) -> MediaError:
    return MediaError("image_too_large", f"The image has more than {max_pixels} pixels; send a smaller one.")

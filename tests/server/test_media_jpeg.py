"""JPEGs that cost more than their size says: parts that are decoded or joined again and again."""

from __future__ import annotations

from PIL import Image

from tests.server.test_media_pictures import decode, encoded, refused


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan is sent again and again: each is decoded over the whole picture."""
    data = encoded(Image.effect_noise((256, 256), 40), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    assert decode(progressive(0)).size == decode(progressive(20)).size == (256, 256)
    assert refused(progressive(200)) == "invalid_image"


def test_a_jpeg_of_thousands_of_notes_is_refused() -> None:
    """Pillow joins them one by one."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    note = b"\xff\xe1\x00\x0aExif\x00\x00MM"
    assert decode(data[:2] + note * 20 + data[2:]).size == (8, 8)
    assert refused(data[:2] + note * 1000 + data[2:]) == "invalid_image"

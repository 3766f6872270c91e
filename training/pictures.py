"""Pictures in training data: local files and data URLs, located when data are read, decoded when needed."""

from __future__ import annotations

import base64
import binascii
import io
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageOps

from processing.errors import PromptError
from processing.pictures import check_shape, to_rgb
from training.errors import DataError

_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture. ``source``: a file, or the content of one. ``where`` names the record in error messages."""

    source: Path | bytes
    where: str

    def url(self, folder: Path) -> str:
        """Return a URL that :func:`picture_from_url` can read with the same ``folder``."""
        if isinstance(self.source, Path):
            return os.path.relpath(self.source, folder)
        return f"data:image/*;base64,{base64.b64encode(self.source).decode()}"

    def stamp(self) -> bytes:
        """Return a short fingerprint of the file: its size, first and last bytes. It survives a copy."""
        if isinstance(self.source, bytes):
            return b""  # content within a record changes with the record
        size = self.source.stat().st_size
        with open(self.source, "rb") as file:
            first = file.read(_SAMPLE)
            file.seek(max(0, size - _SAMPLE))
            return b"%d/" % size + first + file.read(_SAMPLE)

    def load(self) -> Image.Image:
        """Decode the picture as the server would, RGB and upright. Raises ``DataError``."""
        opened = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(opened) as image:
                upright = ImageOps.exif_transpose(image)
                check_shape(upright.size)
                return to_rgb(upright)
        except (OSError, ValueError, SyntaxError, PromptError, Image.DecompressionBombError) as error:
            name = "a data URL" if isinstance(self.source, bytes) else self.source.name
            raise DataError(f"{self.where}: the image {name} cannot be read: {error}") from error


def picture_from_url(url: str, folder: Path, where: str) -> Picture:
    """Return the picture at a ``data:`` or ``file:`` URL or a plain path. Raises ``DataError``.

    Relative paths start from ``folder``.
    """
    if url.startswith("data:"):
        header, comma, content = url.partition(",")
        if not comma or not header.endswith(";base64"):
            raise DataError(f"{where}: a data URL must look like data:image/png;base64,…")
        try:
            return Picture(base64.b64decode(content, validate=True), where)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{where}: a data URL does not contain valid base64") from error
    if url.startswith(("http:", "https:")):
        raise DataError(f"{where}: images are not downloaded; fetch {url[:80]!r} and give its path")
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url)
    return picture_from_path(folder / path, where)


def picture_from_path(path: Path, where: str) -> Picture:
    """Return the picture in the file ``path``. Raises ``DataError`` if there is no such file."""
    if not path.is_file():
        raise DataError(f"{where}: there is no image {str(path)!r}")
    return Picture(path, where)

"""Pictures of training data: local files and data URLs, found when data are read, decoded when needed."""

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


@dataclass(frozen=True, slots=True)
class Picture:
    """``source``: a file, or the content of one. ``where`` names the record, for messages."""

    source: Path | bytes
    where: str

    def url(self, folder: Path) -> str:
        """What :func:`picture_from_url` with the same ``folder`` reads."""
        if isinstance(self.source, Path):
            return os.path.relpath(self.source, folder)
        return f"data:image/*;base64,{base64.b64encode(self.source).decode()}"

    def stamp(self) -> tuple[int, int]:
        """Size and time of the file; what is in a record changes with the record."""
        if isinstance(self.source, bytes):
            return len(self.source), 0
        found = self.source.stat()
        return found.st_size, found.st_mtime_ns

    def load(self) -> Image.Image:
        """RGB and upright, as the server would decode it. Raises ``DataError``."""
        opened = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(opened) as image:
                upright = ImageOps.exif_transpose(image)
                check_shape(upright.size)
                return to_rgb(upright)
        except (OSError, ValueError, SyntaxError, PromptError, Image.DecompressionBombError) as error:
            name = "a data URL" if isinstance(self.source, bytes) else self.source.name
            raise DataError(f"{self.where}: the picture {name} cannot be read: {error}") from error


def picture_from_url(url: str, folder: Path, where: str) -> Picture:
    """``data:`` and ``file:`` URLs and plain paths, relative ones below ``folder``. Raises ``DataError``."""
    if url.startswith("data:"):
        header, comma, content = url.partition(",")
        if not comma or not header.endswith(";base64"):
            raise DataError(f"{where}: a data URL must look like data:image/png;base64,…")
        try:
            return Picture(base64.b64decode(content, validate=True), where)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{where}: a data URL does not hold valid base64") from error
    if url.startswith(("http:", "https:")):
        raise DataError(f"{where}: pictures are not downloaded; fetch {url[:80]!r} and name the file")
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url)
    return picture_from_path(folder / path, where)


def picture_from_path(path: Path, where: str) -> Picture:
    """A file that must be there. Raises ``DataError``."""
    if not path.is_file():
        raise DataError(f"{where}: there is no picture {str(path)!r}")
    return Picture(path, where)

"""Reads files and folders of training data as dialogues and documents.

Knows JSON lines, JSON arrays, parquet (with pyarrow, which is optional) and folders of text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.errors import DataError, TrainingError
from training.records import Document, Item, parse_record

TEXT_SUFFIXES = (".txt", ".md")


def read_items(paths: Sequence[Path], image_folder: Path | None, max_length: int) -> list[Item]:
    """Read everything in ``paths``, in order.

    Texts are cut at blank lines into pieces of at most about ``max_length`` tokens. Raises ``DataError`` with
    the file and line that cannot be read.
    """
    items = [item for path in paths for item in _read(path, image_folder, max_length)]
    if not items:
        raise TrainingError(f"there is nothing to read in {', '.join(map(str, paths))}")
    return items


def _read(path: Path, image_folder: Path | None, max_length: int) -> Iterator[Item]:
    if path.is_dir():
        yield from _texts(path, max_length)
        return
    for record, where in records(path):
        yield parse_record(record, image_folder or path.parent, where)


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the records of a file, each with its location for error messages. Raises ``TrainingError``."""
    readers = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet}
    if not path.is_file():
        raise TrainingError(f"there is no file or folder {str(path)!r}")
    if path.suffix not in readers:
        raise TrainingError(f"{path}: data must be {', '.join(readers)} files, or folders of text files")
    yield from readers[path.suffix](path)


def _json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    yield json.loads(line), where
                except ValueError as error:
                    raise DataError(f"{where}: not valid JSON: {error}") from error


def _json_array(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path.name}: not valid JSON: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{path.name}: must contain a list of records")
    for number, record in enumerate(records, 1):
        yield record, f"{path.name}: record {number}"


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TrainingError(f"{path}: parquet files need pyarrow: pip install -e '.[train]'") from error
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield _present(record), f"{path.name}: row {number}"
    except (ArrowException, OSError) as error:
        raise DataError(f"{path.name}: row {number + 1}: {error}") from error


def _present(value: Any) -> Any:
    """Remove the empty fields that a parquet column adds to every record."""
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _texts(folder: Path, max_length: int) -> Iterator[Document]:
    for path in sorted(p for p in folder.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file()):
        name = str(path.relative_to(folder))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name}: cannot be read as UTF-8 text: {error}") from error
        # Texts have more than two characters per token, so encoding rarely has to truncate a piece.
        for number, piece in enumerate(_pieces(text, 2 * max_length), 1):
            yield Document(piece, f"{name}: piece {number}")


def _pieces(text: str, max_chars: int) -> Iterator[str]:
    """Yield pieces of whole paragraphs, as many as fit into ``max_chars``."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) + 2 > max_chars:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield piece

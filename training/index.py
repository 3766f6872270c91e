"""The first pass over the data: dialogue lengths, the spans to be predicted, and token counts.

The index is kept in one file, so that a resumed run need not build it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from training.encode import Encoder, Spans
from training.errors import DataError, TrainingError
from training.loading import load_ahead
from training.records import Item, pictures_key

_ARRAYS = ("items", "lengths", "spans", "counts")


@dataclass(frozen=True, slots=True)
class Index:
    """Index of the E examples that are kept.

    ``items`` int64 ``[E]``: their positions among the items read. ``lengths`` int64 ``[E]``: in tokens.
    ``spans`` int64 ``[S, 3]``: (example, start, end) of the tokens to be predicted, in order. ``counts``
    int64 ``[vocab]``: how often each token occurs in those spans. ``key`` identifies data and settings.
    ``targets`` int64 ``[E]``: how many tokens of each example are to be predicted. ``starts`` int64 ``[E]``:
    where each example's tokens begin if all examples are laid end to end.
    """

    items: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    num_too_long: int
    num_without_answer: int
    key: str
    targets: npt.NDArray[np.int64] = field(init=False)
    starts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        sizes = self.spans[:, 2] - self.spans[:, 1]
        targets = np.bincount(self.spans[:, 0], sizes, len(self)).astype(np.int64)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def spans_of(self, example: int) -> Spans:
        first, last = np.searchsorted(self.spans[:, 0], [example, example + 1])
        return [(int(start), int(end)) for _, start, end in self.spans[first:last]]

    def describe(self) -> dict[str, Any]:
        return {
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "predicted_tokens": int(self.targets.sum()),
            "left_out_too_long": self.num_too_long,
            "left_out_without_answer": self.num_without_answer,
        }


def data_key(data: Sequence[Path], items: Sequence[Item], encoder: Encoder, model_folder: Path) -> str:
    """Return a key that changes with the data files, their pictures, the tokenizer, the chat template and the
    tokens to predict.
    """
    small = (p for p in sorted(model_folder.iterdir()) if p.suffix in (".json", ".jinja", ".model"))
    digest = hashlib.blake2b(f"{encoder.mask}/{encoder.max_length}".encode(), digest_size=16)
    for path in small:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(pictures_key(items).encode())
    for path in data:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def build_index(items: Sequence[Item], encoder: Encoder, key: str, path: Path, *, workers: int) -> Index:
    """Load the index from ``path``, or build and save it if the file is missing or has another key."""
    if (found := _load(path)) is not None and found.key == key:
        return found
    lengths: list[int] = []
    kept: list[int] = []
    spans: list[tuple[int, int, int]] = []
    counts = np.zeros(encoder.processor.vocab_size, np.int64)
    num_too_long = num_without_answer = 0
    loader = load_ahead(_FirstPass(items, encoder), workers)
    for number, looked in enumerate(tqdm(loader, desc="reading data", unit="dialogue", mininterval=2)):
        if isinstance(looked, DataError):
            raise looked
        num_too_long += looked.length > encoder.max_length
        num_without_answer += not looked.spans and looked.length <= encoder.max_length
        if looked.length > encoder.max_length or not looked.spans:
            continue
        spans += [(len(kept), start, end) for start, end in looked.spans]
        kept.append(number)
        lengths.append(looked.length)
        np.add.at(counts, looked.answer_ids, 1)
    if not kept:
        raise TrainingError(
            f"none of the {len(items)} dialogues can be used: {num_too_long} have more than --max-length "
            f"{encoder.max_length} tokens, {num_without_answer} have no answer to learn from"
        )
    index = Index(
        np.array(kept), np.array(lengths), np.array(spans), counts, num_too_long, num_without_answer, key
    )
    _save(index, path)
    return index


@dataclass(frozen=True, slots=True)
class _Looked:
    length: int
    spans: Spans
    answer_ids: npt.NDArray[np.int64]


class _FirstPass(Dataset[_Looked | DataError]):
    """Looks at each item once. Errors are returned: one raised in a worker would lose its type."""

    def __init__(self, items: Sequence[Item], encoder: Encoder) -> None:
        self._items, self._encoder = items, encoder

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> _Looked | DataError:
        item = self._items[number]
        try:
            ids = self._encoder.prompt(item).token_ids
            spans = self._encoder.spans(item, ids) if len(ids) <= self._encoder.max_length else []
        except DataError as error:
            return error
        answer_ids = [token for start, end in spans for token in ids[start:end]]
        return _Looked(len(ids), spans, np.array(answer_ids, np.int64))


def _save(index: Index, path: Path) -> None:
    more = {"key": index.key, "too_long": index.num_too_long, "without_answer": index.num_without_answer}
    partial = path.with_suffix(".partial")
    tensors = {name: np.ascontiguousarray(getattr(index, name)) for name in _ARRAYS}
    save_file(tensors, partial, metadata={"index": json.dumps(more)})
    os.replace(partial, path)


def _load(path: Path) -> Index | None:
    try:
        with safe_open(path, framework="numpy") as file:
            more = json.loads(file.metadata()["index"])
            items, lengths, spans, counts = (file.get_tensor(name) for name in _ARRAYS)
    except (OSError, SafetensorError, KeyError):  # missing or truncated: it is built again
        return None
    return Index(items, lengths, spans, counts, more["too_long"], more["without_answer"], more["key"])

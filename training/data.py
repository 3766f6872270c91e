"""Prepares data files for training: reads and indexes them, and cuts them into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processing.processor import Processor
from training.batches import Batch, load_batches
from training.encode import Encoder
from training.index import Index, build_index, data_key
from training.packing import Pass, Plan, cut_passes, pack
from training.records import Item
from training.settings import TrainSettings
from training.sources import read_items
from training.teacher import stop_token_ids


@dataclass(frozen=True, slots=True)
class Data:
    items: Sequence[Item]
    index: Index
    encoder: Encoder

    def plan(self, settings: TrainSettings) -> Plan:
        return Plan(
            self.index.lengths,
            settings.batch_size,
            settings.row_length,
            settings.tokens_per_pass,
            settings.seed,
        )

    def first(self, count: int, settings: TrainSettings) -> list[Pass]:
        """Return passes over the first ``count`` examples, for evaluation."""
        rows = pack(range(min(count, len(self.index))), self.index.lengths, settings.row_length)
        return cut_passes(rows, self.index.lengths, settings.tokens_per_pass)

    def batches(self, passes: Sequence[Pass], workers: int) -> Iterator[Batch]:
        return load_batches(self.items, self.index, self.encoder, passes, workers=workers)

    def num_targets(self, passes: Sequence[Pass]) -> int:
        """Return the number of tokens that these passes predict."""
        examples = np.array([example for one in passes for row in one.rows for example in row])
        return int(self.index.targets[examples].sum())


def open_data(settings: TrainSettings, paths: Sequence[Path], folder: Path, name: str) -> Data:
    """Read and index ``paths``; the index is kept in ``OUT/name``. Raises ``TrainingError``.

    ``folder``: the target's folder.
    """
    items = read_items(paths, settings.image_folder, settings.max_length)
    encoder = Encoder(
        Processor.from_pretrained(str(folder)), stop_token_ids(folder), settings.mask, settings.max_length
    )
    key = data_key(paths, items, encoder, folder)
    return Data(
        items, build_index(items, encoder, key, settings.out / name, workers=settings.workers), encoder
    )

"""Training batches with dense labels, which depend on the step alone and are drawn in worker processes.

Knows scenes, labels and tensors, but not models.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from demo.labels import label
from demo.model import IMAGE_SIZE, tokens_with_offsets
from demo.pictures import generator, scene
from demo.recipe import MIX


def pixels(image: Image.Image) -> np.ndarray:
    """Return a picture as uint8 [240, 240, 3], as the image processor does before it rescales values."""
    return np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def normalised(raw: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    return raw.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


class SceneBatches(Dataset[dict[str, torch.Tensor]]):
    """Data set whose item ``step`` has pictures and their dense labels."""

    def __init__(
        self, seed: int, batch: int, language: Path, mix: tuple[float, ...] = MIX, places: bool = False
    ):
        self.seed, self.batch, self.language = seed, batch, language
        self.mix, self.places = mix, places
        self.tokens: Any = None

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        self.tokens = self.tokens or tokens_with_offsets(self.language)
        scenes = [
            scene(generator(self.seed, step * self.batch + i, "train"), mix=self.mix)
            for i in range(self.batch)
        ]
        return dense(scenes, self.tokens, self.places)


def dense(scenes: list[Any], tokens: Any, places: bool = False) -> dict[str, torch.Tensor]:
    """Stack pictures and labels of ``scenes``."""
    labels = [label(one, tokens, places) for one in scenes]
    return {
        "pixels": torch.from_numpy(np.stack([pixels(one.image) for one in scenes])),
        "patches": torch.from_numpy(np.stack([one.patches for one in labels])),
        "captions": torch.from_numpy(np.stack([one.captions for one in labels])),
        "whole": torch.from_numpy(np.stack([one.whole for one in labels])),
    }


def ahead(dataset: Dataset[Any], start: int, stop: int, workers: int = 1) -> Iterator[Any]:
    """Yield items ``start`` to ``stop`` - 1 of ``dataset`` in order, prepared ahead by worker processes."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=6 if workers else None,
    )
    return iter(loader)

"""Reads the sampling defaults of a model, from a folder or from the hub. Imports no model library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from server.sampling import SamplingDefaults

FILE_NAME: Final = "generation_config.json"


def recommended_sampling(model: str, revision: str | None = None) -> SamplingDefaults:
    """Return the sampling defaults of a model, empty if it has no such file."""
    path = local_file(model) if Path(model).is_dir() else hub_file(model, revision)
    if path is None:
        return SamplingDefaults()
    return SamplingDefaults.from_generation_config(json.loads(path.read_text()))


def local_file(model: str) -> Path | None:
    path = Path(model, FILE_NAME)
    return path if path.exists() else None


def hub_file(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model, FILE_NAME, revision=revision))
    except EntryNotFoundError:
        return None

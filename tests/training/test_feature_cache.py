"""The cache gives what the teacher gives, runs it once a dialogue, and takes no more room than it may."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_acceptance import make_data, one_batch
from tests.training.test_training import settings, stop_after
from training import feature_cache
from training.errors import TrainingError
from training.feature_cache import FeatureCache
from training.run import train
from training.teacher import Teacher


def test_it_gives_what_the_teacher_gives_in_any_packing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("llava")
    data, teacher = make_data(folder, tmp_path), Teacher.load(folder, "float32", torch.device("cpu"))
    total = int(data.index.lengths.sum())
    cache = FeatureCache(teacher, tmp_path, total, "key", 1.0)
    cache.see(one_batch(data, [[0, 1], [2], [3]]))
    later = FeatureCache(teacher, tmp_path, total, "key", 1.0)  # another run, or another process
    teacher.see = None  # type: ignore[assignment, method-assign]
    other = one_batch(data, [[3, 0], [1, 2]])
    seen = later.see(other)
    fresh = Teacher.load(folder, "float32", torch.device("cpu")).see(other)
    real = other.dialogues >= 0
    assert torch.allclose(seen.embeddings[real], fresh.embeddings[real], rtol=1e-2, atol=1e-2)
    assert torch.allclose(seen.features[real], fresh.features[real], rtol=1e-2, atol=2e-2)
    assert seen.features.dtype == torch.float32
    assert seen.scores is not None
    assert fresh.scores is not None
    assert torch.allclose(seen.scores, fresh.scores)

    FeatureCache(teacher, tmp_path, total, "other", 1.0)
    assert len(list(tmp_path.glob("features-*-other.*"))) == 3
    assert not list(tmp_path.glob("features-*-key.*"))


def test_what_another_boot_left_is_not_trusted(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure tokens may be marked whose values never reached the disk."""
    folder, boot = tiny("llava"), tmp_path / "boot_id"
    monkeypatch.setattr(feature_cache, "_BOOT_ID", boot)
    data, teacher = make_data(folder, tmp_path), Teacher.load(folder, "float32", torch.device("cpu"))
    total, batch = int(data.index.lengths.sum()), one_batch(data, [[0, 1], [2], [3]])
    passes: list[int] = []
    monkeypatch.setattr(teacher, "see", lambda batch, see=teacher.see: passes.append(1) or see(batch))
    for name, wanted in (("one", 1), ("one", 1), ("two", 2), ("two", 2), (None, 3), (None, 3)):
        boot.write_text(f"{name}\n") if name else boot.unlink(missing_ok=True)
        FeatureCache(teacher, tmp_path, total, "key", 1.0).see(batch)
        assert len(passes) == wanted
        assert len(list(tmp_path.glob("features-*"))) == 3


def test_the_teacher_runs_in_the_first_epoch_only(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = Teacher.features

    def counted(self: Teacher, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        passes.append(len(embeddings))
        return real(self, embeddings, positions)

    monkeypatch.setattr(Teacher, "features", counted)
    data, model, out = dialogues(8, pictures=True), tiny("llava"), tmp_path / "out"
    chosen = settings(model, data, out, epochs=3, batch_size=4, feature_cache_gb=0.1)
    train(chosen, stop=stop_after(4))
    assert len(passes) == 2
    assert len(list(out.glob("features-*"))) == 3
    train(chosen)
    assert len(passes) == 2
    assert not list(out.glob("features-*"))  # it has done its work


def test_no_more_room_is_taken_than_allowed_or_there(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model, out = dialogues(4), tiny("llava"), tmp_path / "out"
    with pytest.raises(TrainingError, match=r"more than --feature-cache-gb 1e-06; raise it"):
        train(settings(model, data, out, feature_cache_gb=1e-6))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrainingError, match=r"no room for .* GB of features .*No space left"):
        train(settings(model, data, out, feature_cache_gb=1.0))
    assert not list(out.glob("features-*"))

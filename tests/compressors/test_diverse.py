"""The tokens that differ most, against a plain account of distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compressors.base import Picture
from compressors.diverse import DiversePrune, most_diverse


def by_hand(inputs: torch.Tensor, count: int) -> list[int]:
    """Always the token whose nearest chosen one is farthest; the first: whose nearest of all is."""
    size = len(inputs)
    far = [[1 - float(F.cosine_similarity(a, b, dim=0)) for b in inputs] for a in inputs]
    chosen = [max(range(size), key=lambda i: min(far[i][j] for j in range(size) if j != i))]
    while len(chosen) < count:
        left = [i for i in range(size) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(far[i][j] for j in chosen)))
    return sorted(chosen)


def test_the_choice_is_the_greedy_one() -> None:
    for seed in range(20):
        inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
        for count in (1, 2, 5, 11, 12):
            assert most_diverse(inputs, count).tolist() == by_hand(inputs, count)


def test_copies_are_dropped_first() -> None:
    inputs = torch.eye(4).repeat_interleave(3, dim=0)
    assert {i // 3 for i in most_diverse(inputs, 4).tolist()} == {0, 1, 2, 3}
    assert len(set(most_diverse(torch.ones(6, 4), 5).tolist())) == 5, "equal tokens are still different ones"


def test_every_grid_keeps_its_share() -> None:
    picture = Picture(((4, 4), (2, 6)), b"")
    inputs = torch.randn(28, 8, generator=torch.Generator().manual_seed(0))
    compressor = DiversePrune(4)
    (found,) = compressor(inputs, [picture])
    assert len(found.sources) == compressor.num_kept(picture)
    assert (found.sources < 16).sum() == 4
    assert found.sources.tolist() == sorted(set(found.sources.tolist()))
    assert torch.equal(found.values, inputs[found.sources])

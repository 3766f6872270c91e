"""What every compressor promises, and what the training-free ones keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressors.base import Compressor, Picture, TextOnly, Whole, kept_grids
from compressors.pool import Pool
from compressors.prune import AttentionPrune, NormPrune, RandomPrune, UniformPrune

BY_GRID = (RandomPrune, UniformPrune, NormPrune, Pool)

grids = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3).map(tuple)
pictures = st.lists(st.builds(Picture, grids, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)


def drawn(which: list[Picture], width: int = 4) -> Tensor:
    """Every token is another."""
    count = sum(picture.num_tokens for picture in which)
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def alone(compressor: Compressor, inputs: Tensor, which: list[Picture]) -> list[Tensor]:
    parts = inputs.split([picture.num_tokens for picture in which])
    return [compressor(part, [picture])[0].values for part, picture in zip(parts, which, strict=True)]


@settings(deadline=None)
@given(pictures, st.sampled_from([1.0, 1.7, 3.0, 5.0, 10.0, 20.0, 1000.0]))
def test_every_compressor_keeps_its_promises(which: list[Picture], ratio: float) -> None:
    """The count is known from the shape, tokens stay in order, pictures do not reach into each other."""
    inputs = drawn(which)
    for compressor in (*(kind(ratio) for kind in BY_GRID), Whole(), TextOnly()):
        found = compressor(inputs, which)
        for picture, one in zip(which, found, strict=True):
            assert one.values.shape == (compressor.num_kept(picture), 4)
            sources = one.sources.tolist()
            assert len(sources) == len(one.values) <= picture.num_tokens
            assert sources == sorted(set(sources))
            assert all(0 <= source < picture.num_tokens for source in sources)
            assert sources or compressor.name == "text_only"
        for one, expected in zip(found, alone(compressor, inputs, which), strict=True):
            torch.testing.assert_close(one.values, expected)


@pytest.mark.parametrize("kind", BY_GRID)
def test_a_ratio_of_one_changes_nothing(kind: type[Compressor]) -> None:
    which = [Picture(((3, 4), (2, 2)), b"a"), Picture(((1, 5),), b"b")]
    inputs = drawn(which)
    torch.testing.assert_close(torch.cat([one.values for one in kind(1.0)(inputs, which)]), inputs)


@pytest.mark.parametrize(
    ("grid", "ratio", "kept"),
    [
        ((10, 10), 5, (4, 5)),
        ((10, 10), 20, (2, 3)),
        ((24, 24), 3, (14, 14)),
        ((1, 100), 10, (1, 10)),
        ((2, 60), 3, (1, 40)),
        ((3, 2), 20, (1, 1)),
    ],
)
def test_what_is_left_of_a_grid(grid: tuple[int, int], ratio: float, kept: tuple[int, int]) -> None:
    assert kept_grids(Picture((grid,), b""), ratio) == [kept]


def test_random_pruning_belongs_to_the_picture() -> None:
    """The same picture keeps the same tokens in any company; another keeps others."""
    one, other = Picture(((10, 10),), b"one"), Picture(((10, 10),), b"other")
    prune = RandomPrune(5)
    first, second, third = prune(drawn([one, other, one]), [one, other, one])
    assert first.sources.tolist() == third.sources.tolist()
    assert first.sources.tolist() != second.sources.tolist()
    assert prune(drawn([one]).double(), [one])[0].sources.tolist() == first.sources.tolist()


def test_pooling_takes_means_of_cells() -> None:
    picture = Picture(((2, 4), (1, 2)), b"")
    inputs = torch.tensor([[0.0], [2.0], [10.0], [20.0], [4.0], [6.0], [30.0], [40.0], [7.0], [9.0]])
    (found,) = Pool(4)(inputs, [picture])
    assert found.values.flatten().tolist() == [3.0, 25.0, 8.0]
    assert found.sources.tolist() == [5, 7, 9]


def test_scores_decide_what_stays() -> None:
    picture = Picture(((2, 2),), b"", scores=torch.tensor([0.1, 0.4, 0.3, 0.2]))
    inputs = torch.tensor([[3.0], [-5.0], [1.0], [4.0]])
    (by_score,) = AttentionPrune(2)(inputs, [picture])
    (by_norm,) = NormPrune(2)(inputs, [picture])
    assert by_score.sources.tolist() == [1, 2]
    assert by_norm.sources.tolist() == [1, 3]
    with pytest.raises(ValueError, match="score for each of 4"):
        AttentionPrune(2)(inputs, [Picture(((2, 2),), b"")])


def test_a_ratio_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Pool(5).at(0)
    assert (Pool(5).at(2.5).tag, Pool(5).tag, TextOnly().tag) == ("pool-2.5", "pool-5", "text_only")

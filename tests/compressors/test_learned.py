"""Branches with weights, and the ways to combine branches."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from compressors.base import Picture, TextOnly, Whole
from compressors.combine import Concat, Weighted, compress
from compressors.elastic import BranchConfig, Elastic, ElasticConfig, Mode, stepped, training_free
from compressors.gate import gumbel, imbalance, straight_through
from compressors.pool import Pool
from compressors.prune import RandomPrune
from compressors.resampler import Resampler

SIZE = 8
PICTURES = [Picture(((5, 6),), b"a"), Picture(((2, 2), (4, 5)), b"b"), Picture(((1, 1),), b"c")]
COUNTS = [picture.num_tokens for picture in PICTURES]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def elastic(mode: Mode = "select", *branches: BranchConfig, seed: int | None = 5) -> Elastic:
    """With weights that all matter, or as it starts for ``seed`` ``None``."""
    chosen = branches or tuple(
        BranchConfig(name, ratio)
        for name, ratio in [("prune", 4), ("pool", 4), ("conv", 4), ("resampler", 8), ("text_only", 1)]
    )
    made = Elastic(ElasticConfig(mode, chosen), SIZE, feature_size=6)
    made.reset(torch.Generator().manual_seed(0))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in made.parameters():
            parameter.data.normal_(generator=generator)
    return made.requires_grad_(False)


@pytest.mark.parametrize("name", ["conv", "resampler"])
@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_learned_branches_work_on_each_picture_alone(name: str, ratio: float) -> None:
    inputs = noise(sum(COUNTS), SIZE)
    branch = elastic().branch(name).at(ratio)
    found = branch(inputs, PICTURES)
    for picture, part, one in zip(PICTURES, inputs.split(COUNTS), found, strict=True):
        assert one.values.shape == (branch.num_kept(picture), SIZE)
        sources = one.sources.tolist()
        assert sources == sorted(set(sources))
        assert 0 <= sources[0] <= sources[-1] < picture.num_tokens
        (alone,) = branch(part, [picture])
        torch.testing.assert_close(one.values, alone.values)


def test_new_branches_are_plain_means() -> None:
    """Added to a draft that knows only whole pictures, they disturb it as little as pooling does."""
    inputs, fresh = noise(sum(COUNTS), SIZE), elastic(seed=None)
    for one, pooled in zip(fresh.branch("conv")(inputs, PICTURES), Pool(4)(inputs, PICTURES), strict=True):
        torch.testing.assert_close(one.values, pooled.values)
    resampled = fresh.branch("resampler")(inputs, PICTURES)
    for one, part in zip(resampled, inputs.split(COUNTS), strict=True):
        torch.testing.assert_close(one.values, part.mean(0).expand_as(one.values))
    assert fresh.gate is not None
    assert fresh.gate(noise(3, 6), noise(3, 6, seed=1)).abs().max() == 0


def test_the_resampler_knows_where_tokens_are() -> None:
    """Its reading of a picture changes when tokens change places, which a mean would not see."""
    branch = Resampler(8, SIZE)
    for parameter in branch.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    inputs = noise(30, SIZE)
    (one,), (other,) = branch(inputs, PICTURES[:1]), branch(inputs.flip(0), PICTURES[:1])
    assert (one.values - other.values).abs().max() > 0.1


def test_fewer_queries_are_the_first_ones() -> None:
    """One set of weights serves every ratio; beyond the last query nothing comes out."""
    inputs, branch = noise(30, SIZE), elastic().branch("resampler")
    (few,), (many,) = branch.at(15)(inputs, PICTURES[:1]), branch.at(1)(inputs, PICTURES[:1])
    assert (len(few.values), len(many.values)) == (2, 16)
    torch.testing.assert_close(few.values, many.values[:2])


def test_another_ratio_shares_the_weights() -> None:
    branch = elastic().branch("conv")
    other = branch.at(2)
    branch.to(torch.float64)
    assert (branch.ratio, other.ratio) == (4, 2)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match="at most 5"):
        branch.at(6)


def test_pictures_go_each_their_own_way() -> None:
    inputs, pool = noise(sum(COUNTS), SIZE), Pool(4)
    ways = [pool, TextOnly(), pool]
    found = compress(inputs, PICTURES, ways)
    for picture, part, way, one in zip(PICTURES, inputs.split(COUNTS), ways, found, strict=True):
        torch.testing.assert_close(one.values, way(part, [picture])[0].values)


def test_concat_orders_tokens_by_place_and_never_grows() -> None:
    inputs = noise(sum(COUNTS), SIZE)
    both = Concat([Pool(4), RandomPrune(4)])
    found = both(inputs, PICTURES)
    for picture, part, one in zip(PICTURES, inputs.split(COUNTS), found, strict=True):
        assert len(one.values) == both.num_kept(picture) <= picture.num_tokens
        assert one.sources.tolist() == sorted(one.sources.tolist())
        if len(one.values) < picture.num_tokens:
            (kept,) = RandomPrune(4)(part, [picture])
            at = [one.sources.tolist().index(source) for source in kept.sources.tolist()]
            assert any(
                torch.equal(part[source], one.values[i]) for source, i in zip(kept.sources, at, strict=True)
            )
    assert torch.equal(found[2].values, inputs[-1:])  # one token cannot be cut in two: it stays whole


def test_weights_of_a_sum() -> None:
    inputs = noise(30, SIZE)
    parts = [RandomPrune(4), Pool(4)]
    (pruned,), (pooled,) = (part(inputs, PICTURES[:1]) for part in parts)
    mixed = Weighted(parts, torch.tensor([0.25, 0.75]))
    (found,) = mixed(inputs, PICTURES[:1])
    torch.testing.assert_close(found.values, 0.25 * pruned.values + 0.75 * pooled.values)
    assert mixed.tag == "weight-4(prune:0.25,pool:0.75)"


def test_another_ratio_of_several_compressors() -> None:
    """Of a sum it is that of all parts; side by side there is no one ratio."""
    mixed = Weighted([RandomPrune(4), Pool(4)], torch.tensor([0.25, 0.75])).at(2)
    (found,) = mixed(noise(30, SIZE), PICTURES[:1])
    assert len(found.values) == mixed.num_kept(PICTURES[0]) == Pool(2).num_kept(PICTURES[0])
    with pytest.raises(ValueError, match="several ratios"):
        Concat([Pool(4), RandomPrune(2)]).at(3)


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
def test_stepped_weights_sum_to_one(weights: list[float]) -> None:
    found = stepped(torch.tensor(weights))
    assert float(found.sum()) == 1.0
    assert (found * 8).tolist() == (found * 8).round().tolist()
    assert (found - torch.tensor(weights)).abs().max() < 1 / 8


def test_the_gate_decides_by_picture_and_question() -> None:
    made = elastic()
    pictures, questions = noise(40, 6), noise(40, 6, seed=1)
    chosen = [way.name for way in made.decide(pictures, questions)]
    assert len(set(chosen)) >= 2
    assert chosen != [way.name for way in made.decide(pictures.flip(0), questions)]
    assert chosen != [way.name for way in made.decide(pictures, questions.flip(0))]


def test_modes() -> None:
    features = noise(3, 6)
    (only,) = set(
        elastic("concat", BranchConfig("pool", 4), BranchConfig("resampler", 8)).decide(features, features)
    )
    assert only.tag == "concat(pool-4,resampler-8)"
    adding = elastic("weight", BranchConfig("prune", 3), BranchConfig("pool", 3), BranchConfig("conv", 3))
    ways = adding.decide(features, features)
    assert all(way.name == "weight" for way in ways)
    inputs = noise(sum(COUNTS), SIZE)
    assert [len(one.values) for one in compress(inputs, PICTURES, ways)] == [
        Pool(3).num_kept(picture) for picture in PICTURES
    ]


def test_weights_travel_as_a_state_dict() -> None:
    made, file = elastic(), io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = Elastic(made.config, SIZE, feature_size=6)
    other.load_state_dict(torch.load(file, weights_only=True))
    inputs = noise(sum(COUNTS), SIZE)
    for name in ("conv", "resampler"):
        for one, two in zip(
            made.branch(name)(inputs, PICTURES), other.branch(name)(inputs, PICTURES), strict=True
        ):
            assert torch.equal(one.values, two.values)


@pytest.mark.parametrize(
    ("mode", "branches", "message"),
    [
        ("select", [], "one or more"),
        ("select", [("pool", 2), ("pool", 3)], "each once"),
        ("select", [("squeeze", 2)], "squeeze"),
        ("select", [("conv", 6)], "at most 5"),
        ("weight", [("pool", 2), ("prune", 3)], "at one ratio"),
        ("weight", [("pool", 2), ("resampler", 2)], "added up"),
    ],
)
def test_what_does_not_go_together_is_refused(
    mode: Mode, branches: list[tuple[str, float]], message: str
) -> None:
    config = ElasticConfig(mode, tuple(BranchConfig(*branch) for branch in branches))
    with pytest.raises(ValueError, match=message):
        Elastic(config, SIZE, feature_size=6)


def test_branches_without_weights_are_there_by_name() -> None:
    assert (training_free("pool", 5).tag, training_free("none", 5).tag) == ("pool-5", "none")
    assert isinstance(training_free("none", 1), Whole)
    with pytest.raises(ValueError, match="conv"):
        training_free("conv", 3)


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    noisy = gumbel(torch.Size([20000, 3]), torch.Generator().manual_seed(0)) + logits
    shares = torch.bincount(noisy.argmax(-1), minlength=3) / 20000
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.01, rtol=0)


def test_the_hard_choice_has_the_softmaxs_gradient() -> None:
    """Where branch 1 costs least, a step downhill makes it likelier."""
    logits = torch.zeros(1, 3, requires_grad=True)
    costs = torch.tensor([2.0, 1.0, 3.0])
    chosen = straight_through(logits, torch.tensor([[1.0, 0.0, 0.0]]), temperature=1.0)
    assert chosen.tolist() == [[1.0, 0.0, 0.0]]
    (chosen * costs).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].argmin() == 1


def test_imbalance() -> None:
    even = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    assert float(imbalance(even)) == pytest.approx(0.0, abs=1e-5)
    assert float(imbalance(even[:1])) == pytest.approx(1.0, abs=1e-3)


def test_a_gate_that_weighs_works_where_its_pictures_are() -> None:
    """Decisions are made on the host; on an accelerator the pictures are not."""
    made = elastic("weight", BranchConfig("pool", 4), BranchConfig("conv", 4))
    ways = made.decide(noise(3, 6), noise(3, 6, seed=1))
    there = torch.empty(sum(COUNTS), SIZE, device="meta")
    made.to("meta")
    for one, picture in zip(compress(there, PICTURES, ways), PICTURES, strict=True):
        assert one.values.device.type == "meta"
        assert one.values.shape == (ways[0].num_kept(picture), SIZE)

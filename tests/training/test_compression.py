"""Training with compressed pictures: what the gate is given and learns, and whole runs on tiny targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressors.base import Picture
from compressors.elastic import BranchConfig, Elastic, ElasticConfig
from engine.draft.files import load_draft
from tests.models import picture
from tests.training.test_training import same, settings, stop_after
from training.batches import Batch
from training.compression import Compression, by_dialogue, gate_inputs, per_picture
from training.errors import TrainingError
from training.journal import read_log
from training.rows import Placed
from training.run import train
from training.settings import TrainSettings

HIDDEN = 8
# Two dialogues in a row: text, a picture, a question, an answer; a picture first, then all the same.
KINDS = "tttvvvvqqaaa" + "vvqqqaa"


def batch_of(kinds: str) -> Batch:
    """``predicts`` refers to the next token: an answer's first token is predicted at the question's last."""
    size = len(kinds)
    visual = torch.tensor([i for i, kind in enumerate(kinds) if kind == "v"])
    predicts = torch.tensor([[kinds[i + 1 : i + 2] == "a" for i in range(size)]])
    dialogues = torch.tensor([[0] * 12 + [1] * (size - 12)])
    ids = torch.arange(size)[None]
    return Batch(ids, ids, dialogues, predicts, [], visual, 0, ids)


PLACED = [
    Placed(Picture(((2, 2),), b"one"), torch.arange(3, 7)),
    Placed(Picture(((1, 2),), b"two"), torch.arange(12, 14)),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gate_sees_the_picture_and_the_question_before_the_answer() -> None:
    features = noise(1, len(KINDS), HIDDEN)
    pictures, questions = gate_inputs(batch_of(KINDS), features, PLACED)
    torch.testing.assert_close(pictures, torch.stack([features[0, 3:7].mean(0), features[0, 12:14].mean(0)]))
    torch.testing.assert_close(questions, torch.stack([features[0, 7:9].mean(0), features[0, 14:17].mean(0)]))


def test_a_question_does_not_go_on_in_the_next_row() -> None:
    """A picture at the end of a row has no question, even if the next row begins with one."""
    kinds = "tttqaavv" + "qqqqaaaa"
    visual = torch.tensor([6, 7])
    predicts = torch.tensor([[kinds[i + 1 : i + 2] == "a" for i in range(16)]]).view(2, 8)
    ids = torch.arange(16).view(2, 8)
    batch = Batch(ids, ids % 8, torch.zeros(2, 8, dtype=torch.long), predicts, [], visual, 0, ids)
    placed = [Placed(Picture(((1, 2),), b"last"), visual)]
    _, questions = gate_inputs(batch, noise(2, 8, HIDDEN), placed)
    assert questions.abs().max() == 0


def test_an_album_counts_as_much_as_one_picture() -> None:
    shared = per_picture(torch.tensor([12.0, 6.0, 12.0, 12.0]), torch.tensor([3, 5, 3, 3]))
    assert shared.tolist() == [4.0, 6.0, 4.0, 4.0]


def test_means_over_dialogues() -> None:
    means, counts = by_dialogue(
        torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2, 2, 0]), torch.tensor([0, 1, 2])
    )
    assert (means.tolist(), counts.tolist()) == ([5.0, 0.0, 2.0], [1.0, 0.0, 2.0])


def compression(**changes: Any) -> Compression:
    chosen: dict[str, Any] = {"model": "m", "data": ["d"], "out": "o", "compressor": "select"}
    config = ElasticConfig(
        "select", (BranchConfig("pool", 4), BranchConfig("conv", 4), BranchConfig("text_only"))
    )
    made = Elastic(config, HIDDEN, HIDDEN)
    made.reset(torch.Generator().manual_seed(0))
    return Compression(TrainSettings(**chosen | changes), made, lambda image: ((1, image.num_tokens),))


def test_branches_ratios_and_whole_pictures_are_drawn_evenly() -> None:
    """Drawing again for the same picture and step gives the same branch."""
    made, batch, features = (
        compression(ratios=[2, 8], whole_share=0.25),
        batch_of(KINDS),
        noise(1, 19, HIDDEN),
    )
    drawn = [way.tag for step in range(800) for way in made.draw(batch, features, PLACED, step)]
    again = [way.tag for step in range(800) for way in made.draw(batch, features, PLACED, step)]
    assert drawn == again
    shares = {tag: count / len(drawn) for tag, count in Counter(drawn).items()}
    wanted = {
        "none": 0.25,
        "text_only": 0.25,
        "pool-2": 0.125,
        "pool-8": 0.125,
        "conv-2": 0.25,
    }  # conv: at most 5
    assert shares == pytest.approx(wanted, abs=0.04)


def test_the_gate_learns_which_branch_costs_least() -> None:
    """The question decides: one kind is answered as well by text alone, another needs the picture."""
    made = compression(gate_cost=0.1)
    assert made.compressor.gate is not None
    optimizer = torch.optim.Adam(made.compressor.gate.parameters(), lr=1e-2)
    batch, kinds = batch_of(KINDS), noise(2, HIDDEN, seed=9)
    costs = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.8, 2.0]])
    features = noise(1, len(KINDS), HIDDEN, seed=1)
    features[0, 7:9], features[0, 14:17] = kinds[0], kinds[1]
    for step in range(150):
        loss, _ = made.gate_loss(batch, features, PLACED, costs, torch.ones(2), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = made.compressor.decide(*gate_inputs(batch, features, PLACED))
    assert [way.name for way in chosen] == ["text_only", "conv"]


def compressing(mode: str = "select", **changes: Any) -> dict[str, Any]:
    return {"compressor": mode, "unroll": 2, "batch_size": 4, "draft_vocab": 100, "lr": 1e-3, **changes}


def state(out: Path) -> dict[str, Tensor]:
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    return {f"{part}.{name}": v for part in ("draft", "compressor") for name, v in saved[part].items()}


def test_a_stopped_run_with_a_gate_goes_on_as_if_it_had_not_stopped(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    """It also publishes a draft with its compressor, and measures each branch."""
    data, model = dialogues(10, pictures=True), tiny("llava")
    changes = compressing(
        epochs=2, noise=0.1, whole_share=0.0, ratios=[2, 4], eval_data=[data], eval_every=99
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    folder = train(settings(model, data, whole, **changes))
    train(settings(model, data, parts, **changes), stop=stop_after(3))
    train(settings(model, data, parts, **changes))
    assert same(state(parts), state(whole))
    started = state_at_start(model, data, tmp_path / "start", changes)
    moved = {name for name, value in state(whole).items() if not torch.equal(value, started[name])}
    assert {"compressor.gate.out.weight", "compressor.branches.conv.pointwise.weight"} <= moved

    text_config = text_config_of(model)
    loaded = load_draft(folder, text_config, attn_implementation="sdpa")
    assert loaded.compressor is not None
    assert [way.tag for way in loaded.compressor.ways] == [
        *("prune-10", "pool-10", "conv-5", "resampler-20", "text_only")
    ]
    steps = [line for line in read_log(whole / "log.jsonl") if line["kind"] == "step"]
    for line in steps:
        gate = line["gate"]
        assert gate["loss"] > 0.0
        assert gate["seconds"] > 0.0
        assert sum(gate["choices"].values()) == pytest.approx(1.0, abs=1e-3)
    assert [list(line["gate"]["choices"]) for line in steps[:1]] == [
        [way.tag for way in loaded.compressor.ways]
    ]
    assert steps[0]["gate"]["choices"] != steps[-1]["gate"]["choices"]
    (last,) = [line for line in read_log(whole / "log.jsonl") if line["kind"] == "evaluation"][-1:]
    found = last["by_compressor"]
    assert list(found)[:2] == ["auto", "none"]
    assert found["none"]["kept"] == 1.0
    assert found["text_only"]["kept"] == 0.0
    assert 0.0 < found["pool-10"]["kept"] < 0.5
    assert last["acceptance_length"] == found["auto"]["length"]


def text_config_of(model: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model).get_text_config()


def state_at_start(model: Path, data: Path, out: Path, changes: dict[str, Any]) -> dict[str, Tensor]:
    train(settings(model, data, out, **changes | {"max_steps": 1, "lr": 1e-30, "eval_data": []}))
    return state(out)


def test_the_compressor_may_learn_faster_than_the_draft(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    """AdamW's first step moves every weight that has a gradient by its learning rate."""
    data, model = dialogues(4, pictures=True), tiny("llava")
    changes = compressing(gate_every=1, max_steps=1, eval_data=[])
    before = state_at_start(model, data, tmp_path / "start", changes)
    train(settings(model, data, tmp_path / "out", **changes, compressor_lr=5.0))
    moved = {
        name: float((value - before[name]).abs().max()) for name, value in state(tmp_path / "out").items()
    }
    assert moved["draft.fc.weight"] == pytest.approx(1e-3, rel=0.05)
    assert moved["compressor.gate.out.bias"] == pytest.approx(5e-3, rel=0.05)


@pytest.mark.parametrize("mode", ["select", "weight", "concat"])
def test_it_does_not_matter_how_a_batch_with_compressed_pictures_is_cut(
    mode: str, tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    """The balance term is switched off, as it depends on all pictures of a pass together."""
    data, model = dialogues(8, pictures=True), tiny("llava")
    changes = compressing(mode, gate_balance=0.0, gate_every=1, lr=1e-4)
    for name, cut in (("one", {}), ("many", {"row_length": 64, "tokens_per_pass": 64})):
        train(settings(model, data, tmp_path / name, **changes | cut))
    assert same(state(tmp_path / "many"), state(tmp_path / "one"), atol=2e-6)


def test_other_pictures_are_other_data(tiny: Callable[..., Path], dialogues: Any, tmp_path: Path) -> None:
    """A picture that was replaced is in no file of records; features that are cached are of the old one."""
    data, model, out = dialogues(4, pictures=True), tiny("llava"), tmp_path / "out"
    train(settings(model, data, out, max_steps=1, epochs=2, feature_cache_gb=0.1))
    shown = next(path for path in tmp_path.rglob("*.png"))
    picture(99).save(shown)
    with pytest.raises(TrainingError, match="data was"):
        train(settings(model, data, out, max_steps=1, epochs=2, feature_cache_gb=0.1))


def test_a_run_can_go_on_from_a_published_draft(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    """Weights, vocabulary and requested branches are taken over, and the gate only for the same branches."""
    data, model = dialogues(8, pictures=True), tiny("llava")
    first = train(settings(model, data, tmp_path / "first", **compressing(lr=3e-3)))
    still = {"max_steps": 1, "lr": 1e-30, "draft_vocab": None, "init_draft": first}
    text_config = text_config_of(model)
    before = load_draft(first, text_config, attn_implementation="sdpa")
    assert before.compressor is not None

    train(settings(model, data, tmp_path / "same", **compressing(**still)))
    after = load_draft(tmp_path / "same" / "draft", text_config, attn_implementation="sdpa")
    assert after.compressor is not None
    assert after.vocabulary is not None
    assert after.vocabulary.tolist() == before.vocabulary.tolist()  # type: ignore[union-attr]
    assert same(dict(after.module.state_dict()), dict(before.module.state_dict()))
    assert same(dict(after.compressor.state_dict()), dict(before.compressor.state_dict()))

    train(settings(model, data, tmp_path / "other", **compressing("weight", **still)))
    other = load_draft(tmp_path / "other" / "draft", text_config, attn_implementation="sdpa").compressor
    assert other is not None
    conv, gate = "branches.conv.pointwise.weight", "gate.out.weight"
    assert torch.equal(other.state_dict()[conv], before.compressor.state_dict()[conv])
    assert not other.state_dict()[gate].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": "select", "branches": ["pool:5", "squeeze:3"]}, "squeeze"),
        ({"compressor": "select", "branches": ["pool:x"]}, "could not convert"),
        ({"compressor": "weight", "branches": ["pool:3", "prune:5"]}, "one ratio"),
    ],
)
def test_branches_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(settings(tiny("llava"), dialogues(2), tmp_path / "out", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": ["pool:5"]}, "need --compressor"),
        ({"compressor": "weight", "ratios": [3.0]}, "select only"),
        ({"compressor": "select", "ratios": [0.5]}, "at least 1"),
        ({"init_draft": "x", "draft_vocab": 5}, "brings its own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(model="m", data=[Path("d")], out=Path("o"), **changes)


def test_pruning_by_attention_is_refused_where_the_tower_has_no_class_token(
    tiny: Callable[..., Path], dialogues: Any, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"compressor": "select", "branches": ["pool:5", "prune_attention:5"]}
    with pytest.raises(TrainingError, match="needs the vision tower's attention scores"):
        train(settings(tiny("llama"), dialogues(2), tmp_path / "out", **asked))

"""The teacher gives what the target's own forward gives, however dialogues are packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlavaForConditionalGeneration

from processing.processor import Processor
from tests.models import FAMILIES, Family
from tests.training.conftest import text_record
from tests.training.test_acceptance import make_data, one_batch
from training.data import Data
from training.encode import Encoder
from training.index import build_index
from training.records import parse_record
from training.rows import whole_rows
from training.student import new_draft
from training.teacher import Teacher, stop_token_ids
from training.unroll import unrolled


def text_data(folder: Path, tmp_path: Path) -> Data:
    items = [parse_record(text_record(n, 2), tmp_path, f"here:{n}") for n in range(4)]
    encoder = Encoder(Processor.from_pretrained(str(folder)), stop_token_ids(folder), "assistant", 512)
    return Data(items, build_index(items, encoder, "key", tmp_path / "index", workers=0), encoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_may_start_as_the_targets_last_layer(family: Family, tiny: Callable[..., Path]) -> None:
    teacher = Teacher.load(tiny(family), "bfloat16", torch.device("cpu"))
    copied = new_draft(teacher.text_config, 0, teacher.last_layer).layer.state_dict()
    assert all(
        torch.equal(copied[name], value.float()) for name, value in teacher.last_layer.state_dict().items()
    )
    fresh = new_draft(teacher.text_config, 0, None).layer.state_dict()
    again = new_draft(teacher.text_config, 0, None).layer.state_dict()
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert not torch.equal(fresh["mlp.up_proj.weight"], copied["mlp.up_proj.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_each_dialogue_its_own_features(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny(family)
    data = (make_data if family == "llava" else text_data)(folder, tmp_path)
    teacher = Teacher.load(folder, "float32", torch.device("cpu"))
    batch = one_batch(data, [[0, 1], [2], [3]])
    features = teacher.features(teacher.embed(batch), batch.positions)
    model_class = LlavaForConditionalGeneration if family == "llava" else AutoModelForCausalLM
    model = model_class.from_pretrained(folder).eval()
    for row, number, example in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 0, 3)):
        prompt = data.encoder.prompt(data.items[example])
        own = batch.dialogues[row] == number
        assert batch.ids[row, own].tolist() == prompt.token_ids
        pixels = [torch.from_numpy(image.tensors["pixel_values"]) for image in prompt.images]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([prompt.token_ids]),
                **({"pixel_values": torch.cat(pixels)} if pixels else {}),
            ).logits[0]
        assert torch.allclose(teacher.head(None)(features[row, own]), logits, atol=1e-3)
        rows = torch.tensor([5, 9, 200])
        assert torch.equal(teacher.head(rows).weight, model.get_output_embeddings().weight[rows])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_packed_rows_give_each_dialogue_the_positions_of_its_pictures(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Positions have three axes, and the tower's early features must be at the right tokens.

    Both are checked for what the draft learns from, and for its own layer.
    """
    folder = tiny(family)
    data, teacher = make_data(folder, tmp_path), Teacher.load(folder, "float32", torch.device("cpu"))
    batch = one_batch(data, [[1, 3], [0], [2, 1]])
    seen = teacher.see(batch)
    draft = new_draft(teacher.text_config, 0, teacher.last_layer)
    rows = whole_rows(draft, seen.embeddings, seen.features, seen.positions, batch.dialogues)
    *_, states = unrolled(draft, rows, 2)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for row, number, example in ((0, 0, 1), (0, 1, 3), (1, 0, 0), (2, 0, 2), (2, 1, 1)):
        prompt = data.encoder.prompt(data.items[example])
        own = batch.dialogues[row] == number
        ids = torch.tensor([prompt.token_ids])
        kinds = (ids == model.config.image_token_id).int()
        given = {
            name: torch.from_numpy(np.concatenate([image.tensors[name] for image in prompt.images]))
            for name in (prompt.images[0].tensors if prompt.images else ())
        }
        positions, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=given.get("image_grid_thw"))
        assert torch.equal(seen.positions[:, row, own], positions[:, 0])
        with torch.no_grad():
            truth = model.model(input_ids=ids, mm_token_type_ids=kinds, **given).last_hidden_state
        torch.testing.assert_close(seen.features[row, own], truth[0], rtol=1e-3, atol=1e-3)
        embeddings, one = seen.embeddings[row, own][None], torch.zeros_like(ids)
        *_, alone = unrolled(draft, whole_rows(draft, embeddings, truth, positions, one), 2)
        torch.testing.assert_close(states[row, own], alone[0], rtol=1e-3, atol=1e-3)


def test_pictures_have_the_attention_of_the_towers_class_token(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny("llava")
    data, teacher = make_data(folder, tmp_path), Teacher.load(folder, "float32", torch.device("cpu"))
    batch = one_batch(data, [[0, 1], [3]])
    scores = teacher.see(batch).scores
    assert scores is not None
    tower = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    pixels = torch.cat([torch.from_numpy(image.tensors["pixel_values"]) for image in batch.images])
    with torch.no_grad():
        last = tower.model.vision_tower(pixels, output_attentions=True).attentions[-1]
    told = scores.flatten()[batch.image_slots].view(len(pixels), -1)
    torch.testing.assert_close(told, last[:, :, 0, 1:].mean(1))
    text = torch.ones(scores.numel(), dtype=torch.bool).index_fill(0, batch.image_slots, False)
    assert not scores.flatten()[text].any()

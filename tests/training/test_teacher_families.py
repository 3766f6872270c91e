"""The teacher sees pictures as the target of each family does, however dialogues are packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from engine.errors import ModelLoadError
from tests.models import Family
from tests.training.test_acceptance import make_data, one_batch
from training.teacher import Teacher


@pytest.mark.parametrize(
    "family",
    [
        "llava_siglip",
        "llava_full",
        "llava_next",
        "llava_onevision",
        "idefics3",
        "smolvlm",
        "internvl",
        "mistral3",
    ],
)
def test_packed_rows_give_each_dialogue_its_own_features(
    family: Family, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny(family)
    data, teacher = make_data(folder, tmp_path), Teacher.load(folder, "float32", torch.device("cpu"))
    batch = one_batch(data, [[1, 3], [0], [2]])
    seen = teacher.see(batch)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for row, number, example in ((0, 0, 1), (0, 1, 3), (1, 0, 0), (2, 0, 2)):
        prompt = data.encoder.prompt(data.items[example])
        own = batch.dialogues[row] == number
        given = {}
        for image in prompt.images:  # one at most
            given = {name: torch.from_numpy(array) for name, array in image.tensors.items()}
        if given and family in ("idefics3", "smolvlm"):
            given["pixel_values"] = given["pixel_values"].unsqueeze(0)  # of one chat
        with torch.no_grad():
            output = model(input_ids=torch.tensor([prompt.token_ids]), output_hidden_states=True, **given)
        truth = output.hidden_states[-1][0]
        torch.testing.assert_close(seen.features[row, own], truth, rtol=1e-3, atol=1e-3)
        logits = teacher.head(None)(seen.features[row, own])
        torch.testing.assert_close(logits, output.logits[0], rtol=1e-3, atol=1e-3)


def test_a_family_whose_pictures_are_seen_in_both_directions_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ModelLoadError, match="training a draft for gemma3"):
        Teacher.load(tiny("gemma3"), "float32", torch.device("cpu"))

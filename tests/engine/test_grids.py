"""The grids that visual tokens lie in, by family: wrong ones would show in no output, only in acceptance."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressors.base import Picture
from compressors.elastic import TRAINING_FREE, training_free
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.errors import PromptError
from processing.prompt import ImageInput
from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden
from tests.golden.speculating import asking, plain_core, run_all, target_of
from tests.golden.test_families import PICTURE_FAMILIES, SMALL, TALL, WIDE
from tests.models import IMAGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE, Family, picture

ANY_SIZE = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("llava_next", "llava_onevision")


@pytest.mark.parametrize("family", ["llava", *PICTURE_FAMILIES])
def test_every_visual_token_is_in_a_grid(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    adapter = target_of(golden.folder)[0].adapter
    for shown in ([SMALL], [WIDE], [TALL], [TALL, WIDE]):
        for image in golden.prompt("What?", shown).images:
            grids = adapter.grids(image)
            assert sum(rows * columns for rows, columns in grids) == image.num_tokens
            assert grids != ((1, image.num_tokens),), "nothing is known of this picture"
            if family in ANY_SIZE and shown == [WIDE]:
                assert grids[0][1] > grids[0][0], "rows and columns are mixed up"


@pytest.mark.parametrize("family", TILED)
@pytest.mark.parametrize("size", [(90, 31), (33, 70), (24, 30), (120, 120)])
def test_the_newline_of_each_row_is_in_the_last_column(
    family: Family, size: tuple[int, int], tiny: BuildCheckpoint
) -> None:
    golden = load_golden(tiny(family))
    target, _ = target_of(golden.folder)
    (image,) = golden.prompt("What?", [(7, size)]).images
    whole, tiles = target.adapter.grids(image)
    (encoded,) = target.encode_images([image])
    last = encoded.values[math.prod(whole) :].view(*tiles, -1)[:, -1]
    assert (last == golden.model.model.image_newline).all()


@pytest.mark.parametrize(
    ("family", "before"), [("llava", ()), ("llava_siglip", ()), ("llava_full", ((1, 1),))]
)
def test_a_class_token_is_a_grid_of_its_own(family: Family, before: Any, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    (image,) = golden.prompt("What?", [SMALL]).images
    side = IMAGE_SIZE // PATCH_SIZE
    assert target_of(golden.folder)[0].adapter.grids(image) == (*before, (side, side))


def test_tokens_that_fit_no_grid_are_one_row(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("internvl"))
    (image,) = golden.prompt("What?", [SMALL]).images
    odd = ImageInput(hash=b"", spans=[(0, image.num_tokens - 1)], tensors=image.tensors)
    assert target_of(golden.folder)[0].adapter.grids(odd) == ((1, image.num_tokens - 1),)


def test_a_square_without_its_first_patch_is_one_row(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    """ "default" leaves out the first feature, which is a patch where the tower has no class token."""
    folder = shutil.copytree(tiny("llava_siglip"), tmp_path / "default")
    for name in ("config.json", "processor_config.json"):
        told = json.loads((folder / name).read_text())
        told["vision_feature_select_strategy"] = "default"
        (folder / name).write_text(json.dumps(told))
    golden = load_golden(folder)
    prompt = golden.prompt("What?", [SMALL])
    (image,) = prompt.images
    assert image.num_tokens == TOKENS_PER_IMAGE - 1
    assert target_of(folder)[0].adapter.grids(image) == ((1, image.num_tokens),)
    story = run_all(plain_core(golden), [(0, asking("a", prompt, max_tokens=8))])["a"]
    golden.compare(story.token_ids, prompt, 8, "without the first patch")


@pytest.mark.parametrize("family", ["llava", *PICTURE_FAMILIES])
@pytest.mark.parametrize("size", [(200, 1), (1, 200)])
def test_strips_have_grids_that_can_be_compressed(
    family: Family, size: tuple[int, int], tiny: BuildCheckpoint
) -> None:
    """LLaVA-NeXT takes the padding off its tiles: of a wide strip nothing is left but the whole picture."""
    golden = load_golden(tiny(family))
    chat = [ChatMessage("user", [ImagePart(picture(7, size)), TextPart("What?")])]
    if family == "mistral3":  # the tiny one makes a side of 0 pixels of it
        with pytest.raises(PromptError, match="image processor refuses"):
            golden.ours.apply(chat)
        return
    (image,) = golden.ours.apply(chat).images
    grids = target_of(golden.folder)[0].adapter.grids(image)
    assert all(rows and columns for rows, columns in grids)
    assert sum(rows * columns for rows, columns in grids) == image.num_tokens
    shape = Picture(grids, b"")
    for name in TRAINING_FREE:
        for ratio in (1, 5):
            assert training_free(name, ratio).num_kept(shape) <= image.num_tokens

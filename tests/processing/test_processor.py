"""Prompts against transformers' own ``apply_chat_template(tokenize=True)``, and pictures in them."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from processing.chat import ChatMessage, ImagePart, TextPart
from processing.errors import PromptError, UnsupportedModelError
from processing.pictures import picture_hash, split_features, split_runs, to_rgb
from processing.processor import Processor
from tests.conftest import BuildCheckpoint
from tests.models import IMAGE_SIZE, TOKENS_PER_IMAGE, picture
from tests.processing.samples import HARD_TEXTS, KINDS, Kind, fast_tokenizer

STRING_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAVA_15_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def llava(tiny: BuildCheckpoint) -> Processor:
    return Processor.from_pretrained(str(tiny("llava")))


def text_processor(folder: Path, kind: Kind, template: str | None) -> tuple[Processor, Any]:
    tokenizer = fast_tokenizer(kind, template)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": [2, 7]}')
    return Processor.from_pretrained(str(folder)), AutoProcessor.from_pretrained(folder)


def as_transformers(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    def part(p: Any) -> dict[str, Any]:
        return (
            {"type": "image", "image": p.image}
            if isinstance(p, ImagePart)
            else {"type": "text", "text": p.text}
        )

    return [
        {
            "role": m.role,
            "content": m.content if isinstance(m.content, str) else [part(p) for p in m.content or []],
        }
        | m.extra
        for m in messages
    ]


def chat_with(*pictures: Image.Image, text: str = "What is in this picture?") -> list[ChatMessage]:
    parts = list(itertools.chain.from_iterable((ImagePart(p), TextPart(text)) for p in pictures))
    return [ChatMessage("system", "Be brief."), ChatMessage("user", parts)]


@pytest.mark.parametrize("template", [None, LLAVA_15_TEMPLATE], ids=["own", "llava-1.5"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("generate", [True, False])
def test_a_chat_with_pictures_equals_transformers(
    tiny: BuildCheckpoint, template: str | None, count: int, generate: bool
) -> None:
    folder = str(tiny("llava"))
    ours = Processor.from_pretrained(folder, chat_template=template)
    theirs = AutoProcessor.from_pretrained(folder)
    messages = chat_with(*(picture(i, (40 + i, 30)) for i in range(count)))
    if template:  # this one knows only lists of parts
        messages = [ChatMessage(m.role, m.parts) for m in messages]
    wanted = theirs.apply_chat_template(
        as_transformers(messages),
        chat_template=template,
        add_generation_prompt=generate,
        tokenize=True,
        return_dict=True,
    )
    prompt = ours.apply(messages, add_generation_prompt=generate)
    assert prompt.token_ids == wanted["input_ids"][0]
    for index, image in enumerate(prompt.images):
        assert image.num_tokens == TOKENS_PER_IMAGE
        pixels = image.tensors["pixel_values"]
        assert (pixels.shape, pixels.dtype) == ((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        np.testing.assert_array_equal(pixels[0], wanted["pixel_values"][index])
    covered = [i for image in prompt.images for offset, n in image.spans for i in range(offset, offset + n)]
    assert covered == [i for i, t in enumerate(prompt.token_ids) if t == ours.image_token_id]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_text_chats_equal_transformers(kind: Kind, text: str, tmp_path: Path) -> None:
    ours, theirs = text_processor(tmp_path, kind, STRING_TEMPLATE)
    messages = [
        ChatMessage("user", text),
        ChatMessage("assistant", "Yes <- no > [x] |"),
        ChatMessage("user", text + " <"),
    ]
    wanted = theirs.apply_chat_template(as_transformers(messages), add_generation_prompt=True)["input_ids"]
    assert ours.apply(messages).token_ids == wanted


@given(texts=st.lists(st.text(alphabet="ab <>|_im \n\u0301\U000f0000é", max_size=12), min_size=1, max_size=4))
def test_arbitrary_text_equals_transformers(
    llava: Processor, texts: list[str], tiny: BuildCheckpoint
) -> None:
    theirs = AutoProcessor.from_pretrained(tiny("llava")).tokenizer
    messages = [ChatMessage("user", [TextPart(text) for text in texts])]
    wanted = theirs.apply_chat_template(as_transformers(messages), add_generation_prompt=True)["input_ids"]
    assert llava.apply(messages).token_ids == wanted


def test_bos_is_written_once(llava: Processor) -> None:
    ids = llava.apply(chat_with(picture(0))).token_ids
    bos = llava.encode("<s>", add_special_tokens=False)
    assert ids[:1] == bos
    assert ids.count(bos[0]) == 1


def test_runs_in_many_threads_at_once(llava: Processor) -> None:
    chats = [chat_with(picture(i), text=f"number {i} <|im_end|> <image>") for i in range(8)]
    alone = [llava.apply(chat) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(llava.apply, chats * 6))
    for prompt, wanted in zip(together, alone * 6, strict=True):
        assert prompt.token_ids == wanted.token_ids
        assert [i.hash for i in prompt.images] == [i.hash for i in wanted.images]


def test_other_threads_run_while_a_long_prompt_is_tokenised(llava: Processor) -> None:
    text = " ".join(map(str, range(500_000)))
    begin = last = time.monotonic()
    pause = 0.0
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(llava.encode, text)
        while not work.done():
            time.sleep(0.002)
            pause, last = max(pause, time.monotonic() - last), time.monotonic()
    took = time.monotonic() - begin
    assert took > 0.2  # long enough for a held interpreter to show
    assert pause < took / 2


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (3, 3), (2000, 10)])
def test_tiny_and_narrow_pictures_work(llava: Processor, size: tuple[int, int]) -> None:
    (image,) = llava.apply(chat_with(Image.new("RGB", size, "red"))).images
    assert image.tensors["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert image.num_tokens == TOKENS_PER_IMAGE


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (0, 5)])
def test_pictures_without_a_sensible_shape_are_refused(llava: Processor, size: tuple[int, int]) -> None:
    with pytest.raises(PromptError, match=f"{size[0]} x {size[1]}"):
        llava.apply(chat_with(Image.new("RGB", size)))


def test_pictures_and_places_must_agree(tiny: BuildCheckpoint) -> None:
    drops = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    processor = Processor.from_pretrained(str(tiny("llava")), chat_template=drops)
    with pytest.raises(PromptError, match="1 images, but the chat template has 0 places"):
        processor.apply([ChatMessage("user", [ImagePart(picture(0)), TextPart("x")])])
    strings_only = Processor.from_pretrained(str(tiny("llava")), chat_template=STRING_TEMPLATE)
    with pytest.raises(PromptError, match="takes no images in user messages"):
        strings_only.apply(chat_with(picture(0)))


def test_text_models(tmp_path: Path) -> None:
    ours, theirs = text_processor(tmp_path, "byte_level", STRING_TEMPLATE)
    assert not ours.supports_images
    assert ours.vocab_size == len(theirs)
    parts = [ChatMessage("user", [TextPart("one"), TextPart("two")])]
    assert ours.apply(parts).token_ids == ours.apply([ChatMessage("user", "one\ntwo")]).token_ids
    with pytest.raises(PromptError, match="no images"):
        ours.apply(chat_with(picture(0)))
    assert ours.decode(ours.encode("The fox <|im_end|>")) == "The fox "
    assert ours.encode("<s>a") == [*ours.encode("", True), *ours.encode("<s>a", False)]


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    ours, _ = text_processor(tmp_path, "byte_level", None)
    with pytest.raises(PromptError, match="no chat template"):
        ours.apply([ChatMessage("user", "hi")])


def test_the_template_can_be_a_file_and_a_wrong_path_is_named(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0]['content'] }}!")
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=str(file))
    assert processor.decode(processor.apply([ChatMessage("user", "hi")]).token_ids) == "hi!"
    with pytest.raises(ValueError, match=r"chat template is invalid, line 2: .*endfr"):
        Processor.from_pretrained(str(tiny("llama")), chat_template="{% for m in messages %}\n{% endfr %}")
    with pytest.raises(ValueError, match=r"missing\.jinja"):
        Processor.from_pretrained(str(tiny("llama")), chat_template="missing.jinja")


def test_what_a_template_raises_is_told(tiny: BuildCheckpoint) -> None:
    def processor(template: str) -> Processor:
        return Processor.from_pretrained(str(tiny("llama")), chat_template=template)

    with pytest.raises(PromptError, match="roles must alternate"):
        processor("{{ raise_exception('roles must alternate') }}").apply([ChatMessage("user", "hi")])
    with pytest.raises(PromptError, match="cannot render") as caught:
        processor("{{ 1 + messages[0]['content'] }}").apply([ChatMessage("user", "hi")])
    assert "unsupported operand" not in str(caught.value)
    with pytest.raises(PromptError, match="at least one"):
        processor("{{ 1 }}").apply([])
    with pytest.raises(PromptError, match="tokenize"):
        processor("{{ 1 }}").apply([ChatMessage("user", "hi")], template_kwargs={"tokenize": True})


class TestHash:
    def of(self, llava: Processor, image: Image.Image) -> bytes:
        (found,) = llava.apply(chat_with(image)).images
        assert len(found.hash) == 32
        return found.hash

    def test_same_picture_same_hash(self, llava: Processor, tmp_path: Path) -> None:
        picture(1).save(tmp_path / "a.png")
        loaded = [Image.open(tmp_path / "a.png") for _ in range(2)]
        assert self.of(llava, loaded[0]) == self.of(llava, loaded[1]) == self.of(llava, picture(1))

    def test_same_bytes_of_another_size_or_mode_or_palette_differ(self, llava: Processor) -> None:
        data = np.random.default_rng(0).integers(0, 256, 3072, dtype=np.uint8).tobytes()
        pictures = [
            Image.frombytes("RGB", (32, 32), data),
            Image.frombytes("RGB", (64, 16), data),
            Image.frombytes("L", (64, 48), data),
            Image.frombytes("CMYK", (32, 24), data),
            Image.frombytes("P", (64, 48), data),
            Image.frombytes("P", (64, 48), data),
        ]
        pictures[4].putpalette(list(range(256)) * 3)
        pictures[5].putpalette(list(range(255, -1, -1)) * 3)
        assert len({self.of(llava, image) for image in pictures}) == len(pictures)

    def test_options_of_the_processor_count(self) -> None:
        tensors = {"pixel_values": np.zeros((1, 3, 2, 2), np.float32)}
        assert picture_hash(tensors, b"one") != picture_hash(tensors, b"two")

    def test_fields_are_framed(self) -> None:
        def array(*shape: int, dtype: type = np.float32) -> np.ndarray:
            return np.zeros(shape, dtype)

        variants: list[dict[str, np.ndarray]] = [
            {"a": array(2, 3)},
            {"a": array(3, 2)},
            {"b": array(2, 3)},
            {"a": array(2, 3, dtype=np.int32)},
            {"a": array(2, 0)},
            {"a": array(0, 2)},
            {"a": array(1, 3), "b": array(1, 3)},
        ]
        assert len({picture_hash(tensors, b"") for tensors in variants}) == len(variants)


class TestColours:
    def test_transparency_is_laid_on_white(self) -> None:
        assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
        assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
        palette = Image.new("P", (1, 1), 0)
        palette.putpalette([10, 20, 30])
        assert to_rgb(palette).getpixel((0, 0)) == (10, 20, 30)
        palette.info["transparency"] = 0
        assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)

    def test_sixteen_bits_are_scaled_and_not_clipped(self) -> None:
        grey = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
        assert [to_rgb(grey).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_features_are_split_by_picture() -> None:
    stacked = split_features({"pixel_values": [np.zeros((3, 2, 2), np.float64), np.ones((3, 4, 4))]}, 2)
    assert [t["pixel_values"].shape for t in stacked] == [(1, 3, 2, 2), (1, 3, 4, 4)]
    assert stacked[0]["pixel_values"].dtype == np.float32
    grids = np.array([[1, 2, 2], [1, 4, 2]])
    patches = split_features({"pixel_values": np.arange(12.0)[:, None], "image_grid_thw": grids}, 2)
    assert [t["pixel_values"].ravel().tolist() for t in patches] == [[0, 1, 2, 3], list(range(4, 12))]
    assert patches[1]["image_grid_thw"].tolist() == [[1, 4, 2]]
    with pytest.raises(UnsupportedModelError, match="3"):
        split_features({"pixel_values": np.zeros((3, 1))}, 2)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=4))
def test_runs_cover_their_positions(lengths: list[list[int]]) -> None:
    position, runs, positions = 0, [], []
    for own in lengths:
        runs.append([])
        for length in own:
            runs[-1].append((position, length))
            positions += range(position, position + length)
            position += length + 1
    assert split_runs(positions, [sum(own) for own in lengths]) == runs


def test_pixtrals_rows_end_with_a_break_and_the_last_one_with_an_end(tiny: BuildCheckpoint) -> None:
    """What transformers' own class writes, which needs torchvision: rows of the picture's size in tokens."""
    processor = Processor.from_pretrained(str(tiny("mistral3")))
    wide, small = processor.apply(chat_with(picture(0, (80, 30)), picture(1, (20, 12)))).images
    names = {name: processor.encode(name, False)[0] for name in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")}
    token_ids = processor.apply(chat_with(picture(0, (80, 30)))).token_ids
    kept = "".join({v: k[1:-1] + " " for k, v in names.items()}.get(token, "") for token in token_ids)
    assert kept == "IMG IMG IMG IMG IMG IMG IMG_BREAK " * 2 + "IMG IMG IMG IMG IMG IMG IMG_END "
    assert [length for _, length in wide.spans] == [6, 6, 6]
    assert wide.tensors["pixel_values"].shape == (1, 3, 42, 84)
    assert small.tensors["pixel_values"].shape == (1, 3, 14, 28)

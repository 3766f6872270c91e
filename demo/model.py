"""The architecture of the demo model: a CLIP vision tower, LLaVA's projector and SmolLM2.

Knows the modules and their configuration, but not data, losses or the location of files.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from demo.attention import NAME

IMAGE_SIZE, PATCH_SIZE = 240, 24
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGE_TOKEN_ID, IMAGE_TOKEN = 16, "<image>"
MEAN = STD = (0.5, 0.5, 0.5)
LORA_RANK = 16
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def vision_config(**overrides: Any) -> CLIPVisionConfig:
    """Return the configuration of the tower: 7 layers of width 256, 100 patches of 24 x 24 pixels."""
    settings = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    return CLIPVisionConfig(**(settings | overrides))


def llava_config(text: LlamaConfig, vision: CLIPVisionConfig) -> LlavaConfig:
    """Return the configuration of the assembled model."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=2,
    )


class PatchEmbedding(nn.Module):
    """CLIP's patch convolution as one matrix product (its backward pass is ten times faster on a CPU)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight = conv.weight

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels [B, 3, H, W] as [B, C, H / P, W / P]."""
        size = self.weight.shape[-1]
        batch, channels, height, width = pixels.shape
        rows, columns = height // size, width // size
        patches = pixels.view(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        flat = patches.reshape(batch, rows * columns, channels * size * size)
        embedded = nn.functional.linear(flat, self.weight.flatten(1))
        return embedded.transpose(1, 2).reshape(batch, -1, rows, columns)


class Eyes(nn.Module):
    """Tower and projector in training, mapping pixels to visual tokens."""

    def __init__(self, text: LlamaConfig, vision: CLIPVisionConfig | None = None):
        super().__init__()
        vision = vision or vision_config()
        self.config = llava_config(deepcopy(text), vision)  # a copy: this resets the attention implementation
        self.vision_tower = CLIPVisionModel._from_config(vision, attn_implementation=NAME)
        embeddings = self.vision_tower.embeddings
        embeddings.patch_embedding = PatchEmbedding(embeddings.patch_embedding)
        self.multi_modal_projector = LlavaMultiModalProjector(self.config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, 3, 240, 240] in -1..1 to visual tokens [B, 100, text width]."""
        states = self.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        return self.multi_modal_projector(states[:, 1:])


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank delta ``up(down(x))``."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        self.base = base
        down = torch.empty(rank, base.in_features).normal_(0, base.in_features**-0.5, generator=generator)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.down.to(x.dtype))
        return self.base(x) + nn.functional.linear(low, self.up.to(x.dtype))


def add_lora(model: nn.Module, rank: int = LORA_RANK, seed: int = 0) -> dict[str, LoraLinear]:
    """Wrap every target linear layer of a Llama ``model`` in place; return the wrappers by layer name."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] in LORA_TARGETS and isinstance(module, nn.Linear):
            parent, leaf = model.get_submodule(name.rsplit(".", 1)[0]), name.rsplit(".", 1)[1]
            found[name] = LoraLinear(module, rank, generator)
            setattr(parent, leaf, found[name])
    return found


def tokens_with_offsets(folder: Path) -> "Any":
    """Return a cached function from text to [(token id, first char, last char)].

    A text of several words is encoded with a leading space, so that each word is tokenized as inside a
    sentence.
    """
    from functools import lru_cache

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @lru_cache(maxsize=200_000)
    def tokens(text: str) -> list[tuple[int, int, int]]:
        encoded = tokenizer.encode(" " + text if " " in text else text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(encoded.ids, encoded.offsets, strict=True)]

    return tokens

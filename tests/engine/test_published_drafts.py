"""Drafts in EAGLE-1/2's and EAGLE-3's published layouts: the numbers of a plain forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.draft.eagle import EagleDraft
from engine.draft.files import DraftConfig, save_draft
from engine.draft.published import LoadedDraft
from tests.engine import published_layouts as layouts
from tests.engine.published_layouts import CONFIG, HIDDEN, MROPE_SECTION, VOCAB, Tensors, write
from tests.engine.published_targets import EAGLE3_CONFIG, TOKEN_IDS, load, target

NEAR = {"rtol": 1e-5, "atol": 1e-5}


def inputs(width: int, count: int = 9) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(7)
    return torch.randn(count, width, generator=noise), torch.randn(count, HIDDEN, generator=noise)


@torch.no_grad()
def run(draft: LoadedDraft, states: Tensor, embeddings: Tensor, positions: Tensor) -> Tensor:
    return draft.module(states[None], embeddings[None], positions.unsqueeze(-2))[0]


def plain_logits(
    w: Tensors, prefix: str, features: Tensor, embeddings: Tensor, angles: Tensor
) -> list[Tensor]:
    """Of two steps: the second takes the states of the first where features were."""
    states = features @ w["fc.weight"].T
    made = []
    for _ in range(2):
        states = layouts.plain_eagle3(w, prefix, states, embeddings, angles)
        made.append(layouts.plain_head(w, states))
    return made


@torch.no_grad()
def our_logits(draft: LoadedDraft, features: Tensor, embeddings: Tensor, positions: Tensor) -> list[Tensor]:
    assert draft.head_weight is not None
    states = draft.module.fuse(features)
    made = []
    for _ in range(2):
        states = run(draft, states, embeddings, positions)
        made.append(draft.module.read_out(states) @ draft.head_weight.T)
    return made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("binary", [False, True])
def test_eagle2_gives_the_plain_numbers(
    kind: str, bias: bool, qkv_bias: bool, binary: bool, tmp_path: Path
) -> None:
    tensors = layouts.eagle2(bias=bias, qkv_bias=qkv_bias)
    folder = write(tmp_path, tensors, CONFIG if bias else {**CONFIG, "bias": False}, binary=binary)
    draft = load(folder, target(kind))
    features, embeddings = inputs(HIDDEN)
    positions = torch.arange(9)
    expected = layouts.plain_eagle2(tensors, features, embeddings, layouts.angles_of(positions))
    assert (draft.vocabulary, draft.head_weight, draft.feature_layers) == (None, None, None)
    assert draft.module.feature_size == HIDDEN
    states = draft.module.fuse(features)
    torch.testing.assert_close(
        draft.module.read_out(run(draft, states, embeddings, positions)), expected, **NEAR
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("prefix", ["midlayer.", "layers.0."])
@pytest.mark.parametrize("heads", [(4, 2), (8, 1)])
def test_eagle3_gives_the_plain_numbers(
    kind: str, prefix: str, heads: tuple[int, int], tmp_path: Path
) -> None:
    tensors = layouts.eagle3(TOKEN_IDS, prefix=prefix, heads=heads[0], kv_heads=heads[1])
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 8}
    draft = load(write(tmp_path, tensors, {**EAGLE3_CONFIG, **sizes}), target(kind))
    features, embeddings = inputs(3 * HIDDEN)
    positions = torch.arange(9) + 5
    expected = plain_logits(tensors, prefix, features, embeddings, layouts.angles_of(positions))
    assert draft.module.feature_size == 3 * HIDDEN
    for ours, plain in zip(our_logits(draft, features, embeddings, positions), expected, strict=True):
        torch.testing.assert_close(ours, plain, **NEAR)
    assert draft.vocabulary is not None
    assert draft.vocabulary.tolist() == TOKEN_IDS.tolist()
    assert draft.feature_layers == (2, 6, 9)
    shape = (draft.module.config.num_key_value_heads, draft.module.config.head_dim)
    assert shape == (heads[1], 8), "the draft's own KV is sized by its own config"


@pytest.mark.parametrize("stated", [True, False])
def test_positions_of_three_axes_turn_by_section(stated: bool, tmp_path: Path) -> None:
    tensors = layouts.eagle3(TOKEN_IDS)
    scaling = {"type": "mrope", "mrope_section": MROPE_SECTION} if stated else None
    of_target = {"type": "mrope", "mrope_section": [4, 2, 2] if stated else MROPE_SECTION}
    folder = write(tmp_path, tensors, {**EAGLE3_CONFIG, "rope_scaling": scaling})
    draft = load(folder, target("qwen2_5_vl", rope_scaling=of_target))
    features, embeddings = inputs(3 * HIDDEN)
    positions = torch.tensor(
        [[0, 1, 2, 2, 2, 2, 4, 5, 6], [0, 1, 2, 2, 3, 3, 4, 5, 6], [0, 1, 2, 3, 2, 3, 4, 5, 6]]
    )
    expected = plain_logits(tensors, "midlayer.", features, embeddings, layouts.angles_of(positions))
    for ours, plain in zip(our_logits(draft, features, embeddings, positions), expected, strict=True):
        torch.testing.assert_close(ours, plain, **NEAR)


def test_norm_before_residual_is_heard(tmp_path: Path) -> None:
    tensors = layouts.eagle3(TOKEN_IDS)
    draft = load(write(tmp_path, tensors, {**EAGLE3_CONFIG, "norm_before_residual": True}))
    states, embeddings = inputs(HIDDEN)
    angles = layouts.angles_of(torch.arange(9))
    expected = layouts.plain_eagle3(tensors, "midlayer.", states, embeddings, angles, normed_residual=True)
    torch.testing.assert_close(run(draft, states, embeddings, torch.arange(9)), expected, **NEAR)


def test_without_a_rotary_base_it_is_ten_thousand_whatever_the_target_has(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if not name.startswith("rope")}
    tensors = layouts.eagle2()
    draft = load(write(tmp_path, tensors, config))
    features, embeddings = inputs(HIDDEN)
    angles = layouts.angles_of(torch.arange(9), theta=10000.0)
    expected = layouts.plain_eagle2(tensors, features, embeddings, angles)
    torch.testing.assert_close(run(draft, features, embeddings, torch.arange(9)), expected, **NEAR)


def test_linear_rotary_scaling_divides_positions(tmp_path: Path) -> None:
    tensors = layouts.eagle2()
    config = {**CONFIG, "rope_scaling": {"type": "linear", "factor": 4.0}}
    draft = load(write(tmp_path, tensors, config))
    features, embeddings = inputs(HIDDEN)
    expected = layouts.plain_eagle2(tensors, features, embeddings, layouts.angles_of(torch.arange(9) / 4))
    torch.testing.assert_close(run(draft, features, embeddings, torch.arange(9)), expected, **NEAR)


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}}, (2, 6, 9)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 5, 12]}, (0, 5, 12)),
        ({"eagle_config": {"use_aux_hidden_state": True}}, (2, 6, 9)),
    ],
)
def test_tapped_layers(said: dict[str, Any], layers: tuple[int, ...], tmp_path: Path) -> None:
    draft = load(write(tmp_path, layouts.eagle3(TOKEN_IDS), {**EAGLE3_CONFIG, **said}))
    assert draft.feature_layers == layers


def test_as_many_features_as_tapped_layers(tmp_path: Path) -> None:
    tensors = layouts.eagle3(TOKEN_IDS) | {"fc.weight": torch.zeros(HIDDEN, 2 * HIDDEN)}
    config = {**EAGLE3_CONFIG, "eagle_aux_hidden_state_layer_ids": [3, 9]}
    assert load(write(tmp_path, tensors, config)).module.feature_size == 2 * HIDDEN


def test_a_draft_of_the_whole_vocabulary_may_leave_its_head_to_the_target(tmp_path: Path) -> None:
    tensors = layouts.eagle3(TOKEN_IDS)
    for name in ("lm_head.weight", "d2t", "t2d"):
        del tensors[name]
    draft = load(write(tmp_path, tensors, CONFIG))
    assert (draft.vocabulary, draft.head_weight) == (None, None)


def test_half_precision_files_and_targets_give_float32_drafts_with_the_targets_embeddings(
    tmp_path: Path,
) -> None:
    tensors = {name: value.half() for name, value in layouts.eagle2().items()}
    tensors["embed_tokens.weight"] = torch.zeros(VOCAB - 3, HIDDEN).half()  # before it was padded
    draft = load(write(tmp_path, tensors, CONFIG), target(dtype="bfloat16"))
    assert {value.dtype for value in draft.module.parameters()} == {torch.float32}
    features, embeddings = inputs(HIDDEN)
    angles = layouts.angles_of(torch.arange(9))
    expected = layouts.plain_eagle2({n: t.float() for n, t in tensors.items()}, features, embeddings, angles)
    torch.testing.assert_close(run(draft, features, embeddings, torch.arange(9)), expected, **NEAR)


def test_our_own_format_is_known_by_its_config(tmp_path: Path) -> None:
    text_config = target()
    draft = EagleDraft(text_config, attn_implementation="sdpa")
    for value in draft.parameters():
        value.data.normal_(generator=torch.Generator().manual_seed(1))
    config = DraftConfig(target="t", target_fingerprint="f", model_type="llama", hidden_size=HIDDEN)
    save_draft(tmp_path, draft, config, TOKEN_IDS)
    loaded = load(tmp_path, text_config)
    assert loaded.config == config
    assert loaded.vocabulary is not None
    assert loaded.vocabulary.tolist() == TOKEN_IDS.tolist()
    assert (loaded.head_weight, loaded.feature_layers) == (None, None)

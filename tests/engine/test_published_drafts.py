"""Drafts in EAGLE-1/2's and EAGLE-3's published layouts: the numbers of a plain forward, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from engine.draft_files import DraftConfig, save_draft
from engine.eagle import EagleDraft
from engine.errors import ModelLoadError
from engine.published import LoadedDraft, load_any_draft
from tests.engine import published_layouts as layouts
from tests.engine.published_layouts import CONFIG, HIDDEN, MROPE_SECTION, VOCAB, Tensors, write

NUM_LAYERS = 12
TOKEN_IDS = torch.tensor([0, 3, 4, 7, 11, 12, 25, 39])
EAGLE3_CONFIG = {**CONFIG, "draft_vocab_size": len(TOKEN_IDS)}
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def target(kind: str = "llama", **changes: Any) -> Any:
    """A target that differs from the drafts in all that may differ: rotary base, eps, heads, MLP."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 56,
        "rms_norm_eps": 1e-6,
        "rope_theta": 9e5,
    }
    kinds = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "qwen2_5_vl": Qwen2_5_VLTextConfig,
        "gemma2": Gemma2Config,
    }
    if kind == "qwen2_5_vl":
        sizes["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 2, 2]}
    return kinds[kind](**sizes | changes)


def load(folder: Path, text_config: Any = None) -> LoadedDraft:
    return load_any_draft(folder, text_config or target(), attn_implementation="sdpa")


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
    tensors["embed_tokens.weight"] = torch.zeros(VOCAB, HIDDEN).half()
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


Change = Callable[[Tensors], Any]


def shifted(offset: int) -> Change:
    def change(tensors: Tensors) -> None:
        tensors["d2t"][-1] += offset

    return change


MALFORMED_TENSORS: list[tuple[str, Change, list[str]]] = [
    (
        "eagle2",
        lambda t: t.pop("layers.0.self_attn.v_proj.weight"),
        ["missing", "layers.0.self_attn.v_proj.weight"],
    ),
    ("eagle2", lambda t: t.pop("fc.bias"), ["missing ['fc.bias']"]),
    (
        "eagle2",
        lambda t: t.update({"layers.0.input_layernorm.weight": torch.ones(HIDDEN)}),
        ["unknown", "input_lay"],
    ),
    (
        "eagle2",
        lambda t: t.update({"layers.1.mlp.up_proj.weight": torch.ones(1)}),
        ["unknown", "layers.1.mlp"],
    ),
    (
        "eagle2",
        lambda t: t.update({"layers.0.self_attn.q_proj.bias": torch.ones(32)}),
        ["k_proj.bias", "v_proj.bias"],
    ),
    (
        "eagle2",
        lambda t: t.update({"embed_tokens.weight": torch.ones(9, HIDDEN)}),
        ["[9, 32] instead of [40, 32]"],
    ),
    (
        "eagle2",
        lambda t: t.update({"imadpt.q": torch.ones(2, 4, 8)}),
        ["ViSpec", "image adaptor", "imadpt.q"],
    ),
    (
        "eagle2",
        lambda t: t.update(
            {"fc.weight": torch.ones(HIDDEN, 32), "strange": torch.ones(1), "fc.bias": torch.ones(3)}
        ),
        ["fc.weight [32, 32] instead of [32, 64]", "unknown ['strange']", "fc.bias [3] instead of [32]"],
    ),
    ("eagle3", lambda t: t.pop("norm.weight"), ["missing ['norm.weight']"]),
    ("eagle3", lambda t: t.pop("lm_head.weight"), ["missing ['lm_head.weight']"]),
    ("eagle3", lambda t: t.pop("d2t"), ["missing ['d2t']"]),
    ("eagle3", lambda t: t.update({"fc.bias": torch.ones(HIDDEN)}), ["unknown ['fc.bias']"]),
    ("eagle3", lambda t: t.update({"t2d": t["t2d"][:-1]}), ["t2d [39] instead of [40]"]),
    ("eagle3", lambda t: t.update({"lm_head.weight": torch.ones(8, 16)}), ["[8, 16] instead of [8, 32]"]),
    ("eagle3", shifted(1), ["d2t", "1 draft tokens outside of 0..39", "7 to 40"]),
    ("eagle3", shifted(-1), ["t2d and d2t", "disagree on 2 tokens", "38"]),
    ("eagle3", shifted(-14), ["several draft tokens", "target token 25"]),
    ("eagle3", lambda t: t.update({"d2t": t["d2t"].float()}), ["d2t", "integers"]),
    (
        "eagle3",
        lambda t: [t.pop(n) for n in list(t) if n.startswith("midlayer.")],
        ["no layout that is known"],
    ),
]


@pytest.mark.parametrize(("layout", "change", "said"), MALFORMED_TENSORS)
def test_malformed_tensors_are_named(layout: str, change: Change, said: list[str], tmp_path: Path) -> None:
    tensors = layouts.eagle2() if layout == "eagle2" else layouts.eagle3(TOKEN_IDS)
    change(tensors)
    with pytest.raises(ModelLoadError) as caught:
        load(write(tmp_path, tensors, CONFIG if layout == "eagle2" else EAGLE3_CONFIG))
    assert all(part in str(caught.value) for part in said), caught.value


MALFORMED_CONFIGS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"hidden_size": 64}, {}, ["hidden_size is 64", "width is 32"]),
    ({"target_hidden_size": 48, "num_hidden_layers": 2}, {}, ["target_hidden_size is 48", "2 layers"]),
    ({"num_attention_heads": 8, "head_dim": 8}, {}, ["q_proj.weight [32, 64] instead of [64, 64]"]),
    ({"num_key_value_heads": 3}, {}, ["4 is no multiple of 3"]),
    ({"num_key_value_heads": 4}, {}, ["k_proj.weight [16, 64] instead of [32, 64]"]),
    ({"intermediate_size": 40}, {}, ["gate_proj.weight [48, 32] instead of [40, 32]"]),
    ({"draft_vocab_size": 9}, {}, ["lm_head.weight [8, 32] instead of [9, 32]", "d2t [8] instead of [9]"]),
    ({"attention_bias": True}, {}, ["missing", "q_proj.bias"]),
    ({"hidden_size": "wide"}, {}, ["hidden_size"]),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, ["'dynamic'"]),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}, {}, ["M-RoPE", "the target has not"]),
    ({"norm_output": True, "fc_norm": True}, {}, ["fc_norm", "norm_output", "not supported"]),
    ({"eagle_config": {"use_aux_hidden_state": False}}, {}, ["use_aux_hidden_state"]),
    ({"transformer_layer_config": {}}, {}, ["speculators"]),
    ({"eagle_aux_hidden_state_layer_ids": [2, 9, 13]}, {}, ["[2, 9, 13]", "0..12"]),
    ({}, {"num_hidden_layers": 4}, ["[2, 2, 1]", "rise"]),
    ({}, {"kind": "gemma2"}, ["gemma2", "hidden_act"]),
    ({"head_dim": 8}, {"kind": "qwen2_5_vl"}, ["mrope_section [4, 2, 2]", "head_dim 8"]),
    (
        {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 16},
        {"kind": "qwen2_5_vl"},
        ["qwen2_5_vl_text"],
    ),
]


@pytest.mark.parametrize(("config", "of_target", "said"), MALFORMED_CONFIGS)
def test_drafts_for_another_target_say_why(
    config: dict[str, Any], of_target: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    folder = write(tmp_path, layouts.eagle3(TOKEN_IDS), {**EAGLE3_CONFIG, **config})
    with pytest.raises(ModelLoadError) as caught:
        load(folder, target(**of_target))
    assert all(part in str(caught.value) for part in said), caught.value


def test_files_that_are_not_there_or_not_tensors(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="readable draft"):
        load(tmp_path)
    write(tmp_path, layouts.eagle2(), CONFIG)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load(tmp_path)


class Harmful:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize(
    ("content", "said"), [({"fc.weight": Harmful()}, "tensors alone"), ([torch.ones(1)], "by name")]
)
def test_a_bin_file_holds_tensors_by_name_and_runs_nothing(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {}, CONFIG, binary=True)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=said):
        load(tmp_path)
    assert not (tmp_path / "harmed").exists()

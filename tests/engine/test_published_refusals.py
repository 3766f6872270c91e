"""Published drafts that do not fit their target, or are broken: each is refused with its reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ModelLoadError
from tests.engine import published_layouts as layouts
from tests.engine.published_layouts import CONFIG, HIDDEN, Tensors, write
from tests.engine.published_targets import EAGLE3_CONFIG, TOKEN_IDS, load, target

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
        lambda t: t.update({"embed_tokens.weight": torch.ones(9, 8)}),
        ["[9, 8] instead of [9, 32]"],
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
        ["no known layout"],
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
    ({"num_key_value_heads": 3}, {}, ["4 is not a multiple of 3"]),
    ({"num_key_value_heads": 4}, {}, ["k_proj.weight [16, 64] instead of [32, 64]"]),
    ({"intermediate_size": 40}, {}, ["gate_proj.weight [48, 32] instead of [40, 32]"]),
    ({"draft_vocab_size": 9}, {}, ["lm_head.weight [8, 32] instead of [9, 32]", "d2t [8] instead of [9]"]),
    ({"attention_bias": True}, {}, ["missing", "q_proj.bias"]),
    ({"hidden_size": "wide"}, {}, ["hidden_size"]),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, ["'dynamic'"]),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}, {}, ["M-RoPE", "the target does not"]),
    ({"norm_output": True, "fc_norm": True}, {}, ["fc_norm", "norm_output", "unsupported"]),
    ({"eagle_config": {"use_aux_hidden_state": False}}, {}, ["use_aux_hidden_state"]),
    ({"transformer_layer_config": {}}, {}, ["speculators"]),
    ({"eagle_aux_hidden_state_layer_ids": [2, 9, 13]}, {}, ["[2, 9, 13]", "0..12"]),
    ({}, {"num_hidden_layers": 4}, ["[2, 2, 1]", "ascending"]),
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
    ("content", "said"), [({"fc.weight": Harmful()}, "only tensors"), ([torch.ones(1)], "by name")]
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

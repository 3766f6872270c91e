"""``config.json`` of a published EAGLE draft: its relevant fields, and merging it with the target's config.

Does not handle weights. The defaults are those of the public code (Llama's).
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from transformers import PretrainedConfig

from engine.draft.files import CONFIG
from engine.errors import ModelLoadError

_ROTARY_KINDS = ("default", "linear", "llama3", "yarn")  # others depend on the largest position in a batch
_SIZED_BY_DRAFT = (
    *("num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("hidden_act", "rms_norm_eps", "rope_parameters"),
)
# Options of newer trainers that change the formulas but do not show in names or shapes.
_UNSUPPORTED = ("fc_norm", "norm_before_fc", "norm_output", "parallel_drafting", "use_sliding_window")


class EagleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section that EAGLE-3 trainers (SpecForge) add."""

    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    use_aux_hidden_state: bool | None = None
    fc_norm: bool | None = None
    norm_before_fc: bool | None = None
    norm_output: bool | None = None


class PublishedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that affect what a draft computes; published configs have many more."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    num_hidden_layers: int = 1
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    bias: bool | None = None
    qkv_bias: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    tie_word_embeddings: bool = False
    norm_before_residual: bool = False
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    eagle_config: EagleConfig | None = None
    transformer_layer_config: dict[str, Any] | None = None
    fc_norm: bool | None = None
    norm_before_fc: bool | None = None
    norm_output: bool | None = None
    parallel_drafting: bool | None = None
    use_sliding_window: bool | None = None

    @property
    def rotary(self) -> dict[str, Any]:
        """The rotary settings in the form of transformers' ``rope_parameters``; M-RoPE is given by its
        sections only.
        """
        given = self.rope_parameters or self.rope_scaling or {}
        kind = given.get("rope_type", given.get("type", "default"))
        rotary = {"rope_theta": self.rope_theta, **given, "rope_type": "default" if kind == "mrope" else kind}
        if kind in ("llama3", "yarn"):
            rotary.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        return rotary


def read_config(folder: Path) -> PublishedConfig:
    """Read a folder's config. Raises ``ModelLoadError`` if it cannot be read or has unsupported options."""
    try:
        raw = (folder / CONFIG).read_bytes()
        if "transformer_layer_config" in msgspec.json.decode(raw, type=dict[str, Any]):
            raise ModelLoadError(f"the draft in {str(folder)!r} has the unsupported speculators layout")
        config = msgspec.json.decode(raw, type=PublishedConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelLoadError(f"the config of the draft in {str(folder)!r} is not usable: {error}") from error
    parts = [part for part in (config, config.eagle_config) if part is not None]
    refused = sorted({name for name in _UNSUPPORTED for part in parts if getattr(part, name, None)})
    if config.eagle_config is not None and config.eagle_config.use_aux_hidden_state is False:
        refused.append("use_aux_hidden_state false")
    if refused:
        raise ModelLoadError(f"the draft in {str(folder)!r} needs unsupported features: {refused}")
    return config


def merged_config(config: PublishedConfig, text_config: PretrainedConfig, folder: Path) -> PretrainedConfig:
    """Return the target's text configuration with the sizes of the draft.

    Raises ``ModelLoadError`` with every reason why the draft does not fit this target.
    """
    merged = deepcopy(text_config)
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    rotary, of_target = config.rotary, getattr(text_config, "rope_parameters", None) or {}
    if "mrope_section" in of_target:
        rotary = {"mrope_section": of_target["mrope_section"], **rotary}
    reasons = _differences(config, text_config, rotary, of_target)
    if config.num_attention_heads % kv_heads:
        reasons.append(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of {kv_heads} kv heads"
        )
    if "mrope_section" in rotary and sum(rotary["mrope_section"]) * 2 != head_dim:
        reasons.append(f"mrope_section {rotary['mrope_section']} does not fill half of head_dim {head_dim}")
    if reasons:
        raise ModelLoadError(f"the draft in {str(folder)!r} does not fit the target: {'; '.join(reasons)}")
    merged.num_attention_heads, merged.num_key_value_heads = config.num_attention_heads, kv_heads
    merged.head_dim = head_dim
    merged.intermediate_size, merged.hidden_act = config.intermediate_size, config.hidden_act
    merged.rms_norm_eps, merged.rope_parameters = config.rms_norm_eps, rotary
    if hasattr(merged, "mlp_bias"):
        merged.mlp_bias = config.mlp_bias
    return merged


def _differences(
    config: PublishedConfig,
    text_config: PretrainedConfig,
    rotary: dict[str, Any],
    of_target: dict[str, Any],
) -> list[str]:
    reasons = []
    for name, value in (
        ("hidden_size", config.hidden_size),
        ("target_hidden_size", config.target_hidden_size or config.hidden_size),
    ):
        if value != text_config.hidden_size:
            reasons.append(f"its {name} is {value}, the target's width is {text_config.hidden_size}")
    if config.num_hidden_layers != 1:
        reasons.append(f"it has {config.num_hidden_layers} layers, not one")
    lacking = [name for name in _SIZED_BY_DRAFT if not hasattr(text_config, name)]
    if lacking:
        reasons.append(f"a {text_config.model_type} target has no {lacking}")
    if any(isinstance(value, dict) for value in of_target.values()):
        reasons.append("the target's layers have different rotary embeddings")
    if rotary["rope_type"] not in _ROTARY_KINDS:
        reasons.append(f"rotary scaling {rotary['rope_type']!r} is not one of {list(_ROTARY_KINDS)}")
    if "mrope_section" in rotary and "mrope_section" not in of_target:
        reasons.append("it has M-RoPE positions, the target does not")
    return reasons


def feature_layers(config: PublishedConfig, num_layers: int, folder: Path) -> tuple[int, ...]:
    """Return the target layers whose *inputs* an EAGLE-3 draft takes, ascending (see ``LoadedDraft``).

    The default is 2, n // 2, n - 3, as in the public code. ``eagle_config`` lists the layers whose *outputs*
    are taken (SpecForge, SGLang), each one less; a top-level list counts as here (vLLM).
    """
    nested = config.eagle_config.eagle_aux_hidden_state_layer_ids if config.eagle_config else None
    if nested:
        layers = tuple(i + 1 for i in nested)
    elif config.eagle_aux_hidden_state_layer_ids:
        layers = tuple(config.eagle_aux_hidden_state_layer_ids)
    else:
        layers = (2, num_layers // 2, num_layers - 3)
    rising = all(low < high for low, high in pairwise(layers))
    if not rising or layers[0] < 0 or layers[-1] > num_layers:
        raise ModelLoadError(
            f"the draft in {str(folder)!r} takes the inputs of layers {list(layers)} of the target: these "
            f"must be ascending within 0..{num_layers}"
        )
    return layers

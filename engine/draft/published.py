"""Loads draft folders in all supported layouts: SpecVLM's own, and those of published EAGLE drafts.

- EAGLE-1 and EAGLE-2: ``fc.weight`` [H, 2H], ``fc.bias`` unless the config says ``"bias": false``, and
  ``layers.0.*`` without an input norm; no final norm, no head.
- EAGLE-3: ``fc.weight`` [H, kH] over k tapped target layers, ``midlayer.*`` (or ``layers.0.*``) with
  ``hidden_norm``, ``norm.weight``, ``lm_head.weight`` [D, H], and the D draft tokens as ``d2t`` (target id
  minus draft id) and ``t2d`` (which target ids there are).

``embed_tokens.weight``, if present, is a copy of the target's, maybe from before its vocabulary was padded:
its width is checked, but the target's is used. Weights are in ``model.safetensors`` or
``pytorch_model.bin``. The draft's ``config.json`` determines its heads, sizes, norms and rotary frequencies
(base 10,000 if unspecified, as in the public code), the target its layer type. A draft whose config does not
mention M-RoPE uses the sections of an M-RoPE target.

Tested only with tiny files in these layouts, never with published weights: no hub was reachable. As far as we
know, MSD drafts use EAGLE-2's names; they load as such, without MSD's bypass of ``fc`` for picture tokens, so
fewer drafts will be accepted. ViSpec's image adaptor is not supported, and such drafts are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PretrainedConfig

from compressors.elastic import Elastic
from engine.draft.eagle import EagleDraft
from engine.draft.eagle3 import AttentionParts, Eagle3Draft, fit_layer
from engine.draft.files import CONFIG, WEIGHTS, DraftConfig, check_shapes, load_draft, read_tensors
from engine.draft.published_config import PublishedConfig, feature_layers, merged_config, read_config
from engine.errors import ModelLoadError

BIN_WEIGHTS = "pytorch_model.bin"
HEAD, EMBEDDINGS, TO_TARGET, IN_DRAFT = "lm_head.weight", "embed_tokens.weight", "d2t", "t2d"
_VISPEC = ("imadpt.", "img_fc.")


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A loaded draft, float32 on the CPU, and what it requires of its target.

    ``vocabulary``: int64 ``[D]``, target token ids in the order of the head's rows; ``None`` for all of them.
    ``head_weight``: ``[D, H]``; ``None``: the ``vocabulary`` rows of the target's head. ``config`` and
    ``compressor``: those of a draft in SpecVLM's own format. ``feature_layers``: the features are the hidden
    states that *enter* these target layers, concatenated in this order (0: the embeddings; the number of
    layers: the output of the last one, before the final norm); ``None``: the state after the final norm.
    """

    module: EagleDraft | Eagle3Draft
    vocabulary: Tensor | None = None
    head_weight: Tensor | None = None
    config: DraftConfig | None = None
    feature_layers: tuple[int, ...] | None = None
    compressor: Elastic | None = None


def load_any_draft(folder: Path, text_config: PretrainedConfig, *, attn_implementation: str) -> LoadedDraft:
    """Load the draft in ``folder``, in any supported layout, for a target with this text configuration.

    Raises ``ModelLoadError`` with every difference found if it does not match the target.
    """
    if _is_ours(folder):
        own = load_draft(folder, text_config, attn_implementation=attn_implementation)
        return LoadedDraft(own.module, own.vocabulary, config=own.config, compressor=own.compressor)
    config = read_config(folder)
    tensors = _read_weights(folder)
    strange = sorted(name for name in tensors if name.startswith(_VISPEC))
    if strange:
        raise ModelLoadError(
            f"the draft in {str(folder)!r} is a ViSpec draft; its image adaptor is not supported: {strange}"
        )
    if any(name.startswith("midlayer.") for name in tensors):
        return _eagle3(folder, config, tensors, text_config, attn_implementation, layer="midlayer.")
    if "layers.0.hidden_norm.weight" in tensors:
        return _eagle3(folder, config, tensors, text_config, attn_implementation, layer="layers.0.")
    if any(name.startswith("layers.0.") for name in tensors):
        return _eagle(folder, config, tensors, text_config, attn_implementation)
    raise ModelLoadError(
        f"the draft in {str(folder)!r} has no known layout (layers.0.* or midlayer.*); it has "
        f"{sorted(tensors)[:12]}"
    )


def _eagle(
    folder: Path,
    config: PublishedConfig,
    tensors: dict[str, Tensor],
    text_config: PretrainedConfig,
    attn_implementation: str,
) -> LoadedDraft:
    merged = merged_config(config, text_config, folder)
    parts = _attention_parts(config, tensors)
    draft = EagleDraft(
        merged, attn_implementation=attn_implementation, input_norm=False, bias=config.bias is not False
    )
    fit_layer(draft.layer, int(merged.hidden_size), parts)
    _fill(draft, tensors, folder, layer="layers.0.", others=_embeddings(tensors, text_config))
    return LoadedDraft(draft)


def _eagle3(
    folder: Path,
    config: PublishedConfig,
    tensors: dict[str, Tensor],
    text_config: PretrainedConfig,
    attn_implementation: str,
    *,
    layer: str,
) -> LoadedDraft:
    merged = merged_config(config, text_config, folder)
    layers = feature_layers(config, int(text_config.num_hidden_layers), folder)
    draft = Eagle3Draft(
        merged,
        attn_implementation=attn_implementation,
        parts=_attention_parts(config, tensors),
        num_features=len(layers),
        bias=config.bias is True,
        norm_before_residual=config.norm_before_residual,
    )
    others = _embeddings(tensors, text_config) | _head_shapes(config, tensors, text_config)
    _fill(draft, tensors, folder, layer=layer, others=others)
    vocabulary = None
    if TO_TARGET in tensors:
        vocabulary = _vocabulary(tensors, int(text_config.vocab_size), folder)
    head = tensors.get(HEAD)
    return LoadedDraft(draft, vocabulary, None if head is None else head.float(), None, layers)


def _attention_parts(config: PublishedConfig, tensors: Iterable[str]) -> AttentionParts:
    """Return the attention's optional parts: those in the file, and those that the config requires."""

    def has(*ends: str) -> bool:
        return any(name.endswith(tuple(f".self_attn.{end}" for end in ends)) for name in tensors)

    announced = config.attention_bias if config.qkv_bias is None else config.qkv_bias
    return AttentionParts(
        qkv_bias=announced or has("q_proj.bias", "k_proj.bias", "v_proj.bias"),
        output_bias=has("o_proj.bias"),
        head_norms=has("q_norm.weight", "k_norm.weight"),
    )


def _fill(
    draft: nn.Module,
    tensors: dict[str, Tensor],
    folder: Path,
    *,
    layer: str,
    others: dict[str, tuple[int, ...]],
) -> None:
    """Copy ``tensors`` into ``draft``, whose layer has the prefix ``layer`` in the file.

    ``others``: names and shapes that must be present as well.
    """
    own = {
        layer + name.removeprefix("layer.") if name.startswith("layer.") else name: value
        for name, value in draft.state_dict().items()
    }
    check_shapes({name: tuple(value.shape) for name, value in own.items()} | others, tensors, folder)
    for name, value in own.items():
        value.copy_(tensors[name])


def _embeddings(tensors: dict[str, Tensor], text_config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The target's own are used, so it does not matter for how many tokens these were made."""
    if EMBEDDINGS not in tensors:
        return {}
    rows = len(tensors[EMBEDDINGS]) if tensors[EMBEDDINGS].dim() else 0
    return {EMBEDDINGS: (rows, int(text_config.hidden_size))}


def _head_shapes(
    config: PublishedConfig, tensors: dict[str, Tensor], text_config: PretrainedConfig
) -> dict[str, tuple[int, ...]]:
    """Return the required shapes of head and vocabulary map.

    The head may be missing if the config does not specify its size, and the map if the draft has the whole
    vocabulary.
    """
    vocab_size = int(text_config.vocab_size)
    counted = [len(tensors[name]) for name in (HEAD, TO_TARGET) if name in tensors and tensors[name].dim()]
    rows = config.draft_vocab_size or (counted[0] if counted else vocab_size)
    wanted: dict[str, tuple[int, ...]] = {}
    if HEAD in tensors or config.draft_vocab_size is not None or config.tie_word_embeddings:
        wanted[HEAD] = (rows, int(text_config.hidden_size))
    if TO_TARGET in tensors or IN_DRAFT in tensors or rows != vocab_size:
        wanted[TO_TARGET] = (rows,)
    if IN_DRAFT in tensors:
        wanted[IN_DRAFT] = (vocab_size,)
    return wanted


def _vocabulary(tensors: dict[str, Tensor], vocab_size: int, folder: Path) -> Tensor:
    """Return the vocabulary, int64 ``[D]``: draft token ``i`` is target token ``i + d2t[i]``."""
    offsets = tensors[TO_TARGET]
    if offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise ModelLoadError(f"d2t in {str(folder)!r} must hold integers, not {offsets.dtype}")
    ids = torch.arange(len(offsets)) + offsets.long()
    outside = ((ids < 0) | (ids >= vocab_size)).nonzero().flatten().tolist()
    if outside:
        raise ModelLoadError(
            f"d2t in {str(folder)!r} maps {len(outside)} draft tokens outside of 0..{vocab_size - 1}, first "
            f"{outside[0]} to {int(ids[outside[0]])}"
        )
    members = torch.zeros(vocab_size, dtype=torch.bool)
    members[ids] = True
    if int(members.sum()) != len(ids):
        twice = int((torch.bincount(ids) > 1).nonzero()[0])
        raise ModelLoadError(f"d2t in {str(folder)!r} maps several draft tokens to target token {twice}")
    if IN_DRAFT in tensors:
        differ = (members != tensors[IN_DRAFT].bool()).nonzero().flatten().tolist()
        if differ:
            raise ModelLoadError(
                f"t2d and d2t in {str(folder)!r} disagree on {len(differ)} tokens, first on {differ[0]}"
            )
    return ids


def _is_ours(folder: Path) -> bool:
    try:
        config: Any = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{str(folder)!r} is not a folder with a readable draft: {error}") from error
    return isinstance(config, dict) and "format" in config  # published configs do not have this key


def _read_weights(folder: Path) -> dict[str, Tensor]:
    safe, binary = folder / WEIGHTS, folder / BIN_WEIGHTS
    if not safe.exists() and not binary.exists():
        raise ModelLoadError(f"the draft folder {str(folder)!r} has neither {WEIGHTS} nor {BIN_WEIGHTS}")
    try:
        if safe.exists():
            return read_tensors(safe)
        tensors = torch.load(binary, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"the draft weights in {str(folder)!r} cannot be read: {error}") from error
    except Exception as error:  # the unpickler may raise anything for bytes that are not plain tensors
        raise ModelLoadError(f"{str(binary)!r} does not contain only tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelLoadError(f"{str(binary)!r} is not a dictionary of tensors by name")
    return tensors

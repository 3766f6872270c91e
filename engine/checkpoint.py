"""Reads a checkpoint: its configuration, its weights in the right dtype, and its end-of-sequence tokens."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from engine.adapters.base import Adapter
from engine.config import EngineConfig
from engine.errors import ModelLoadError

# A packed row holds many sequences: a scale that depends on the longest position would couple them. (That of
# ``dynamic`` does so only past ``max_position_embeddings``, which no sequence reaches: see ``still_rope``.)
_ROW_DEPENDENT_ROPE = {"longrope"}
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
_WHOLE = ("F32", "F64")
_MAX_FAULTS = 3  # listed in an error message

log = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            "--device cuda was requested, but torch finds no CUDA device; use --device cpu or auto"
        )
    return torch.device(name)


def resolve_dtype(config: EngineConfig, hf_config: PretrainedConfig) -> torch.dtype:
    """Return the configured dtype; ``auto`` is the checkpoint's own dtype on a GPU, float32 on a CPU."""
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if resolve_device(config.device).type == "cpu":
        return torch.float32
    own = hf_config.dtype or hf_config.get_text_config().dtype  # in the order of transformers
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def read_eos_token_ids(config: EngineConfig) -> frozenset[int]:
    """Return all end tokens in the generation config, the model's configs and its tokenizer.

    A model that is fine-tuned for chat may end its turns with a token that only its tokenizer specifies.
    """
    hf_config = read_config(config)
    owners: list[Any] = [hf_config, hf_config.get_text_config()]
    with contextlib.suppress(OSError):  # many models have none
        generation = GenerationConfig.from_pretrained(config.model, revision=config.revision)
        if generation.eos_token_id is not None:
            # A config without the field inherits its class's default, an ordinary token in some vocabularies.
            written, _ = PretrainedConfig.get_config_dict(config.model, revision=config.revision)
            parts = [written, *(part for part in written.values() if isinstance(part, dict))]
            named = [part["eos_token_id"] for part in parts if "eos_token_id" in part]
            owners = [generation, *(SimpleNamespace(eos_token_id=ids) for ids in named)]
    with contextlib.suppress(OSError, ValueError):  # the server process reports a broken tokenizer
        tokenizer = AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        owners.append(tokenizer)
    found: set[int] = set()
    for owner in owners:
        own = getattr(owner, "eos_token_id", None)
        found.update(own if isinstance(own, list) else [] if own is None else [own])
    return frozenset(found)


def writable(token_ids: frozenset[int], vocab_size: int) -> frozenset[int]:
    """Return those of the end tokens for which the model has a row: some configs name others.

    No answer ends with the others, and to forbid them until ``min_tokens`` would address rows outside.
    """
    found = frozenset(token_id for token_id in token_ids if 0 <= token_id < vocab_size)
    if left := token_ids - found:
        log.warning("end tokens %s are not in the model's vocabulary of %d", sorted(left), vocab_size)
    return found


def read_config(config: EngineConfig) -> PretrainedConfig:
    try:
        hf_config = AutoConfig.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # a broken file may raise anything
        kind = "folder" if Path(config.model).is_dir() else "folder or hub id"
        raise ModelLoadError(
            f"{config.model!r} is not a {kind} with a readable config.json: {error}"
        ) from error
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelLoadError(
            f"{config.model!r} is quantized, which is not supported; use the checkpoint it was made from"
        )
    return hf_config


def refuse_row_dependent(config: PretrainedConfig) -> None:
    """Raise ``ModelLoadError`` for layers and rotary scalings that give wrong results in a packed row."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in ([rope, *rope.values()]) if isinstance(part, dict)}
    if kinds & _ROW_DEPENDENT_ROPE:
        raise ModelLoadError(
            f"rope type {sorted(kinds & _ROW_DEPENDENT_ROPE)} scales with the longest position in a row, "
            "which gives wrong results for a row of many sequences; this model cannot be served"
        )
    layers = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if layers:
        raise ModelLoadError(f"attention layers of type {sorted(layers)} are not supported")


def still_rope(model: torch.nn.Module) -> None:
    """Keep ``dynamic`` rotary embeddings, which would look at the longest position of every row, at the
    frequencies of positions below ``max_position_embeddings``.
    """
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):  # one for each type of layer
            kinds.update({layers: "default" for layers, kind in kinds.items() if kind == "dynamic"})
        elif kinds == "dynamic":
            setattr(module, "rope_type", "default")  # noqa: B010 (a module's attributes have no types)


def load_weights(config: EngineConfig, adapter_type: type[Adapter], dtype: torch.dtype) -> PreTrainedModel:
    return load_whole(
        adapter_type,
        config.model,
        revision=config.revision,
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
    )


def load_whole(adapter_type: type[Adapter], path: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model, all of whose weights must be in its files.

    transformers initialises missing weights at random and only logs a warning. Raises ``ModelLoadError`` for
    missing weights, and for files that cannot be read.
    """
    try:
        model, report = adapter_type.load(
            path, **kwargs, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(f"cannot load weights of {path!r}: {error}") from error
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [
        f"{name} has shape {tuple(found)} and not {tuple(wanted)}"
        for name, found, wanted in sorted(report["mismatched_keys"])
    ]
    if faults:
        more = f" and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise ModelLoadError(
            f"the weights of {path!r} do not fit its config.json: {', '.join(faults[:_MAX_FAULTS])}{more}"
        )
    return model.eval().requires_grad_(False)


def load_narrow(config: EngineConfig, adapter_type: type[Adapter], dtype: torch.dtype) -> PreTrainedModel:
    """Load weights for float32 arithmetic, in the half precision in which they are stored, if any.

    If ``dtype`` is not float32, they are loaded in ``dtype``. Kernels keep them in that precision; a float32
    copy of everything would be twice as large.
    """
    if dtype != torch.float32:
        return load_weights(config, adapter_type, dtype)
    try:
        stored = stored_half(config.model, config.revision)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"cannot read weights of {config.model!r}: {error}") from error
    if stored is not None:
        model = load_weights(config, adapter_type, stored)
        if not has_own_buffers(model, stored):
            return model
        del model
    return load_weights(config, adapter_type, dtype)


def stored_half(model: str, revision: str | None) -> torch.dtype | None:
    """Return the half-precision dtype in which all floating-point weights of ``model`` are stored.

    ``model`` is a folder or hub id. ``None`` if they are stored in other dtypes or there are none. Raises
    ``OSError`` if files cannot be read.
    """
    found: set[str] = set()
    for path in _weight_files(model, revision):
        with safe_open(path, framework="pt") as file:
            found.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 (no mapping)
    kinds = found.intersection((*_HALVES, *_WHOLE))
    return _HALVES.get(kinds.pop()) if len(kinds) == 1 else None


def _weight_files(model: str, revision: str | None) -> list[str]:
    """Return the weight files that transformers reads; a repository may also hold other weight formats."""
    at = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    whole = cached_file(model, SAFE_WEIGHTS_NAME, **at)
    if whole is not None:
        return [whole]
    index = cached_file(model, SAFE_WEIGHTS_INDEX_NAME, **at)
    if index is None:
        return []
    shards: list[str] = get_checkpoint_shard_files(model, index, revision=revision)[0]
    return shards


def has_own_buffers(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether the model computed buffers in ``dtype`` during loading.

    Those are rounded, although no weight of the checkpoint is.
    """
    stored = model.state_dict().keys()
    return any(buffer.dtype == dtype for name, buffer in model.named_buffers() if name not in stored)

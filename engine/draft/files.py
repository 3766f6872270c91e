"""Draft folders: ``config.json`` and ``model.safetensors``, written by training and read at startup.

Handles files, names and shapes only, not how a draft is run or trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from compressors.elastic import Elastic, ElasticConfig
from engine.draft.eagle import EagleDraft
from engine.errors import ModelLoadError

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary"
COMPRESSOR = "compressor."
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``config.json`` of a draft folder.

    ``target`` and ``target_fingerprint`` identify the model it was trained for (:func:`fingerprint`).
    ``hidden_size`` and ``model_type`` are those of the target's text model. ``compressor``: the configuration
    of the weights under ``compressor.``, if there are any.
    """

    format: Literal["specvlm-eagle"] = "specvlm-eagle"
    version: Literal[1] = 1
    target: str
    target_fingerprint: str
    model_type: str
    hidden_size: int
    input_norm: bool = True
    bias: bool = False
    compressor: ElasticConfig | None = None


@dataclass(frozen=True, slots=True)
class OwnDraft:
    """A draft in SpecVLM's own format.

    ``vocabulary``: int64 ``[V]``, the token ids that it can propose, in the order of its head's rows;
    ``None`` for all of the target's. ``compressor``: the compressor trained with it, if any.
    """

    module: EagleDraft
    vocabulary: Tensor | None
    config: DraftConfig
    compressor: Elastic | None = None


def save_draft(
    folder: Path,
    draft: EagleDraft,
    config: DraftConfig,
    vocabulary: Tensor | None,
    compressor: Elastic | None = None,
) -> None:
    """Write an :class:`OwnDraft` in half precision, with the compressor's configuration in ``config``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(draft.state_dict())
    if compressor is not None:
        state.update({COMPRESSOR + name: value for name, value in compressor.state_dict().items()})
    config = msgspec.structs.replace(config, compressor=None if compressor is None else compressor.config)
    tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in state.items()}
    if vocabulary is not None:
        tensors[VOCABULARY] = vocabulary.to(torch.int32).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n")


def load_draft(folder: Path, text_config: PretrainedConfig, *, attn_implementation: str) -> OwnDraft:
    """Load the draft in ``folder`` for a target with this text configuration, as float32 on the CPU.

    Raises ``ModelLoadError`` if config, names or shapes do not match the target.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=DraftConfig)
        tensors = read_tensors(folder / WEIGHTS)
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise ModelLoadError(f"{str(folder)!r} is not a folder with a readable draft: {error}") from error
    found, wanted = (config.model_type, config.hidden_size), (text_config.model_type, text_config.hidden_size)
    if found != wanted:
        raise ModelLoadError(
            f"the draft in {str(folder)!r} is for a {found[0]} target of width {found[1]}, "
            f"this target is a {wanted[0]} of width {wanted[1]}"
        )
    vocabulary = tensors.pop(VOCABULARY, None)
    draft = EagleDraft(
        text_config, attn_implementation=attn_implementation, input_norm=config.input_norm, bias=config.bias
    )
    compressor = _compressor(config, draft, folder)
    own = {name: tensors.pop(name) for name in list(tensors) if compressor and name.startswith(COMPRESSOR)}
    fill(draft, tensors, folder)
    if compressor is not None:
        fill(compressor, {name.removeprefix(COMPRESSOR): value for name, value in own.items()}, folder)
    ids = check_vocabulary(vocabulary, int(text_config.vocab_size), folder)
    return OwnDraft(draft, ids, config, compressor)


def _compressor(config: DraftConfig, draft: EagleDraft, folder: Path) -> Elastic | None:
    if config.compressor is None:
        return None
    try:
        return Elastic(config.compressor, config.hidden_size, draft.feature_size)
    except ValueError as error:
        raise ModelLoadError(f"the compressor of the draft in {str(folder)!r}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy ``tensors`` into ``module``. Raises ``ModelLoadError`` unless names and shapes match exactly."""
    own = module.state_dict()
    check_shapes({name: tuple(value.shape) for name, value in own.items()}, tensors, folder)
    for name, value in own.items():
        value.copy_(tensors[name])  # in place, converted to the module's dtype


def check_shapes(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise a ``ModelLoadError`` that lists every difference if names or shapes do not match exactly."""
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name])}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tuple(tensors[name].shape) != wanted[name]
    ]
    if missing or unknown or wrong:
        raise ModelLoadError(
            f"the draft weights in {str(folder)!r} do not fit: missing {missing}, unknown {unknown}, "
            f"wrong shape {wrong}"
        )


def check_vocabulary(vocabulary: Tensor | None, size: int, folder: Path) -> Tensor | None:
    """Return ``vocabulary`` as int64. Raises ``ModelLoadError`` if it holds anything but valid token ids."""
    if vocabulary is None:
        return None
    ids = vocabulary.long()
    if ids.dim() != 1 or not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= size:
        raise ModelLoadError(
            f"the draft vocabulary in {str(folder)!r} must be a list of token ids in 0..{size - 1}"
        )
    return ids


def fingerprint(folder: Path) -> str:
    """Return a hex digest that identifies the weights in a model folder, quick for any size.

    It covers the names and sizes of the safetensors files and evenly spaced samples of each, among them its
    header, which lists names and shapes. Raises ``FileNotFoundError`` if there is no such file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {str(folder)!r}")
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with open(path, "rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def draft_config(
    text_config: PretrainedConfig, target: str, target_folder: Path, **layout: Any
) -> DraftConfig:
    """Return the config of a draft for this target; ``layout``: ``input_norm``, ``bias``."""
    return DraftConfig(
        target=target,
        target_fingerprint=fingerprint(target_folder),
        model_type=str(text_config.model_type),
        hidden_size=int(text_config.hidden_size),
        **layout,
    )

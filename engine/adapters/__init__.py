"""Adapters for model families, one small file each, and the table of supported ones."""

from __future__ import annotations

from engine.adapters.base import Adapter
from engine.adapters.causal_lm import CausalLMAdapter
from engine.adapters.gemma3 import Gemma3Adapter
from engine.adapters.idefics3 import Idefics3Adapter
from engine.adapters.internvl import InternVLAdapter
from engine.adapters.llava import LlavaAdapter
from engine.adapters.llava_next import LlavaNextAdapter
from engine.adapters.llava_onevision import LlavaOnevisionAdapter
from engine.adapters.mistral3 import Mistral3Adapter
from engine.adapters.qwen2_vl import Qwen2VLAdapter
from engine.adapters.qwen3_vl import Qwen3VLAdapter
from engine.errors import ModelLoadError

ADAPTERS: tuple[type[Adapter], ...] = (
    CausalLMAdapter,
    LlavaAdapter,
    LlavaNextAdapter,
    LlavaOnevisionAdapter,
    Idefics3Adapter,
    InternVLAdapter,
    Mistral3Adapter,
    Gemma3Adapter,
    Qwen2VLAdapter,
    Qwen3VLAdapter,
)


def adapter_for(model_type: str) -> type[Adapter]:
    """Return the adapter for a ``config.json``'s ``model_type``. Raises ``ModelLoadError`` if unknown."""
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = sorted(name for adapter in ADAPTERS for name in adapter.model_types)
    raise ModelLoadError(f"model family {model_type!r} is not supported; known families: {', '.join(known)}")

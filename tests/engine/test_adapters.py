"""What no golden test has shown is refused when it is loaded, in words that say what would be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
)

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.target import TargetModel


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GemmaConfig(), "'gemma' is not supported; known families: .*llava_next"),
        (LlavaNextConfig(text_config=GemmaConfig()), "llava_next over a 'gemma' language model .*: llama"),
        (InternVLConfig(text_config=GemmaConfig()), "internvl over a 'gemma' language model .*: .*qwen2"),
        (Gemma3Config(text_config=Gemma3TextConfig(final_logit_softcapping=30.0)), "soft caps"),
        (LlavaConfig(vision_config=PixtralVisionConfig(), text_config=MistralConfig()), "Pixtral tower"),
    ],
)
def test_what_was_not_run_is_refused(config: PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        TargetModel.load(EngineConfig(model=str(tmp_path), device="cpu"))

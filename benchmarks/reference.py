"""The baseline: ``transformers`` as its documentation runs it, ``model.generate`` in float32."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.generation.streamers import BaseStreamer

from benchmarks.settings import Settings
from benchmarks.workload import Chat, Trace


class Clock(BaseStreamer):
    """Records when ``generate`` outputs each token; the first call contains the prompt."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._trace.token_times.append(time.perf_counter())
            self._trace.token_ids.append(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        pass


class Reference:
    """Runs one request at a time; ``generate`` has no prefix cache and no batching across requests."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._processor = AutoProcessor.from_pretrained(settings.model)
        self._model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=torch.float32).eval()

    def run(self, chat: Chat, num_tokens: int) -> Trace:
        """Generate exactly ``num_tokens`` greedily. Timing starts with a decoded picture."""
        trace = Trace(time.perf_counter())
        inputs: dict[str, Any] = self._processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        self._model.generate(
            **inputs,
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            streamer=Clock(trace),
        )
        assert len(trace.token_ids) == num_tokens
        return trace

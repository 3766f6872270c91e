"""What a request must produce: plain ``transformers`` ``generate``, with the margin of every decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from engine.core import EngineCore
from engine.messages import GenerateRequest, SamplingParams
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.loading import load_processor
from processing.processor import Processor
from processing.prompt import Prompt
from tests.models import picture

# The numeric rule: outputs are equal except where the two likeliest tokens are closer than this, in logits.
EPSILON = 1e-4


@dataclass(slots=True, frozen=True)
class Expected:
    """Greedy tokens and, for each, how far the runner-up was behind."""

    token_ids: list[int]
    margins: list[float]


Sized = tuple[int, tuple[int, int]]
"""A picture's seed and its width and height."""


@dataclass(slots=True)
class Golden:
    """A checkpoint with its reference model, and how many near-ties the comparisons met.

    ``inputs``: what the reference is given for a prompt, made by transformers' own processor.
    """

    folder: Path
    model: Any
    processor: Any
    ours: Processor
    near_ties: int = 0
    memory: dict[str, Expected] = field(default_factory=dict)
    inputs: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def sees(self) -> bool:
        return self.ours.supports_images

    def prompt(self, text: str, pictures: Sequence[int | Sized] = ()) -> Prompt:
        """A chat prompt about pictures drawn from these seeds, with its reference: ours must hold the same
        tokens.
        """
        images = [picture(*one) if isinstance(one, tuple) else picture(one) for one in pictures]
        parts = [*map(ImagePart, images), TextPart(text)]
        prompt = self.ours.apply([ChatMessage("user", parts if images else text)])
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        chat = [{"role": "user", "content": content if images else text}]
        rendered = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        given = {"images": [images]} if images else {}  # nested, as of one chat
        inputs = self.processor(text=[rendered], add_special_tokens=False, return_tensors="pt", **given)
        assert prompt.token_ids == inputs["input_ids"][0].tolist(), "the processors disagree"
        self.inputs[_key(prompt)] = dict(inputs)
        return prompt

    def give(self, prompt: Prompt, embeddings: torch.Tensor) -> None:
        """Give the reference these embeddings ``[N, hidden]`` for a prompt that no processor makes."""
        mask = torch.ones(1, len(embeddings), dtype=torch.int64)
        self.inputs[_key(prompt)] = {"inputs_embeds": embeddings[None], "attention_mask": mask}

    def inputs_of(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """What the reference is given for a prompt of ours."""
        return self.inputs[_key(prompt)]

    def expected(self, prompt: Prompt, num_tokens: int) -> Expected:
        """What ``generate`` says, computed once a prompt."""
        key = f"{_key(prompt)} {num_tokens}"
        if key not in self.memory:
            inputs = self.inputs_of(prompt)
            # Of a prompt that is given as embeddings, transformers returns what is new alone.
            known = 0 if "inputs_embeds" in inputs else len(prompt.token_ids)
            output = self.model.generate(
                **inputs,
                max_new_tokens=num_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            top = [logits[0].topk(2).values for logits in output.logits]
            self.memory[key] = Expected(
                token_ids=output.sequences[0, known:].tolist(),
                margins=[float(values[0] - values[1]) for values in top],
            )
        return self.memory[key]

    def compare(self, got: list[int], prompt: Prompt, num_tokens: int, where: str) -> None:
        """Assert token-for-token equality up to a near-tie, which is counted."""
        want = self.expected(prompt, num_tokens)
        for i, (ours, theirs) in enumerate(zip(got, want.token_ids, strict=False)):
            if ours != theirs:
                assert want.margins[i] < EPSILON, (
                    f"{where}: token {i} is {ours}, transformers says {theirs} by {want.margins[i]:.2e}; "
                    f"ours {got[: i + 1]}, theirs {want.token_ids[: i + 1]}"
                )
                self.near_ties += 1
                return
        assert len(got) == len(want.token_ids), f"{where}: {len(got)} tokens, expected {len(want.token_ids)}"


def _key(prompt: Prompt) -> str:
    return f"{prompt.token_ids} {[image.hash for image in prompt.images]}"


@lru_cache(maxsize=8)
def load_golden(folder: Path) -> Golden:
    """The reference model of a tiny checkpoint, with a picture processor where it has one."""
    is_vlm = (folder / "processor_config.json").exists() or (folder / "preprocessor_config.json").exists()
    model_class = AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    known = load_processor(str(folder), model.config) if is_vlm else AutoTokenizer.from_pretrained(folder)
    return Golden(folder, model, known, Processor.from_pretrained(str(folder)))


def request(
    request_id: str, prompt: Prompt, *, max_tokens: int, salt: str = "", **sampling: Any
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, **({"temperature": 0.0} | sampling))
    return GenerateRequest(request_id=request_id, prompt=prompt, sampling=params, cache_salt=salt)


@dataclass(slots=True)
class Run:
    """Outputs by request id."""

    token_ids: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)


def run_core(core: EngineCore, arrivals: list[tuple[int, GenerateRequest]]) -> Run:
    """Step until nothing is left, each request joining before its step; integrity is checked every time."""
    run, waiting, step = Run(), sorted(arrivals, key=lambda a: a[0]), 0
    while waiting or core.has_work:
        while waiting and waiting[0][0] <= step:
            core.add(waiting.pop(0)[1])
        report = core.step()
        core.check()
        for output in report.outputs:
            assert output.request_id not in run.reasons, f"{output.request_id} went on after its end"
            run.token_ids.setdefault(output.request_id, []).extend(output.token_ids)
            run.cached[output.request_id] = output.num_cached_tokens
            if output.finish_reason is not None:
                run.reasons[output.request_id] = output.finish_reason
        step += 1
        assert step < 10_000, "the engine makes no progress"
    return run

"""What a request must produce: plain ``transformers`` ``generate``, with the margin of every decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from engine.core import EngineCore
from engine.messages import GenerateRequest, SamplingParams
from processing.prompt import ImageInput, Prompt
from tests.models import TOKENS_PER_IMAGE, picture

# The numeric rule: outputs are equal except where the two likeliest tokens are closer than this, in logits.
EPSILON = 1e-4


@dataclass(slots=True, frozen=True)
class Expected:
    """Greedy tokens and, for each, how far the runner-up was behind."""

    token_ids: list[int]
    margins: list[float]


@dataclass(slots=True)
class Golden:
    """A checkpoint with its reference model, and how many near-ties the comparisons met."""

    folder: Path
    model: Any
    processor: Any
    near_ties: int = 0
    memory: dict[str, Expected] = field(default_factory=dict)

    def prompt(self, text: str, pictures: tuple[int, ...] = ()) -> Prompt:
        """A chat prompt about pictures drawn from these seeds."""
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": text}]
        chat = [{"role": "user", "content": content if pictures else text}]
        rendered = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if not pictures:
            return Prompt(token_ids=self._tokenizer(rendered, add_special_tokens=False)["input_ids"])
        images = [picture(seed) for seed in pictures]
        inputs = self.processor(text=rendered, images=images, add_special_tokens=False, return_tensors="np")
        token_ids = [int(t) for t in inputs["input_ids"][0]]
        starts = [i for i, t in enumerate(token_ids) if t == self.model.config.image_token_id]
        return Prompt(
            token_ids=token_ids,
            images=[
                ImageInput(
                    hash=f"picture {seed}".encode(),
                    spans=[(starts[i * TOKENS_PER_IMAGE], TOKENS_PER_IMAGE)],
                    tensors={"pixel_values": np.asarray(inputs["pixel_values"][i : i + 1], dtype=np.float32)},
                )
                for i, seed in enumerate(pictures)
            ],
        )

    def expected(self, prompt: Prompt, num_tokens: int) -> Expected:
        """What ``generate`` says, computed once a prompt."""
        key = f"{prompt.token_ids} {[i.hash for i in prompt.images]} {num_tokens}"
        if key not in self.memory:
            inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt.token_ids])}
            if prompt.images:
                pixels = np.concatenate([i.tensors["pixel_values"] for i in prompt.images])
                inputs["pixel_values"] = torch.from_numpy(pixels)
            output = self.model.generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=num_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            top = [logits[0].topk(2).values for logits in output.logits]
            self.memory[key] = Expected(
                token_ids=output.sequences[0, len(prompt.token_ids) :].tolist(),
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

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)


@lru_cache(maxsize=8)
def load_golden(folder: Path) -> Golden:
    """The reference model of a tiny checkpoint, with a picture processor where it has one."""
    is_vlm = (folder / "processor_config.json").exists() or (folder / "preprocessor_config.json").exists()
    model_class = AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    processor = (AutoProcessor if is_vlm else AutoTokenizer).from_pretrained(folder)
    return Golden(folder, model, processor)


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

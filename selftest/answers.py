"""Checks our engine's answers against transformers, with and without trees, and measures the speed-up."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from demo.pictures import sample
from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.draft.choose import choose_drafter
from engine.messages import GenerateRequest, SamplingParams, SpeculativeParams
from engine.speculation.measure import measured_budget
from engine.target import TargetModel
from processing.chat import ChatMessage, ContentPart, ImagePart, TextPart
from processing.processor import Processor
from processing.prompt import Prompt
from selftest.reference import Reference

TEXT = "What is the capital of France? Explain in two sentences."
_SEED = 920_000


@dataclass(slots=True)
class Answer:
    """An answer. ``seconds``: from the first token to the last."""

    token_ids: list[int]
    seconds: float
    num_rounds: int
    num_spec_tokens: int


class Engine:
    """The engine. ``forced``: make every tree as large as allowed, instead of as large as measured to pay."""

    def __init__(self, config: EngineConfig, target: TargetModel, *, forced: bool) -> None:
        budget = None if forced else measured_budget
        self.core = EngineCore(config, target, read_eos_token_ids(config), choose_drafter, budget)
        self._ids = itertools.count()

    def answer(self, prompts: list[Prompt], num_tokens: int, *, speculate: bool) -> list[Answer]:
        """Answer greedily, all at once, without cached prefixes. Raises ``RuntimeError`` on a failure."""
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0)
        speculative = SpeculativeParams(enabled=speculate)
        answers: dict[str, Answer] = {}
        firsts: dict[str, float] = {}
        for prompt in prompts:
            name = str(next(self._ids))
            self.core.add(
                GenerateRequest(
                    request_id=name,
                    prompt=prompt,
                    sampling=sampling,
                    speculative=speculative,
                    cache_salt=name,
                )
            )
            answers[name] = Answer([], 0.0, 0, 0)
        while self.core.has_work:
            outputs, now = self.core.step().outputs, time.perf_counter()
            for output in outputs:
                if output.error is not None:
                    raise RuntimeError(output.error.message)
                answer = answers[output.request_id]
                answer.token_ids += output.token_ids
                answer.seconds = now - firsts.setdefault(output.request_id, now)
                if output.speculation is not None:
                    answer.num_rounds = output.speculation.num_spec_steps
                    answer.num_spec_tokens = output.speculation.num_spec_tokens
        return list(answers.values())


def questions(count: int, *, sees: bool) -> list[tuple[str, list[Image.Image]]]:
    """Return ``count`` questions with pictures, the last one without; if not ``sees``, only that one."""
    tasks = ("describe", "count", "word", "bar", "describe")
    drawn = [sample(_SEED, i, "heldout", tasks[i % len(tasks)]) for i in range(count - 1 if sees else 0)]
    return [(one.turns[0][0], list(one.images)) for one in drawn] + [(TEXT, [])]


def prompt_of(processor: Processor, text: str, images: list[Image.Image]) -> Prompt:
    parts: list[ContentPart] = [*map(ImagePart, images), TextPart(text)]
    return processor.apply([ChatMessage("user", parts if images else text)])


def golden(
    engine: Engine, reference: Reference, processor: Processor, epsilon: float, num_tokens: int
) -> dict[str, Any]:
    """Check batched answers, without and with trees, against ``generate``.

    ``largest_gap``: see :meth:`Reference.largest_gap`.
    """
    asked = questions(4, sees=processor.supports_images)
    prompts = [prompt_of(processor, *one) for one in asked]
    inputs = [reference.inputs(*one) for one in asked]
    wanted = [reference.generate(one, num_tokens) for one in inputs]
    alike = all(p.token_ids == i["input_ids"][0].tolist() for p, i in zip(prompts, inputs, strict=True))
    equal, gaps, rounds = 0, [], 0
    for speculate in (False, True):
        answers = engine.answer(prompts, num_tokens, speculate=speculate)
        for answer, one, want in zip(answers, inputs, wanted, strict=True):
            equal += answer.token_ids == want
            gaps.append(gap(reference, one, answer.token_ids, want))
            rounds += answer.num_rounds
    return {
        "name": "answers match transformers.generate",
        "passed": alike and max(gaps) < epsilon,
        "prompts_alike": alike,
        "answers": len(gaps),
        "equal": equal,
        "near_ties": sum(gap > 0 for gap in gaps),
        "largest_gap": max(gaps),
        "epsilon": epsilon,
        "trees_verified": rounds,
        "cuda_graphs": engine.core.target.has_graphs,
    }


def gap(reference: Reference, inputs: dict[str, Any], got: list[int], want: list[int]) -> float:
    """Return how far the tokens ``got`` are from the most likely ones; 0 if they are equal to ``want``.

    Infinite if one merely ends before the other, which rounding cannot explain.
    """
    if got == want:
        return 0.0
    if not got or got[: len(want)] == want[: len(got)]:
        return float("inf")
    return reference.largest_gap(inputs, got)


def speculation(
    engine: Engine, reference: Reference, processor: Processor, epsilon: float, num_tokens: int
) -> dict[str, Any]:
    """Compare one stream with and without speculation. The speed-up is only reported.

    Texts may differ only from a near-tie on.
    """
    seconds, tokens, rounds, spec_tokens, parted, gaps = {True: 0.0, False: 0.0}, 0, 0, 0, 0, [0.0]
    asked = questions(4, sees=processor.supports_images)
    prompts = [prompt_of(processor, *one) for one in asked]
    engine.answer(prompts[:1], 8, speculate=True)  # warm-up: first use compiles and allocates
    for index, (one, prompt) in enumerate(zip(asked, prompts, strict=True)):
        found: dict[bool, Answer] = {}
        for speculate in (True, False) if index % 2 else (False, True):
            [found[speculate]] = engine.answer([prompt], num_tokens, speculate=speculate)
        rounds += found[True].num_rounds
        spec_tokens += found[True].num_spec_tokens
        if found[True].token_ids != found[False].token_ids:
            parted += 1
            inputs, (on, off) = reference.inputs(*one), (found[True].token_ids, found[False].token_ids)
            gaps += [gap(reference, inputs, on, off), gap(reference, inputs, off, on)]
            continue
        tokens += len(found[True].token_ids) - 1
        for speculate, answer in found.items():
            seconds[speculate] += answer.seconds
    return {
        "name": "answers with speculation match plain decoding",
        "passed": max(gaps) < epsilon,
        "draft": engine.core.info.draft,
        "answers": len(prompts),
        "parted_at_a_near_tie": parted,
        "largest_gap": max(gaps),
        "epsilon": epsilon,
        "tokens": tokens,
        "plain_tokens_per_second": tokens / seconds[False] if tokens else None,
        "speculative_tokens_per_second": tokens / seconds[True] if tokens else None,
        "speed_up": seconds[False] / seconds[True] if tokens else None,
        "mean_acceptance_length": spec_tokens / rounds if rounds else None,
    }

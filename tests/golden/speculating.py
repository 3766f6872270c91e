"""Cores with a draft of the test's choice, and all that a run of them says. Targets are loaded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from compressors.elastic import Elastic, ElasticConfig
from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig, SpeculativeConfig
from engine.core import EngineCore
from engine.draft.base import Drafter
from engine.draft.eagle import EagleDraft
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.files import draft_config, save_draft
from engine.draft.model import DraftModel
from engine.grammar.grammar import GrammarCompiler
from engine.messages import (
    GenerateRequest,
    RequestOutput,
    SpeculativeParams,
    TokenLogprobs,
    TracedRound,
)
from engine.sizing import Sizes
from engine.target import TargetModel
from processing.prompt import Prompt
from tests.golden.reference import Golden, request

LIMITS = SpeculativeConfig(num_steps=6, topk=8, num_draft_tokens=63)
TEXTS = (
    "Hello",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "What is in this picture, and where?",
    "1 2 3 4 5 6 7 8 9 10",
)

D = TypeVar("D", bound=EagleDrafter)
MakeDraft = Callable[[EngineConfig, TargetModel, Sizes], Drafter | None]


@dataclass(slots=True)
class Story:
    """Everything that one request was told."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    rounds: list[TracedRound] = field(default_factory=list)
    last: RequestOutput | None = None

    @property
    def end(self) -> RequestOutput:
        assert self.last is not None, "the request never ended"
        return self.last

    @property
    def histogram(self) -> list[int]:
        assert self.end.speculation is not None
        return self.end.speculation.acceptance_histogram


@lru_cache(maxsize=8)
def target_of(folder: Path, cpu_kernels: bool = True) -> tuple[TargetModel, frozenset[int]]:
    config = EngineConfig(model=str(folder), device="cpu", cpu_kernels=cpu_kernels)
    return TargetModel.load(config), read_eos_token_ids(config)


def core_of(
    golden: Golden, make: MakeDraft, grammars: GrammarCompiler | None = None, **settings: Any
) -> EngineCore:
    """A core of its own around the shared target."""
    defaults = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 300,
        "kv_cache_memory": 1 << 22,
        "page_size": 4,
        "speculative": LIMITS,
    }
    config = EngineConfig(model=str(golden.folder), device="cpu", **(defaults | settings))
    return EngineCore(config, *target_of(golden.folder, config.cpu_kernels), make, grammars=grammars)


def plain_core(golden: Golden, **settings: Any) -> EngineCore:
    return core_of(golden, lambda config, target, sizes: None, **settings)


def given(drafter: Drafter) -> MakeDraft:
    """This very drafter."""
    return lambda config, target, sizes: drafter


def prompts_of(golden: Golden) -> list[Prompt]:
    """Mixed lengths; with pictures where the family sees: none, one, two, and the same one again."""
    pictures: list[tuple[int, ...]] = [(), (1,), (2, 3), (1,)] if golden.sees else [()] * len(TEXTS)
    return [golden.prompt(text, seeds) for text, seeds in zip(TEXTS, pictures, strict=True)]


def asking(
    request_id: str,
    prompt: Prompt,
    *,
    max_tokens: int,
    speculative: SpeculativeParams | None = None,
    salt: str = "",
    **sampling: Any,
) -> GenerateRequest:
    """Greedy unless ``sampling`` says otherwise."""
    made = request(request_id, prompt, max_tokens=max_tokens, salt=salt, **sampling)
    asked = speculative if speculative is not None else SpeculativeParams()
    return GenerateRequest(
        request_id=request_id, prompt=prompt, sampling=made.sampling, speculative=asked, cache_salt=salt
    )


def run_all(
    core: EngineCore,
    arrivals: list[tuple[int, GenerateRequest]],
    aborts: Mapping[int, list[str]] | None = None,
) -> dict[str, Story]:
    """Step until nothing is left, with integrity checked every time and no page lost at the end.

    Each request joins before its step; ``aborts`` come before theirs.
    """
    stories, waiting, step = {r.request_id: Story() for _, r in arrivals}, sorted(arrivals, key=_step), 0
    while waiting or core.has_work:
        while waiting and waiting[0][0] <= step:
            core.add(waiting.pop(0)[1])
        core.abort((aborts or {}).get(step, []))
        report = core.step()
        core.check()
        for output in report.outputs:
            story = stories[output.request_id]
            assert story.last is None, f"{output.request_id} went on after its end"
            story.token_ids += output.token_ids
            story.logprobs += output.logprobs or []
            story.rounds += output.rounds or []
            if output.finish_reason is not None:
                story.last = output
        step += 1
        assert step < 3000, "the engine makes no progress"
    pages = core.scheduler.draft_pages
    assert pages is None or pages.pool.num_available == pages.pool.num_pages, "draft pages leaked"
    return stories


def num_accepted(stories: dict[str, Story]) -> int:
    ends = [story.end.speculation for story in stories.values()]
    return sum(end.num_accepted_draft_tokens for end in ends if end is not None)


def _step(arrival: tuple[int, GenerateRequest]) -> int:
    return arrival[0]


@lru_cache(maxsize=32)
def draft_folder(
    golden_folder: Path, vocabulary_size: int | None, elastic: ElasticConfig | None = None
) -> Path:
    """A draft of random weights, with a head of ``vocabulary_size`` shuffled tokens or the target's own, and
    a compressor of random weights.
    """
    target, _ = target_of(golden_folder)
    draft = EagleDraft(target.adapter.text_config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(5)
    _draw(draft, generator)
    vocabulary = None
    if vocabulary_size is not None:
        vocabulary = torch.randperm(target.vocab_size, generator=generator)[:vocabulary_size]
    compressor = None
    if elastic is not None:
        compressor = Elastic(elastic, draft.fc.out_features, draft.feature_size)
        _draw(compressor, generator)
    name = "none" if elastic is None else f"{elastic.mode} {len(elastic.branches)}"
    folder = golden_folder.parent / f"{golden_folder.name} draft {vocabulary_size} {name}"
    config = draft_config(target.adapter.text_config, "tiny", golden_folder)
    save_draft(folder, draft, config, vocabulary, compressor)
    return folder


def _draw(module: torch.nn.Module, generator: torch.Generator) -> None:
    for _, value in sorted(module.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        value.data = noise * 2 / value.shape[-1] ** 0.5 if value.dim() > 1 else 1 + 0.2 * noise


@lru_cache(maxsize=32)
def draft_model_of(
    golden_folder: Path,
    vocabulary_size: int | None,
    elastic: ElasticConfig | None = None,
    cpu_kernels: bool = True,
) -> DraftModel:
    target, _ = target_of(golden_folder, cpu_kernels)
    folder = draft_folder(golden_folder, vocabulary_size, elastic)
    return DraftModel.load(folder, target, golden_folder)


def eagle(
    golden: Golden,
    kind: type[D],
    vocabulary_size: int | None = None,
    elastic: ElasticConfig | None = None,
    **attributes: Any,
) -> Callable[[EngineConfig, TargetModel, Sizes], D]:
    """Makes an EAGLE drafter of ``kind``, with these attributes set."""

    def make(config: EngineConfig, target: TargetModel, sizes: Sizes) -> D:
        model = draft_model_of(golden.folder, vocabulary_size, elastic, config.cpu_kernels)
        caching = config.enable_prefix_caching
        drafter = kind(
            model,
            sizes.num_pages,
            config.page_size,
            target.embed,
            caching=caching,
            max_num_seqs=config.max_num_seqs,
            settings=config.speculative,
            knows_attention=target.adapter.knows_attention,
        )
        for name, value in attributes.items():
            setattr(drafter, name, value)
        return drafter

    return make

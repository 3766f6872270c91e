"""What the model gives to a prompt's own tokens, as one forward of ``transformers`` has it."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.messages import RequestOutput, TokenLogprobs
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.reference import Golden, load_golden, request
from tests.golden.speculating import prompts_of
from tests.golden.test_greedy import load
from tests.models import Family

NUM_TOP = 3


@torch.no_grad()
def wanted(golden: Golden, prompt: Prompt) -> torch.Tensor:
    """Log-probabilities ``[N - 1, vocab]`` of what follows each token but the last."""
    return golden.model(**golden.inputs_of(prompt)).logits[0, :-1].float().log_softmax(-1)


def check(golden: Golden, prompt: Prompt, told: list[TokenLogprobs] | None) -> None:
    assert told is not None
    every = wanted(golden, prompt)
    assert len(told) == len(every) == len(prompt.token_ids) - 1
    own = every.gather(1, torch.tensor(prompt.token_ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([one.logprob for one in told]), own, atol=1e-4, rtol=0)
    top = torch.tensor([one.top_logprobs for one in told])
    torch.testing.assert_close(top, every.topk(NUM_TOP).values, atol=1e-4, rtol=0)
    ids = torch.tensor([one.top_ids for one in told])
    torch.testing.assert_close(every.gather(1, ids), top, atol=1e-4, rtol=0)


def ask(core: EngineCore, prompts: list[Prompt], max_tokens: int) -> dict[str, list[RequestOutput]]:
    for number, prompt in enumerate(prompts):
        core.add(request(str(number), prompt, max_tokens=max_tokens, prompt_logprobs=NUM_TOP))
    outputs: dict[str, list[RequestOutput]] = {}
    while core.has_work:
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
        core.check()
    return outputs


@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("family", ["llava", "llama"])
def test_as_one_forward_has_them_cold_and_cached(family: Family, chunk: int, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    core = load(golden, page_size=4, max_num_batched_tokens=chunk)
    for _ in range(2):  # the second time all of it is in the cache, which does not hold logits
        outputs = ask(core, prompts, max_tokens=6)
        for number, prompt in enumerate(prompts):
            first, *later = outputs[str(number)]
            check(golden, prompt, first.prompt_logprobs)
            assert first.num_cached_tokens == 0
            assert all(output.prompt_logprobs is None for output in later)
            answer = [token for output in outputs[str(number)] for token in output.token_ids]
            golden.compare(answer, prompt, 6, f"{family}: beside its prompt's logprobs")


def test_told_once_when_preempted(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompts = prompts_of(golden)
    longest = max(len(prompt.token_ids) for prompt in prompts) + 20
    page_bytes = (1 << 20) // load(golden, page_size=4, kv_cache_memory=1 << 20).info.num_pages
    core = load(
        golden,
        page_size=4,
        max_num_batched_tokens=16,
        kv_cache_memory=(longest // 4 + 7) * page_bytes,
        max_model_len=longest,
    )
    outputs = ask(core, prompts * 2, max_tokens=20)
    assert core.stats.num_preemptions > 0, "the test must preempt"
    for number, prompt in enumerate(prompts * 2):
        first, *later = outputs[str(number)]
        check(golden, prompt, first.prompt_logprobs)
        assert all(output.prompt_logprobs is None for output in later)


def test_a_prompt_alone_can_be_asked_for(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompts = prompts_of(golden)
    config = EngineConfig(model=str(golden.folder), device="cpu", kv_cache_memory=1 << 22)
    core = EngineCore.load(config)  # with a draft, which must not begin
    for number, [only] in ask(core, prompts, max_tokens=0).items():
        check(golden, prompts[int(number)], only.prompt_logprobs)
        assert (only.token_ids, only.finish_reason) == ([], "length")


def test_who_asks_for_nothing_is_told_nothing(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    core = load(golden)
    core.add(request("a", prompts_of(golden)[0], max_tokens=3, logprobs=1))
    while core.has_work:
        assert all(output.prompt_logprobs is None for output in core.step().outputs)

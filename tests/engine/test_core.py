"""What the core promises beyond right tokens: true ends, seeds, limits, aborts, small faults."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelLoadError
from engine.messages import GenerateRequest, RequestOutput, SamplingParams
from processing.prompt import ImageInput, Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.reference import Golden, load_golden, request, run_core
from tests.models import MAX_MODEL_LEN


@pytest.fixture
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("llava"))


def load(golden: Golden, **settings: Any) -> EngineCore:
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 48, "kv_cache_memory": 1 << 23, "page_size": 4}
    return EngineCore.load(EngineConfig(model=str(golden.folder), device="cpu", **(defaults | settings)))


def outputs_of(core: EngineCore, *requests: GenerateRequest) -> list[RequestOutput]:
    for one in requests:
        core.add(one)
    outputs = []
    while core.has_work:
        outputs += core.step().outputs
    return outputs


def only(outputs: list[RequestOutput]) -> RequestOutput:
    (ended,) = [o for o in outputs if o.finish_reason is not None]
    return ended


def test_seeded_text_is_the_same_alone_and_in_a_batch_of_eight(golden: Golden) -> None:
    prompts = [golden.prompt(f"Question {i}: what is in the picture?", (i,) * (i % 3)) for i in range(8)]
    styles: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 30, "presence_penalty": 0.5},
        {"temperature": 1.0, "min_p": 0.05, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    ]
    requests = [
        request(str(i), prompt, max_tokens=24, seed=100 + i, ignore_eos=True, **styles[i % 4])
        for i, prompt in enumerate(prompts)
    ]
    together = run_core(load(golden), [(i, one) for i, one in enumerate(requests)]).token_ids
    for one in requests:
        alone = run_core(load(golden, max_num_batched_tokens=512, page_size=16), [(0, one)]).token_ids
        assert alone[one.request_id] == together[one.request_id], f"request {one.request_id}"
    reseeded = msgspec.structs.replace(
        requests[0], sampling=msgspec.structs.replace(requests[0].sampling, seed=7)
    )
    assert run_core(load(golden), [(0, reseeded)]).token_ids["0"] != together["0"]


def test_choices_of_one_seed_differ(golden: Golden) -> None:
    prompt = golden.prompt("Tell me something.")
    requests = [
        request(str(i), prompt, max_tokens=16, temperature=1.0, seed=5, choice_index=i, ignore_eos=True)
        for i in range(4)
    ]
    texts = run_core(load(golden), [(0, one) for one in requests]).token_ids.values()
    assert len({tuple(text) for text in texts}) == 4


def test_a_preempted_sampled_request_keeps_its_text(golden: Golden) -> None:
    prompts = [golden.prompt(f"Story {i}") for i in range(6)]
    requests = [
        request(str(i), p, max_tokens=40, temperature=1.0, seed=i, ignore_eos=True)
        for i, p in enumerate(prompts)
    ]
    longest = max(len(p.token_ids) for p in prompts) + 40
    pages = -(-longest // 4)
    page_bytes = (1 << 20) // load(golden, kv_cache_memory=1 << 20).info.num_pages
    roomy = run_core(load(golden), [(0, one) for one in requests]).token_ids
    cramped = load(golden, kv_cache_memory=(pages + 8) * page_bytes, max_model_len=longest)
    assert run_core(cramped, [(0, one) for one in requests]).token_ids == roomy
    assert cramped.stats.num_preemptions > 0


def test_every_end_is_true(golden: Golden) -> None:
    prompt = golden.prompt("Hello")
    free = golden.expected(prompt, 12).token_ids
    by_length = only(outputs_of(load(golden), request("a", prompt, max_tokens=3)))
    assert by_length.finish_reason == "length"
    stop = only(outputs_of(load(golden), request("a", prompt, max_tokens=12, stop_token_ids=[free[4]])))
    assert (stop.finish_reason, stop.stop_token_id, stop.token_ids) == ("stop", free[4], [free[4]])
    later = run_core(
        load(golden), [(0, request("a", prompt, max_tokens=12, stop_token_ids=[free[4]], min_tokens=8))]
    )
    assert len(later.token_ids["a"]) >= 8
    assert free[4] not in later.token_ids["a"][:8]


def test_the_context_ends_a_request_by_length(golden: Golden) -> None:
    prompt = Prompt(token_ids=[70] * (MAX_MODEL_LEN - 5))
    run = run_core(load(golden), [(0, request("a", prompt, max_tokens=1000, ignore_eos=True))])
    assert len(run.token_ids["a"]) == 5
    assert run.reasons["a"] == "length"


def test_an_accepted_path_ends_at_its_stop_token(golden: Golden) -> None:
    """Several tokens may be accepted after one span; what follows a stop is dropped before it is shared."""
    core, prompt = load(golden), golden.prompt("Hello there, how are you?")
    core.add(request("a", prompt, max_tokens=20, stop_token_ids=[7]))
    (span,) = core.scheduler.schedule().spans
    sequence = span.sequence
    sequence.table.reserve(span.end + 4)
    assert core.scheduler.commit(span, [5, 6, 7, 8, 9], span.end + 4) == [5, 6, 7]
    assert (sequence.finish_reason, sequence.num_computed) == ("stop", sequence.num_tokens)
    core.check()
    core.add(request("b", prompt, max_tokens=20))
    (span,) = [s for s in core.scheduler.schedule().spans if s.sequence.request_id == "b"]
    span.sequence.table.reserve(span.end + 2)
    assert core.scheduler.commit(span, [5, 6, 9], span.end + 2) == [5, 6, 9]
    assert span.sequence.num_wanted == 1
    core.check()


def picture_of(golden: Golden, **changes: Any) -> Prompt:
    prompt = golden.prompt("What?", (1,))
    return Prompt(token_ids=prompt.token_ids, images=[msgspec.structs.replace(prompt.images[0], **changes)])


def bad_requests(golden: Golden) -> dict[str, GenerateRequest]:
    good = golden.prompt("What?", (1,))
    wrong_shape = {"pixel_values": np.zeros((1, 3, 5, 5), dtype=np.float32)}
    start, length = good.images[0].spans[0]
    prompts = {
        "empty": Prompt(token_ids=[]),
        "too long": Prompt(token_ids=[70] * MAX_MODEL_LEN),
        "beyond the vocabulary": Prompt(token_ids=[1, 10**6]),
        "negative id": Prompt(token_ids=[-1]),
        "pixels of another size": picture_of(golden, tensors=wrong_shape),
        "no pixels": picture_of(golden, tensors={}),
        "placeholders elsewhere": picture_of(golden, spans=[(start - 1, length)]),
        "placeholders outside": picture_of(golden, spans=[(len(good.token_ids), length)]),
        "too few placeholders": picture_of(golden, spans=[(start, length - 1)]),
    }
    requests = {name: request(name, prompt, max_tokens=4) for name, prompt in prompts.items()}
    fine = golden.prompt("Hi")
    faults: dict[str, dict[str, Any]] = {
        "nan": {"temperature": float("nan")},
        "top_p": {"top_p": 0.0},
        "no tokens": {"max_tokens": -1},
        "bias id": {"logit_bias": {10**6: 1.0}},
        "stop id": {"stop_token_ids": [-3]},
        "logprobs": {"logprobs": 10**6},
        "infinite bias": {"logit_bias": {1: 1e308}},
        "vanishing penalty": {"repetition_penalty": 1e-40},
        "huge penalty": {"frequency_penalty": -1e308},
        "huge temperature": {"temperature": 1e300},
        "choice beyond 64 bits": {"choice_index": 2**64},
    }
    for name, sampling in faults.items():
        params = SamplingParams(**({"max_tokens": 4} | sampling))
        requests[name] = GenerateRequest(request_id=name, prompt=fine, sampling=params)
    return requests


def test_bad_requests_are_refused_and_others_go_on(golden: Golden) -> None:
    core, good = load(golden), golden.prompt("What is this?", (1,))
    bad = bad_requests(golden)
    run = run_core(core, [(0, request("good", good, max_tokens=10)), *((0, one) for one in bad.values())])
    golden.compare(run.token_ids["good"], good, 10, "beside bad requests")
    assert run.reasons == dict.fromkeys(bad, "error") | {"good": run.reasons["good"]}


def test_context_overflow_names_both_numbers(golden: Golden) -> None:
    end = only(outputs_of(load(golden), request("a", Prompt(token_ids=[70] * 600), max_tokens=4)))
    assert end.error is not None
    assert end.error.code == "context_length_exceeded"
    assert "600" in end.error.message
    assert str(MAX_MODEL_LEN) in end.error.message


def test_abort_at_every_stage_frees_everything(golden: Golden) -> None:
    prompt = golden.prompt("What is this? " * 6, (1, 2))
    for steps in range(8):
        core = load(golden, max_num_batched_tokens=16)
        core.add(request("a", prompt, max_tokens=30, ignore_eos=True))
        core.add(request("b", prompt, max_tokens=5))
        ended = [o for _ in range(steps) for o in core.step().outputs if o.finish_reason]
        core.abort(["a", "unknown"])
        core.check()
        while core.has_work:
            ended += [o for o in core.step().outputs if o.finish_reason]
            core.check()
        assert sorted((o.request_id, o.finish_reason) for o in ended)[0] == ("a", "abort")
        assert [o.request_id for o in ended].count("b") == 1
        assert core.stats.kv_cache_usage == 0.0


def test_a_picture_that_fails_to_encode_ends_its_request_only(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = load(golden)
    real = core.target.adapter.encode_images

    prompts = {"text": golden.prompt("Hello"), "broken": golden.prompt("What?", (2,))}
    (broken,) = prompts["broken"].images

    def failing(images: list[ImageInput]) -> Any:
        assert all(image.hash != broken.hash for image in images), "a tower may raise anything"
        return real(images)

    monkeypatch.setattr(core.target.adapter, "encode_images", failing)
    prompts["beside"] = golden.prompt("What?", (3,))  # encoded in the same step as the broken one
    run = run_core(core, [(0, request(name, p, max_tokens=8)) for name, p in prompts.items()])
    assert run.reasons["broken"] == "error"
    for name in ("text", "beside"):
        golden.compare(run.token_ids[name], prompts[name], 8, f"{name}, with a failing picture")
    again = golden.prompt("What?", (1,))
    golden.compare(
        run_core(core, [(0, request("c", again, max_tokens=8))]).token_ids["c"], again, 8, "after it"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_numbers_poison_nobody(golden: Golden, value: float) -> None:
    core, good = load(golden), golden.prompt("What?", (1,))
    pixels = np.full_like(good.images[0].tensors["pixel_values"], value)
    bad = picture_of(golden, hash=b"bad", tensors={"pixel_values": pixels})
    requests = {"bad": bad, "good": good}
    run = run_core(core, [(0, request(name, p, max_tokens=8)) for name, p in requests.items()])
    assert run.reasons["bad"] == "error"
    golden.compare(run.token_ids["good"], good, 8, "beside it")
    later = golden.prompt("What else?", (1,))
    golden.compare(run_core(core, [(0, request("l", later, max_tokens=8))]).token_ids["l"], later, 8, "after")


def test_a_model_that_stops_giving_numbers_ends_its_request_and_shares_no_page(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = load(golden)
    prompt, marked = golden.prompt("A long enough question about nothing."), golden.prompt("Number 13 please")
    real = core.target.forward

    def overflowing(context: Any, images: Any) -> Any:
        output = real(context, images)
        hidden = output.hidden.clone()
        starts, tokens = context.batch.span_starts, context.batch.token_ids.tolist()
        for start, end in itertools.pairwise(starts):
            if tokens[start:end] == marked.token_ids[-(end - start) :] and end - start > 1:
                hidden[start:end] = float("nan")
        return output._replace(hidden=hidden)

    monkeypatch.setattr(core.target, "forward", overflowing)
    run = run_core(
        core, [(0, request("bad", marked, max_tokens=8)), (0, request("good", prompt, max_tokens=8))]
    )
    assert run.reasons["bad"] == "error"
    golden.compare(run.token_ids["good"], prompt, 8, "beside it")
    monkeypatch.undo()
    again = run_core(core, [(0, request("again", marked, max_tokens=8))])
    assert again.cached["again"] <= 4 * 4, "pages of the failed request were shared"
    golden.compare(again.token_ids["again"], marked, 8, "after it")


def test_twins_keep_their_turn(golden: Golden) -> None:
    """Those who wait for pages that a twin computes are not overtaken for good by later arrivals."""
    core = load(golden, max_num_seqs=2)
    twin = golden.prompt("The same question twice, long enough to fill pages.")
    others = [golden.prompt(f"Another {i}") for i in range(4)]
    requests = [request("first", twin, max_tokens=20), request("second", twin, max_tokens=2)]
    requests += [request(f"other {i}", p, max_tokens=30, ignore_eos=True) for i, p in enumerate(others)]
    ends = [o.request_id for o in outputs_of(core, *requests) if o.finish_reason]
    assert ends.index("second") < ends.index("other 0")


def test_decoding_is_never_stalled_by_a_long_prompt(golden: Golden) -> None:
    core = load(golden, max_num_batched_tokens=16)
    core.add(request("talks", golden.prompt("Hi"), max_tokens=60, ignore_eos=True))
    while not core.scheduler.running or core.scheduler.running[0].num_wanted > 1:
        core.step()
    core.add(request("long", golden.prompt("word " * 60, (1, 2, 3)), max_tokens=2))
    for _ in range(12):
        report = core.step()
        assert "talks" in {o.request_id for o in report.outputs}
        assert report.num_tokens <= 16


def test_logprobs_come_with_each_token(golden: Golden) -> None:
    prompt = golden.prompt("Hello")
    outputs = outputs_of(load(golden), request("a", prompt, max_tokens=5, ignore_eos=True, logprobs=2))
    for output in outputs:
        assert output.logprobs is not None
        for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
            assert logprobs.top_ids[0] == token  # greedy
            assert logprobs.logprob == pytest.approx(logprobs.top_logprobs[0])
            assert len(logprobs.top_ids) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere/at/all"}, "not a folder or hub id"),
        ({"max_model_len": 10_000}, "longer than the model's own"),
        ({"kv_cache_memory": 1000}, "lower --max-model-len or raise --kv-cache-memory"),
        ({"max_num_seqs": 100, "max_num_batched_tokens": 50}, "max_num_batched_tokens"),
        ({"device": "cuda"}, "--device"),
    ],
)
def test_what_cannot_be_served_says_why(golden: Golden, changes: dict[str, Any], message: str) -> None:
    if changes.get("device") == "cuda" and __import__("torch").cuda.is_available():
        changes = {"device": "cpu", "kv_cache_memory": 1}
        message = "raise --kv-cache-memory"
    settings = {"model": str(golden.folder), "device": "cpu", "max_model_len": None} | changes
    with pytest.raises(ModelLoadError, match=message):
        EngineCore.load(EngineConfig(**settings))


def test_a_request_that_cannot_be_queued_ends_alone(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    core = load(golden)
    odd, prompt = golden.prompt("Odd"), golden.prompt("Hello")

    def positions(asked: Prompt) -> None:
        if asked.token_ids == odd.token_ids:
            raise ZeroDivisionError

    monkeypatch.setattr(core.target.adapter, "positions", positions)
    asked = {"a": prompt, "odd": odd, "b": prompt}
    requests = [request(name, one, max_tokens=8) for name, one in asked.items()]
    ends = {one.request_id: one for one in outputs_of(core, *requests) if one.finish_reason}
    assert ends["odd"].error is not None
    assert ends["odd"].error.code == "internal_error"
    assert {ends["a"].finish_reason, ends["b"].finish_reason} <= {"stop", "length"}


def test_a_lower_priority_number_ends_first(golden: Golden) -> None:
    prompt = golden.prompt("Hello")
    asked = {"late": 5, "usual": 0, "urgent": -1, "twin": 0}
    requests = [
        msgspec.structs.replace(request(name, prompt, max_tokens=4, ignore_eos=True), priority=number)
        for name, number in asked.items()
    ]
    outputs = outputs_of(load(golden, max_num_seqs=1), *requests)
    assert [one.request_id for one in outputs if one.finish_reason] == ["urgent", "usual", "twin", "late"]

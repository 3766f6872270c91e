"""From a request to its choices: admission, prompts, choices. Does not know what becomes of their pieces.

Defines the order of the steps; the parts do the work.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from engine.messages import EngineInfo, GenerateRequest
from processing.prompt import Prompt
from processing.stop import StopMatcher
from processing.tools.support import FREE, OutputPlan
from server.admission import Ticket
from server.choice import Choice, Piece
from server.deadline import deadline_after
from server.errors import bad_request, engine_unavailable, too_many_prompt_logprobs
from server.generation import Generation
from server.logprobs import LogprobFormatter
from server.sampling import sampling_params
from server.schemas.answers import PromptTokensDetails, Usage
from server.schemas.generation import GenerationFields
from server.schemas.speculation import AnswerMetrics
from server.speculation import TraceFormatter, answer_metrics, speculative_params
from server.state import ServerState
from server.timeline import Timeline
from server.version import system_fingerprint
from server.visual_compression import least_len

BuildPrompts = Callable[[EngineInfo], Awaitable[list[Prompt]]]

MAX_PROMPT_LOGPROBS = 1_000_000
"""Maximum prompt log-probabilities in an answer, including alternatives: about 400 MB while it is written."""


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """An admitted request. ``choices`` holds ``num_choices`` for each prompt, prompt by prompt.

    Iterate over ``generation`` once, then call ``close``. The counts are complete when it has ended.
    """

    prompts: list[Prompt]
    choices: list[Choice]
    generation: Generation[Piece]
    fingerprint: str

    async def wait_first(self, timeout: float) -> None:
        await self.generation.wait_first(timeout)

    def close(self) -> None:
        self.generation.close()

    def usage(self) -> Usage:
        """Return the token usage. A prompt counts once, however many choices it has."""
        firsts = self.choices[:: len(self.choices) // len(self.prompts)]
        num_spared = sum(choice.num_spared for choice in firsts)
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prompts) - num_spared
        completion_tokens = sum(choice.num_tokens for choice in self.choices)
        image_tokens = sum(image.num_tokens for prompt in self.prompts for image in prompt.images)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(choice.num_cached for choice in firsts),
                image_tokens=image_tokens - num_spared,
                uncompressed_image_tokens=image_tokens if num_spared else None,
            ),
        )

    def metrics(self) -> AnswerMetrics | None:
        return answer_metrics([choice.speculation for choice in self.choices])


async def open_answer(
    state: ServerState,
    request: GenerationFields,
    build: BuildPrompts,
    *,
    num_prompts: int = 1,
    plan: OutputPlan = FREE,
    request_id: str,
) -> OpenAnswer:
    """Admit a request and start its choices, each constrained and parsed by ``plan``. Raises ``ApiError`` if
    the request cannot be answered.
    """
    arrival, deadline = time.monotonic(), deadline_after(state.settings.request_timeout)
    if request.priority and state.settings.scheduling_policy != "priority":
        raise bad_request(
            "'priority' requires the server to be started with '--scheduling-policy priority'.",
            param="priority",
            code="unsupported_parameter",
        )
    ticket = state.admission.admit(num_prompts * request.num_choices)
    try:
        info = state.client.info
        if info is None:
            raise engine_unavailable()
        async with state.admission.preparing(deadline):
            prompts = await build(info)
        check_prompt_logprobs(request, prompts)
        choices = make_choices(
            state, request, prompts, plan, info, ticket, request_id=request_id, arrival=arrival
        )
        state.admission.check()
        ticket.wait([len(prompt.token_ids) for prompt in prompts])  # after rejecting what can never run
        ticket.hold(picture_bytes(prompts))
    except BaseException:
        ticket.release()
        raise
    generation = Generation(
        [choice.pieces() for choice in choices],
        partial(state.client.when_ended, [choice.request_id for choice in choices], ticket.release),
        deadline,
        weight=lambda piece: piece.weight,
        keeps_all=not request.stream,
    )
    return OpenAnswer(prompts, choices, generation, system_fingerprint(info))


def check_prompt_logprobs(request: GenerationFields, prompts: list[Prompt]) -> None:
    """Raise ``ApiError`` if there would be too many prompt log-probabilities, which are sent in one piece."""
    if request.num_prompt_logprobs is None:
        return
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    count = tokens * request.num_choices * (1 + request.num_prompt_logprobs)
    if count > MAX_PROMPT_LOGPROBS:
        raise too_many_prompt_logprobs(count, MAX_PROMPT_LOGPROBS)


def picture_bytes(prompts: list[Prompt]) -> int:
    """Return the bytes of all picture tensors. Choices share them, as do equal pictures in the engine."""
    images = {image.hash: image for prompt in prompts for image in prompt.images}
    return sum(tensor.nbytes for image in images.values() for tensor in image.tensors.values())


def make_choices(
    state: ServerState,
    request: GenerationFields,
    prompts: list[Prompt],
    plan: OutputPlan,
    info: EngineInfo,
    ticket: Ticket,
    *,
    request_id: str,
    arrival: float,
) -> list[Choice]:
    """Return the choices, all with the same seed; the engine's noise differs by ``choice_index``, which
    starts at 0 for each prompt, so that each prompt is answered as it would be alone."""
    speculative = speculative_params(request.speculative, request.image_details, info.compressors)
    unique_id = f"{request_id}-{secrets.token_hex(4)}"
    num_top = request.num_logprobs
    logprobs = None if num_top is None else LogprobFormatter(state.processor, num_top)
    choices: list[Choice] = []
    for number, prompt in enumerate(prompts):
        prompt_len = least_len(prompt, request.lossy, info.visual_compression)
        sampling = sampling_params(request, state.defaults, prompt_len, info, plan.grammar)
        for choice_index in range(request.num_choices):
            index = len(choices)
            generate = GenerateRequest(
                request_id=f"{unique_id}-{index}",
                prompt=prompt,
                sampling=replace(sampling, choice_index=choice_index),
                speculative=speculative,
                visual_compression=request.lossy,
                cache_salt=request.cache_salt,
                priority=request.priority,
            )
            choices.append(
                Choice(
                    state.client,
                    generate,
                    index=index,
                    on_first_token=partial(ticket.started, number),
                    detokenizer=state.processor.detokenizer(
                        skip_special_tokens=request.skip_special_tokens,
                        at_text_start=request.starts_text,
                        shown_ids=plan.shown_ids,
                    ),
                    stop=StopMatcher(request.stop_strings, include_stop=request.include_stop_str_in_output),
                    plan=plan,
                    form_field=request.form_field,
                    logprobs=logprobs,
                    trace=TraceFormatter(state.processor, index) if request.traces else None,
                    timeline=Timeline(state.metrics, arrival, len(prompt.token_ids)),
                )
            )
    return choices

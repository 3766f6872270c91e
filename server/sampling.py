"""From sampling fields of a request to the engine's parameters. Knows defaults and limits; knows no text."""

from __future__ import annotations

import secrets
from typing import Any, Final, TypeVar

import msgspec

from engine.messages import EngineInfo, SamplingParams
from server.errors import bad_request, context_overflow
from server.schemas.generation import GenerationFields

# The engine's minimum, used for anything smaller. Both leave only the most likely token.
TOP_P_MIN: Final = 1e-6

Number = TypeVar("Number", int, float)


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults from the model's ``generation_config.json``, for what a client does not specify."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    @classmethod
    def from_generation_config(cls, config: dict[str, Any]) -> SamplingDefaults:
        """``do_sample: false`` means greedy, whatever the temperature next to it, as in transformers; a file
        without ``do_sample`` says nothing about it.
        """
        found = msgspec.convert(config, cls)
        return msgspec.structs.replace(found, temperature=0.0) if config.get("do_sample") is False else found


def sampling_params(
    request: GenerationFields,
    defaults: SamplingDefaults,
    prompt_len: int,
    info: EngineInfo,
    grammar: str | None = None,
) -> SamplingParams:
    """Return the parameters of choice 0. Raises ``ApiError`` if they conflict, also with the model."""
    max_tokens = _max_tokens(request, defaults, prompt_len, info.max_model_len)
    if request.min_tokens > max_tokens:
        raise bad_request("'min_tokens' must not be greater than 'max_tokens'.", param="min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=first_given(request.temperature, defaults.temperature, 1.0),
        top_p=max(TOP_P_MIN, first_given(request.top_p, defaults.top_p, 1.0)),
        top_k=max(0, first_given(request.top_k, defaults.top_k, 0)),
        min_p=first_given(request.min_p, defaults.min_p, 0.0),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=first_given(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request, info.vocab_size),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        stop_token_ids=_known("stop_token_ids", request.stop_token_ids or [], info.vocab_size),
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
        grammar=grammar,
    )


def _max_tokens(
    request: GenerationFields, defaults: SamplingDefaults, prompt_len: int, max_model_len: int
) -> int:
    asked = request.token_limit
    room = max_model_len - prompt_len
    if room < (1 if asked is None else asked):
        raise context_overflow(max_model_len, request.prompt_field, prompt_len, asked)
    return asked if asked is not None else min(room, defaults.max_new_tokens or room)


def _logit_bias(request: GenerationFields, vocab_size: int) -> dict[int, float]:
    biases = {int(token_id): bias for token_id, bias in (request.logit_bias or {}).items()}
    _known("logit_bias", list(biases), vocab_size)
    return biases


def _known(param: str, token_ids: list[int], vocab_size: int) -> list[int]:
    if any(token_id >= vocab_size for token_id in token_ids):
        raise bad_request(f"'{param}' has a token ID outside the model's {vocab_size} tokens.", param=param)
    return token_ids


def first_given(asked: Number | None, recommended: Number | None, neutral: Number) -> Number:
    if asked is not None:
        return asked
    return neutral if recommended is None else recommended

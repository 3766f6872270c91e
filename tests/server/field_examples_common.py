"""Examples of fields that several endpoints have, and how examples are written."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
Example = tuple[Json, Json]
"""What is added to the endpoint's ``BASE``, without the field and with it."""


def alone(**fields: Any) -> dict[str, Example]:
    return {name: ({}, {name: value}) for name, value in fields.items()}


def inside(field: str, base: Any, **paths: Any) -> dict[str, Example]:
    """``paths``: names below ``field``, with the value of all of ``field`` in which they differ."""
    return {f"{field}.{path}": ({field: base}, {field: value}) for path, value in paths.items()}


COMMON = {
    **alone(
        cache_salt="x",
        frequency_penalty=1,
        ignore_eos=True,
        logit_bias={"65": 5},
        min_p=0.1,
        min_tokens=2,
        model="other",
        presence_penalty=1,
        priority=1,
        repetition_penalty=1.1,
        request_id="mine",
        seed=1,
        skip_special_tokens=False,
        speculative={"enabled": False},
        stop="wor",
        stop_token_ids=[65],
        stream=True,
        temperature=0.5,
        top_k=3,
        top_p=0.5,
    ),
    **inside(
        "speculative",
        {},
        compressor={"compressor": "pool"},
        enabled={"enabled": False},
        num_draft_tokens={"num_draft_tokens": 3},
        num_steps={"num_steps": 3},
        topk={"topk": 3},
        trace={"trace": True},
    ),
    "include_stop_str_in_output": ({"stop": "wor"}, {"stop": "wor", "include_stop_str_in_output": True}),
}
PICTURES = {
    **alone(visual_compression={"method": "pool"}),
    **inside(
        "visual_compression",
        {"method": "pool"},
        method={"method": "prune"},
        ratio={"method": "pool", "ratio": 2},
    ),
}
"""Of endpoints that take pictures."""
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
OLDER = {
    **alone(max_tokens=3, n=2),
    "stream_options": ({"stream": True}, STREAMED),
    "stream_options.include_usage": ({"stream": True}, STREAMED),
    "stream_options.continuous_usage_stats": (
        STREAMED,
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
}
NOT_OBFUSCATED = {
    "stream_options.include_obfuscation": (
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    )
}

BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}
CACHE_HINTS = alone(
    prompt_cache_key="k",
    prompt_cache_options={"mode": "implicit", "ttl": "30m"},
    prompt_cache_retention="24h",
    safety_identifier="s",
    service_tier="flex",
    user="u",
)

VLLM_REFUSED: dict[str, Json] = {
    name: {name: value}
    for name, value in {
        "allowed_token_ids": [65],
        "bad_words": ["x"],
        "guided_choice": ["a", "b"],
        "guided_grammar": "start: A",
        "guided_json": {"type": "integer"},
        "guided_regex": "a+",
        "length_penalty": 2.0,
        "prompt_logprobs": 1,
        "spaces_between_special_tokens": False,
        "truncate_prompt_tokens": 10,
        "use_beam_search": True,
    }.items()
}

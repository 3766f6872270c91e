"""vLLM's additions to the OpenAI fields that are not supported here.

Tools set such fields to values that request nothing; these are accepted. Any other value is an error that
names the field and says what to send instead.
"""

from __future__ import annotations

from typing import Annotated, Final

from server.schemas.base import JsonObject, Refused, RequestModel

IN_CHATS: Final = "Send 'structured_outputs' to /v1/chat/completions."
BIAS: Final = "Use 'logit_bias' to make tokens more or less likely."


class VllmFields(RequestModel):
    """Fields of every request with a prompt."""

    allowed_token_ids: Annotated[list[int] | None, Refused(instead=BIAS)] = None
    bad_words: Annotated[list[str] | None, Refused((None, []), BIAS)] = None
    guided_choice: Annotated[list[str] | None, Refused(instead=IN_CHATS)] = None
    guided_grammar: Annotated[str | None, Refused()] = None
    guided_json: Annotated[str | JsonObject | None, Refused(instead=IN_CHATS)] = None
    guided_regex: Annotated[str | None, Refused(instead=IN_CHATS)] = None
    length_penalty: Annotated[float | None, Refused((None, 1.0))] = None
    prompt_logprobs: Annotated[int | None, Refused()] = None
    spaces_between_special_tokens: Annotated[bool | None, Refused((None, True))] = None
    truncate_prompt_tokens: Annotated[int | None, Refused()] = None
    use_beam_search: Annotated[bool | None, Refused((None, False))] = None


class VllmChatFields(RequestModel):
    """Fields of conversations only."""

    add_generation_prompt: Annotated[bool | None, Refused((None, True))] = None
    continue_final_message: Annotated[bool | None, Refused((None, False))] = None
    mm_processor_kwargs: Annotated[JsonObject | None, Refused((None, {}))] = None

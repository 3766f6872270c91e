"""A request to ``/v1/chat/completions``.

Every field of the OpenAI schema is here, so that no unmodified client is refused for its spelling. Those
that change nothing here are accepted (``FieldsWithoutEffect``). Those that would change the answer and
are not built are accepted only with a value that asks for nothing (``NEUTRAL_VALUES``); any other value is
refused by name, never ignored. A test compares the fields with those of the ``openai`` package.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.base import ClientModel, JsonObject
from server.schemas.generation import GenerationFields
from server.schemas.messages import Message
from server.schemas.output import OutputFields
from server.schemas.sampling import MaxTokens

NO_TOOL_CALLS: Final = (None, "none", "auto")

NEUTRAL_VALUES: Final[dict[str, tuple[object, ...]]] = {
    "audio": (None,),
    "function_call": NO_TOOL_CALLS,
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}


class FieldsWithoutEffect(ClientModel):
    """Book-keeping and hints of the hosted API; the answer is the same with and without them."""

    metadata: JsonObject | None = None
    prediction: JsonObject | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None


class UnbuiltFields(ClientModel):
    """Would change the answer and are not built: any value that asks for something is refused."""

    audio: JsonObject | None = None
    function_call: str | JsonObject | None = None
    functions: list[JsonObject] | None = None
    modalities: list[str] | None = None
    moderation: JsonObject | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: JsonObject | None = None

    @model_validator(mode="after")
    def _asks_for_nothing_unbuilt(self) -> Self:
        functions_are_off = self.function_call == "none"
        for name, neutral in NEUTRAL_VALUES.items():
            if getattr(self, name) not in neutral and not (name == "functions" and functions_are_off):
                instead = " Send 'tools' and 'tool_choice'." if name.startswith("function") else ""
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "'{name}' is not supported by this server.{instead}",
                    {"name": name, "instead": instead},
                )
        return self


class ChatRequest(GenerationFields, OutputFields, FieldsWithoutEffect, UnbuiltFields):
    prompt_field: ClassVar[str] = "messages"

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "invalid_combination", "'{name}' needs 'logprobs' to be true.", {"name": "top_logprobs"}
            )
        both_limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both_limits) > 1:
            raise PydanticCustomError(
                "invalid_combination",
                "'{name}' and 'max_completion_tokens' differ; send one of them.",
                {"name": "max_tokens"},
            )
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

"""A request to ``/v1/chat/completions``.

Every field of the OpenAI schema is here, so that unmodified clients work. Fields that have no effect here
are accepted (``NO_EFFECT``). Fields that would change the answer and are not supported (``Refused``) are
accepted only with a value that requests nothing; any other value is an error that names the field, never
ignored. A test compares the fields with those of the ``openai`` package.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.base import NO_EFFECT, JsonObject, Refused
from server.schemas.generation import GenerationFields
from server.schemas.labels import Label, Metadata
from server.schemas.messages import Conversation, ImageDetail, ImageUrl, media_in
from server.schemas.output import OutputFields
from server.schemas.sampling import MaxTokens
from server.schemas.visual_compression import PictureFields
from server.schemas.vllm import VllmChatFields

FORMATS: Final = ("response_format", "structured_outputs")
USE_TOOLS: Final = "Send 'tools' and 'tool_choice'."


class ChatRequest(PictureFields, GenerationFields, OutputFields, VllmChatFields):
    prompt_field: ClassVar[str] = "messages"

    messages: Conversation
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    metadata: Annotated[Metadata | None, NO_EFFECT] = None
    prediction: Annotated[JsonObject | None, NO_EFFECT] = None
    prompt_cache_key: Annotated[Label | None, NO_EFFECT] = None
    prompt_cache_options: Annotated[JsonObject | None, NO_EFFECT] = None
    prompt_cache_retention: Annotated[Label | None, NO_EFFECT] = None
    safety_identifier: Annotated[Label | None, NO_EFFECT] = None
    reasoning_effort: Annotated[Label | None, NO_EFFECT] = None
    service_tier: Annotated[Label | None, NO_EFFECT] = None
    store: Annotated[bool | None, NO_EFFECT] = None
    user: Annotated[Label | None, NO_EFFECT] = None
    verbosity: Annotated[Label | None, NO_EFFECT] = None

    audio: Annotated[JsonObject | None, Refused()] = None
    function_call: Annotated[str | JsonObject | None, Refused((None, "none", "auto"), USE_TOOLS)] = None
    functions: Annotated[list[JsonObject] | None, Refused((None, []), USE_TOOLS)] = None
    modalities: Annotated[list[str] | None, Refused((None, ["text"]))] = None
    moderation: Annotated[JsonObject | None, Refused()] = None
    web_search_options: Annotated[JsonObject | None, Refused()] = None

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
    def image_details(self) -> list[ImageDetail]:
        """Empty if there is a video: the number of pictures in it is unknown until it is read."""
        found = media_in(self.messages)
        pictures = [one for one in found if isinstance(one, ImageUrl)]
        return [picture.detail for picture in pictures] if len(pictures) == len(found) else []

    @property
    def form_field(self) -> str:
        formats = (name for name in FORMATS if getattr(self, name) is not None)
        return next(formats, "tools")

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

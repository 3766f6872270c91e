"""A request to ``/v1/responses``.

Every field of the OpenAI schema is here. What would need a store of responses or tools of the server's own is
accepted only with a value that asks for nothing; any other value is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag

from server.schemas.base import MAX_SHOWN, NO_EFFECT, ClientModel, JsonObject, Refused
from server.schemas.generation import CommonFields
from server.schemas.labels import Label, Metadata
from server.schemas.messages import MAX_MESSAGES, ImageDetail, few_parts
from server.schemas.sampling import MaxTokens
from server.schemas.visual_compression import PictureFields

LOGPROBS: Final = "message.output_text.logprobs"


class InputText(ClientModel):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None


class InputImage(ClientModel):
    type: Literal["input_image"]
    image_url: str = Field(min_length=1, description="An http(s), data or file URL; the last where allowed.")
    detail: ImageDetail | None = Field("auto", description="How much of the picture the draft sees.")
    file_id: None = Field(None, description="Refused: no files are stored.")
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None


class OutputText(ClientModel):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[JsonObject] | None, NO_EFFECT] = None
    logprobs: Annotated[list[JsonObject] | None, NO_EFFECT] = None


class Refusal(ClientModel):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | InputImage | OutputText | Refusal, Field(discriminator="type")]
Status = Literal["in_progress", "completed", "incomplete"]


class InputMessage(ClientModel):
    """A message as clients write it, and as they send back what we answered."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[Status | None, NO_EFFECT] = None
    phase: Annotated[str | None, NO_EFFECT] = None


class FunctionCall(ClientModel):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    async_: Annotated[bool | None, NO_EFFECT] = Field(
        None,
        alias="async",
        validation_alias=AliasChoices("async", "async_"),
        description="Clients keep it from an answer.",
    )
    caller: Annotated[JsonObject | None, NO_EFFECT] = None
    namespace: Annotated[str | None, NO_EFFECT] = None
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[Status | None, NO_EFFECT] = None


class FunctionCallOutput(ClientModel):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    caller: Annotated[JsonObject | None, NO_EFFECT] = None
    name: Annotated[str | None, NO_EFFECT] = None
    namespace: Annotated[str | None, NO_EFFECT] = None
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[Status | None, NO_EFFECT] = None


def item_kind(value: Any) -> str:
    """What has no type is a message. In brackets, names of kinds stay out of the names of parameters."""
    kind = value.get("type", "message") if isinstance(value, dict) else "message"
    return f"[{kind[:MAX_SHOWN]}]" if isinstance(kind, str) else "[of another type]"


InputItem = Annotated[
    Annotated[InputMessage, Tag("[message]")]
    | Annotated[FunctionCall, Tag("[function_call]")]
    | Annotated[FunctionCallOutput, Tag("[function_call_output]")],
    Discriminator(item_kind),
]


Items = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), BeforeValidator(few_parts)]


class TextConfig(ClientModel):
    format: JsonObject | None = Field(None, description="As 'response_format' of a chat, one level flatter.")
    verbosity: Annotated[Label | None, NO_EFFECT] = None


class ResponseStreamOptions(ClientModel):
    include_obfuscation: Annotated[bool | None, NO_EFFECT] = None


class ResponsesRequest(PictureFields, CommonFields):
    input: str | Items
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: MaxTokens | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = Field(
        None, description=f"'{LOGPROBS}'. Others name what is never part of an answer here."
    )
    text: TextConfig | None = None
    tools: list[JsonObject] | None = Field(None, description="Functions.")
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = Field(None, description="Comes back with the response.")

    max_tool_calls: Annotated[int | None, NO_EFFECT] = Field(None, description="Of tools that servers run.")
    prompt_cache_key: Annotated[Label | None, NO_EFFECT] = None
    prompt_cache_options: Annotated[JsonObject | None, NO_EFFECT] = None
    prompt_cache_retention: Annotated[Label | None, NO_EFFECT] = None
    reasoning: Annotated[JsonObject | None, NO_EFFECT] = None
    safety_identifier: Annotated[Label | None, NO_EFFECT] = None
    service_tier: Annotated[Label | None, NO_EFFECT] = None
    stream_options: Annotated[ResponseStreamOptions | None, NO_EFFECT] = None
    truncation: Annotated[Literal["auto", "disabled"] | None, NO_EFFECT] = Field(
        None, description="Nothing is dropped: what is too long is refused."
    )
    user: Annotated[Label | None, NO_EFFECT] = None

    access_programs: Annotated[JsonObject | None, Refused()] = None
    background: Annotated[bool | None, Refused((None, False))] = None
    background_options: Annotated[JsonObject | None, Refused()] = None
    context_management: Annotated[list[JsonObject] | None, Refused((None, []))] = None
    conversation: Annotated[str | JsonObject | None, Refused()] = None
    image: Annotated[JsonObject | None, Refused()] = None
    moderation: Annotated[JsonObject | None, Refused()] = None
    previous_response_id: Annotated[
        str | None, Refused(instead="Nothing is stored: send the conversation in 'input'.")
    ] = None
    prompt: Annotated[JsonObject | None, Refused()] = None
    store: Annotated[bool | None, Refused((None, False), "Responses are not stored.")] = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

"""A request to ``/v1/responses``.

Every field of the OpenAI schema is here. Those that would need stored responses or server-side tools are
accepted only with a value that requests nothing; any other value is an error that names the field.
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
    image_url: str = Field(min_length=1, description="An http(s), data or file URL; file only where allowed.")
    detail: ImageDetail | None = Field("auto", description="How much of the image the draft sees.")
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
    """A message, written by the client or sent back from an earlier response."""

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
        description="Kept by clients from a response.",
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
    """Return the tag of an item; one without a type is a message.

    The brackets keep tags out of parameter names, see ``server.errors.parameter_name``.
    """
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
    format: JsonObject | None = Field(None, description="As a chat's 'response_format', one level flatter.")
    verbosity: Annotated[Label | None, NO_EFFECT] = None


class ResponseStreamOptions(ClientModel):
    include_obfuscation: Annotated[bool | None, NO_EFFECT] = None


class ResponsesRequest(PictureFields, CommonFields):
    input: str | Items
    instructions: str | None = Field(None, description="A system message to put before the input.")
    max_output_tokens: MaxTokens | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = Field(
        None, description=f"'{LOGPROBS}'. Other values have no effect: their data is never in a response."
    )
    text: TextConfig | None = None
    tools: list[JsonObject] | None = Field(None, description="Functions only.")
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = Field(None, description="Returned with the response.")

    max_tool_calls: Annotated[int | None, NO_EFFECT] = Field(None, description="Concerns server-side tools.")
    prompt_cache_key: Annotated[Label | None, NO_EFFECT] = None
    prompt_cache_options: Annotated[JsonObject | None, NO_EFFECT] = None
    prompt_cache_retention: Annotated[Label | None, NO_EFFECT] = None
    reasoning: Annotated[JsonObject | None, NO_EFFECT] = None
    safety_identifier: Annotated[Label | None, NO_EFFECT] = None
    service_tier: Annotated[Label | None, NO_EFFECT] = None
    stream_options: Annotated[ResponseStreamOptions | None, NO_EFFECT] = None
    truncation: Annotated[Literal["auto", "disabled"] | None, NO_EFFECT] = Field(
        None, description="Nothing is truncated: input that is too long is rejected."
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

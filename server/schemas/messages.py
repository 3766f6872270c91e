"""Messages of a conversation, in the format of the OpenAI API.

Fields that other servers put into their responses (``refusal``, ``annotations``, ``audio``) are accepted in
assistant messages, because clients send these messages back unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from server.schemas.base import NO_EFFECT, ClientModel, JsonObject
from server.schemas.tools import MAX_TOOLS, CalledTool

MAX_MESSAGES: Final = 4096
MAX_PARTS: Final = 8192
"""Maximum content parts and tool calls of a conversation: each takes ten microseconds of the event loop."""

ImageDetail = Literal["auto", "low", "high", "original"]


class TextPart(ClientModel):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None
    cache_control: Annotated[JsonObject | None, NO_EFFECT] = Field(
        None, description="Prefix caching is automatic here."
    )


class RefusalPart(ClientModel):
    type: Literal["refusal"]
    refusal: str


class ImageUrl(ClientModel):
    url: str = Field(min_length=1, description="An http(s), data or file URL; file URLs only where allowed.")
    detail: ImageDetail = Field(
        "auto",
        description="How much of the image the draft sees, which affects only the speed; the resolution is "
        "up to the model's own processor.",
    )


class ImagePart(ClientModel):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None
    cache_control: Annotated[JsonObject | None, NO_EFFECT] = Field(
        None, description="Prefix caching is automatic here."
    )


class VideoUrl(ClientModel):
    url: str = Field(
        min_length=1,
        description="'data:video/jpeg;base64,FRAME,FRAME,...', or an animation as a data URL.",
    )


class VideoPart(ClientModel):
    """Frames, which become pictures in the same order."""

    type: Literal["video_url"]
    video_url: VideoUrl


class SystemMessage(ClientModel):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(ClientModel):
    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]]
    name: str | None = None


class AssistantMessage(ClientModel):
    role: Literal["assistant"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[JsonObject] | None, NO_EFFECT] = None
    parsed: Annotated[Any, NO_EFFECT] = Field(None, description="Set by the `openai` package.")
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None


class ToolMessage(ClientModel):
    """The result of a function call in an assistant message."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def few_parts(messages: Any) -> Any:
    """Check the number of parts; a validator to run before all others of a conversation or an input."""
    told = (
        [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    )
    lists = [message.get(name) for message in told for name in ("content", "tool_calls", "output")]
    count = sum(len(one) for one in lists if isinstance(one, list))
    if count > MAX_PARTS:
        raise PydanticCustomError(
            "too_many_parts",
            "{count} parts and calls; at most {limit} are allowed. Join texts, or send fewer messages.",
            {"count": count, "limit": MAX_PARTS},
        )
    return messages


Conversation = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES), BeforeValidator(few_parts)
]


def media_in(messages: Sequence[Message]) -> list[ImageUrl | VideoUrl]:
    """Return the pictures and videos in order of appearance."""
    return [
        part.image_url if isinstance(part, ImagePart) else part.video_url
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ImagePart | VideoPart)
    ]

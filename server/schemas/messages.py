"""Messages of a conversation, as the OpenAI API spells them.

Fields that other servers put into their answers (``refusal``, ``annotations``, ``audio``) are accepted in
assistant messages, because clients send those back as they got them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from server.schemas.base import NO_EFFECT, ClientModel, JsonObject
from server.schemas.tools import MAX_TOOLS, CalledTool

ImageDetail = Literal["auto", "low", "high", "original"]


class TextPart(ClientModel):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None
    cache_control: Annotated[JsonObject | None, NO_EFFECT] = Field(
        None, description="What is cached here is found again unasked."
    )


class RefusalPart(ClientModel):
    type: Literal["refusal"]
    refusal: str


class ImageUrl(ClientModel):
    url: str = Field(min_length=1, description="An http(s), data or file URL; the last only where allowed.")
    detail: ImageDetail = Field(
        "auto",
        description="How much of the picture the draft sees, which changes speed alone; the model's own "
        "processor decides the resolution.",
    )


class ImagePart(ClientModel):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Annotated[JsonObject | None, NO_EFFECT] = None
    cache_control: Annotated[JsonObject | None, NO_EFFECT] = Field(
        None, description="What is cached here is found again unasked."
    )


class VideoUrl(ClientModel):
    url: str = Field(
        min_length=1,
        description="'data:video/jpeg;base64,FRAME,FRAME,...', or an animation as a data URL.",
    )


class VideoPart(ClientModel):
    """Frames, which become pictures in their order."""

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
    parsed: Annotated[Any, NO_EFFECT] = Field(None, description="The `openai` package puts it there.")
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None


class ToolMessage(ClientModel):
    """What a function said that an assistant's message called."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def media_in(messages: Sequence[Message]) -> list[ImageUrl | VideoUrl]:
    """In their order of appearance."""
    return [
        part.image_url if isinstance(part, ImagePart) else part.video_url
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ImagePart | VideoPart)
    ]

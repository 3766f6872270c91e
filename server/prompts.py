"""From messages to a prompt: fetches pictures and tokenizes everything off the event loop.

Knows how many pictures are allowed. Does not know where they come from or how a template works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from PIL import Image

from processing import chat
from processing.control import strings_in
from processing.errors import PromptError
from processing.prompt import Prompt
from processing.tools.support import FREE, OutputPlan
from server.errors import bad_request, context_overflow, images_unavailable
from server.media import MediaError, MediaUnavailable, Pictures, Video
from server.media_video import MAX_SAMPLED, is_animation, num_frames
from server.schemas.messages import (
    AssistantMessage,
    ImagePart,
    ImageUrl,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
    VideoPart,
    VideoUrl,
    media_in,
)
from server.schemas.tools import CalledTool

if TYPE_CHECKING:
    from processing.processor import Processor

PROMPT_THREADS: Final = 4
NO_ARGUMENTS: Final[Mapping[str, Any]] = MappingProxyType({})

T = TypeVar("T")


class ImageLoader(Protocol):
    """Interface of ``server.media.MediaLoader``, which bounds its own work and stays off the event loop."""

    def load(self, sources: Sequence[str | Video]) -> AbstractAsyncContextManager[Pictures]: ...

    async def aclose(self) -> None: ...


class PromptBuilder:
    def __init__(self, processor: Processor, media: ImageLoader, max_images: int) -> None:
        self._processor = processor
        self._media = media
        self._max_images = max_images
        self._pool = ThreadPoolExecutor(PROMPT_THREADS, "prompt")
        self._longest_token: int | None = None

    async def aclose(self) -> None:
        await self._media.aclose()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def build(
        self,
        messages: Sequence[Message],
        plan: OutputPlan = FREE,
        template_kwargs: Mapping[str, Any] = NO_ARGUMENTS,
        *,
        max_images: int | None = None,
        max_len: int | None = None,
    ) -> Prompt:
        """Return the prompt of a chat. Raises ``ApiError`` if a picture cannot be loaded or the chat cannot
        become a prompt.

        ``plan``: how the model is told of its tools. ``max_len``, in tokens: texts that exceed it however
        they are tokenized are rejected before they reach the tokenizer.
        """
        sources = self._sources(media_in(messages), max_images)
        if max_len is not None:
            await self._check_length(num_bytes(texts_in(messages)), max_len, "messages")
        try:
            async with self._media.load(sources) as pictures:
                given = (
                    dict(template_kwargs) if plan.tools is None else {**template_kwargs, "tools": plan.tools}
                )

                def apply() -> Prompt:
                    conversation = plan.add_tools(with_images(messages, pictures.images))
                    return self._processor.apply(conversation, template_kwargs=given)

                return await pictures.run(self._pool, apply)
        except MediaError as error:
            raise bad_request(error.message, param="messages", code=error.code) from None
        except MediaUnavailable:
            raise images_unavailable() from None
        except PromptError as error:
            raise bad_request(str(error), param="messages", code="invalid_prompt") from None

    async def build_text(
        self, prompt: str | list[int], *, add_special_tokens: bool = True, max_len: int | None = None
    ) -> Prompt:
        """Return the prompt of token ids or a text, whose special tokens are parsed. Raises ``ApiError``."""
        if isinstance(prompt, str):
            if max_len is not None:
                await self._check_length(num_bytes([prompt]), max_len, "prompt")
            token_ids = await self.in_pool(self._processor.encode, prompt, add_special_tokens)
        else:
            token_ids = prompt
        vocab_size = self._processor.vocab_size
        if not token_ids:
            raise bad_request("A prompt must not be empty.", param="prompt")
        if max_len is not None and len(token_ids) > max_len:  # before further prompts of a list are read
            raise context_overflow(max_len, "prompt", len(token_ids))
        if max(token_ids) >= vocab_size:
            raise bad_request(
                f"A prompt has a token ID outside the model's {vocab_size} tokens.", param="prompt"
            )
        if self._processor.image_token_id in token_ids:
            raise bad_request(
                "A prompt contains the image placeholder token; send images to /v1/chat/completions.",
                param="prompt",
            )
        return Prompt(token_ids=token_ids)

    async def in_pool(self, call: Callable[..., T], *args: Any) -> T:
        """Run tokenizer work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    async def _check_length(self, size: int, max_len: int, param: str) -> None:
        """Raise ``ApiError`` if ``size`` bytes cannot fit. (A rare character may take a token per byte.)"""
        if size <= max_len:
            return
        if self._longest_token is None:
            self._longest_token = await self.in_pool(longest_token, self._processor)
        if size > max_len * self._longest_token:
            raise context_overflow(max_len, param, size // self._longest_token, at_least=True)

    def _sources(self, found: Sequence[ImageUrl | VideoUrl], max_of_model: int | None) -> list[str | Video]:
        """Return what to load. Every frame counts as a picture; animations share the remaining number."""
        limit = self._max_images if max_of_model is None else min(self._max_images, max_of_model)
        videos = [one.url for one in found if isinstance(one, VideoUrl)]
        num_images = len(found) - len(videos) + sum(map(num_frames, videos))
        if num_images > limit:
            raise bad_request(
                f"A request may have at most {limit} images; this one has {num_images}.",
                param="messages",
                code="too_many_images",
            )
        num_animations = sum(map(is_animation, videos)) or 1
        most = min(MAX_SAMPLED, 1 + (limit - num_images) // num_animations)
        return [Video(one.url, most) if isinstance(one, VideoUrl) else one.url for one in found]


def longest_token(processor: Processor) -> int:
    """Return the length of the longest token in bytes."""
    return max(len(processor.token_bytes(token_id)) for token_id in range(processor.vocab_size))


def num_bytes(texts: Iterable[str]) -> int:
    """Return the size of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def texts_in(messages: Sequence[Message]) -> Iterator[str]:
    """Yield all text that a template may print."""
    return chain.from_iterable(map(texts_of, messages))


def texts_of(message: Message) -> Iterator[str]:
    content = message.content
    for part in [content] if isinstance(content, str) else content or ():
        match part:
            case str():
                yield part
            case TextPart():
                yield part.text
            case RefusalPart():
                yield part.refusal
    yield from strings_in(extra_of(message))
    if isinstance(message, AssistantMessage):
        yield message.refusal or ""


def calls_of(message: Message) -> Sequence[CalledTool]:
    return (message.tool_calls or ()) if isinstance(message, AssistantMessage) else ()


def with_images(
    messages: Sequence[Message], images: Sequence[Sequence[Image.Image]]
) -> list[chat.ChatMessage]:
    """Return the conversation as plain data; ``images``: those of each picture or video, in order."""
    remaining = iter(images)

    def convert(part: TextPart | RefusalPart | ImagePart | VideoPart) -> list[chat.ContentPart]:
        match part:
            case TextPart():
                return [chat.TextPart(part.text)]
            case RefusalPart():
                return [chat.TextPart(part.refusal)]
            case ImagePart() | VideoPart():
                return [chat.ImagePart(image) for image in next(remaining)]

    conversation = []
    for message in messages:
        content = message.content
        if not content:
            content = (isinstance(message, AssistantMessage) and message.refusal) or content or ""
        told = content if isinstance(content, str) else list(chain.from_iterable(map(convert, content)))
        # OpenAI's newer name for the same role; templates of open models know the older one.
        role = "system" if message.role == "developer" else message.role
        conversation.append(chat.ChatMessage(role, told, extra_of(message)))
    return conversation


def spelled(call: CalledTool) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def extra_of(message: Message) -> dict[str, Any]:
    """Return the fields that chat templates read from a message besides its role and content."""
    extra: dict[str, Any] = {"name": message.name} if message.name is not None else {}
    if calls := calls_of(message):
        extra["tool_calls"] = [spelled(call) for call in calls]
    if isinstance(message, ToolMessage):
        extra["tool_call_id"] = message.tool_call_id
    return extra

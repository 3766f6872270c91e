"""Requests and responses of ``/tokenize`` and ``/detokenize``, in vLLM's format."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag

from server.schemas.base import AnswerModel, ClientModel
from server.schemas.messages import Conversation
from server.schemas.sampling import TokenId

MAX_BYTES: Final = 4_000_000
"""Maximum UTF-8 size of a request's texts, which bounds their tokens and the time of a shared thread."""

MAX_TOKENS: Final = 1_000_000
"""Maximum tokens that are returned by ``/tokenize`` or accepted by ``/detokenize``."""


class TokenizeText(ClientModel):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChat(ClientModel):
    model: str | None = None
    messages: Conversation
    return_token_strs: bool | None = None


def tokenize_kind(value: object) -> str:
    return "[chat]" if isinstance(value, dict) and "messages" in value else "[text]"


# The brackets keep the tags out of parameter names, see ``server.errors.parameter_name``.
TokenizeRequest = Annotated[
    Annotated[TokenizeChat, Tag("[chat]")] | Annotated[TokenizeText, Tag("[text]")],
    Discriminator(tokenize_kind),
]


class TokenizeAnswer(AnswerModel):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(ClientModel):
    model: str | None = None
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


class DetokenizeAnswer(AnswerModel):
    prompt: str

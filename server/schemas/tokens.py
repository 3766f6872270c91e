"""Requests and answers of ``/tokenize`` and ``/detokenize``, in vLLM's shapes."""

from __future__ import annotations

from pydantic import Field

from server.schemas.base import AnswerModel, ClientModel
from server.schemas.messages import Message
from server.schemas.sampling import TokenId


class TokenizeText(ClientModel):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChat(ClientModel):
    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=4096)
    return_token_strs: bool | None = None


class TokenizeAnswer(AnswerModel):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(ClientModel):
    model: str | None = None
    tokens: list[TokenId] = Field(max_length=1_000_000)


class DetokenizeAnswer(AnswerModel):
    prompt: str

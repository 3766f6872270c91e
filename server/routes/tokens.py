"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter

from processing.tools.request import OutputRequest
from server.body import StrictRoute
from server.deadline import deadline_after
from server.errors import bad_request
from server.prompts import num_bytes, texts_in
from server.schemas.tokens import (
    MAX_BYTES,
    MAX_TOKENS,
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeChat,
    TokenizeRequest,
)
from server.state import ServerState, State

if TYPE_CHECKING:
    from processing.processor import Processor

router = APIRouter(route_class=StrictRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, state: State) -> TokenizeAnswer:
    """Return the token ids of a text, or of a conversation including image placeholders."""
    processor, prompts = state.processor, state.prompts
    field = "messages" if isinstance(body, TokenizeChat) else "prompt"
    async with admitted(state, body.model):
        if isinstance(body, TokenizeChat):
            refuse_long(texts_in(body.messages), field)
            plan = processor.tools.plan(OutputRequest())  # that of a chat without tools
            tokens = (await prompts.build(body.messages, plan)).token_ids
        else:
            refuse_long([body.prompt], field)
            tokens = await prompts.in_pool(processor.encode, body.prompt, body.add_special_tokens)
        if len(tokens) > MAX_TOKENS:
            raise bad_request(
                f"'{field}' has {len(tokens)} tokens; at most {MAX_TOKENS} can be returned. Split it.",
                param=field,
            )
        strings = await prompts.in_pool(texts_of, processor, tokens) if body.return_token_strs else None
    return TokenizeAnswer(
        count=len(tokens), max_model_len=state.max_model_len, tokens=tokens, token_strs=strings
    )


def refuse_long(texts: Iterable[str], field: str) -> None:
    """Raise ``ApiError`` if texts are too long to be tokenized."""
    if (size := num_bytes(texts)) > MAX_BYTES:
        raise bad_request(
            f"'{field}' has {size} bytes of text; at most {MAX_BYTES} are allowed. Split it.",
            param=field,
        )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeAnswer:
    """Return the text of token ids, including special tokens."""
    processor = state.processor
    if max(body.tokens, default=0) >= processor.vocab_size:
        raise bad_request(
            f"'tokens' has a token ID outside the model's {processor.vocab_size} tokens.", param="tokens"
        )
    decode = partial(processor.decode, skip_special_tokens=False)
    async with admitted(state, body.model):
        return DetokenizeAnswer(prompt=await state.prompts.in_pool(decode, body.tokens))


def texts_of(processor: Processor, tokens: Sequence[int]) -> list[str]:
    return [processor.token_text(token_id) for token_id in tokens]


@asynccontextmanager
async def admitted(state: ServerState, model: str | None) -> AsyncIterator[None]:
    """Admit a request. These share threads with generating requests, so also the queue and the time limit."""
    state.served_name(model)
    ticket = state.admission.admit(1, needs_engine=False)
    try:
        async with state.admission.preparing(deadline_after(state.settings.request_timeout)):
            yield
    finally:
        ticket.release()

"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from server.body import StrictRoute
from server.schemas.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeChat,
    TokenizeText,
)
from server.state import State

router = APIRouter(route_class=StrictRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeChat | TokenizeText, state: State) -> TokenizeAnswer:
    """The token ids of a text, or of a conversation with its pictures' placeholders."""
    state.served_name(body.model)
    processor = state.parts.processor
    if isinstance(body, TokenizeChat):
        prompt = await state.parts.prompts.build(body.messages)
        tokens = prompt.token_ids
    else:
        tokens = await state.parts.prompts.in_pool(processor.encode, body.prompt, body.add_special_tokens)
    strings = [processor.token_text(token_id) for token_id in tokens] if body.return_token_strs else None
    return TokenizeAnswer(
        count=len(tokens), max_model_len=state.max_model_len, tokens=tokens, token_strs=strings
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeAnswer:
    """The text of token ids, special tokens included."""
    state.served_name(body.model)
    decode = partial(state.parts.processor.decode, skip_special_tokens=False)
    return DetokenizeAnswer(prompt=await state.parts.prompts.in_pool(decode, body.tokens))

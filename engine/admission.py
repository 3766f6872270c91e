"""Whether the engine can serve a request at all. Everything is checked again here: the edge may be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.adapters.base import Adapter
from engine.messages import GenerateRequest, RejectCode


class Rejected(ValueError):
    """The request can never be served; ``code`` and the message go to the client."""

    def __init__(self, code: RejectCode, message: str) -> None:
        super().__init__(message)
        self.code: RejectCode = code


@dataclass(slots=True, frozen=True)
class Admission:
    """What a request must fit."""

    adapter: Adapter
    vocab_size: int
    max_model_len: int
    encoder_cache_tokens: int

    def check(self, request: GenerateRequest) -> None:
        """Raise ``Rejected`` unless the request can be served from beginning to end."""
        self._check_prompt(request)
        self._check_images(request)
        self._check_sampling(request)

    def _check_prompt(self, request: GenerateRequest) -> None:
        token_ids = request.prompt.token_ids
        if not token_ids:
            raise Rejected("invalid_request", "the prompt is empty")
        if len(token_ids) >= self.max_model_len:
            raise Rejected(
                "context_length_exceeded",
                f"the prompt has {len(token_ids)} tokens, the model's context {self.max_model_len}: "
                "it leaves no room for an answer",
            )
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            raise Rejected("invalid_request", f"token ids must lie in 0..{self.vocab_size - 1}")

    def _check_images(self, request: GenerateRequest) -> None:
        position, token_ids = 0, request.prompt.token_ids
        for image in request.prompt.images:
            for start, length in image.spans:
                if length < 1 or start < position or start + length > len(token_ids):
                    raise Rejected(
                        "invalid_request", "picture placeholders overlap or lie outside the prompt"
                    )
                if set(token_ids[start : start + length]) != {self.adapter.image_token_id}:
                    raise Rejected(
                        "invalid_request", "a picture's placeholders are not the model's image token"
                    )
                position = start + length
            if image.num_tokens > self.encoder_cache_tokens:
                raise Rejected(
                    "out_of_memory",
                    f"a picture takes {image.num_tokens} visual tokens, more than the encoder cache's "
                    f"{self.encoder_cache_tokens}",
                )
            try:
                self.adapter.check_image(image)
            except ValueError as error:
                raise Rejected("invalid_request", str(error)) from error

    def _check_sampling(self, request: GenerateRequest) -> None:
        p = request.sampling
        numbers = [
            p.temperature,
            p.top_p,
            p.min_p,
            p.frequency_penalty,
            p.presence_penalty,
            p.repetition_penalty,
        ]
        if not all(map(math.isfinite, [*numbers, *p.logit_bias.values()])):
            raise Rejected("invalid_request", "sampling parameters must be finite numbers")
        if p.max_tokens < 1 or p.min_tokens < 0 or p.temperature < 0 or not 0 < p.top_p <= 1 or p.top_k < 0:
            raise Rejected("invalid_request", "a sampling parameter is out of range")
        if not 0 <= p.min_p <= 1 or p.repetition_penalty <= 0 or p.choice_index < 0:
            raise Rejected("invalid_request", "a sampling parameter is out of range")
        ids = [*p.stop_token_ids, *p.logit_bias]
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise Rejected("invalid_request", f"token ids must lie in 0..{self.vocab_size - 1}")
        if p.logprobs is not None and not 0 <= p.logprobs <= self.vocab_size:
            raise Rejected("invalid_request", f"logprobs must lie in 0..{self.vocab_size}")

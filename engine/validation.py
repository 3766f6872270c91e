"""Validates requests on arrival in the engine. Everything is checked again here: the server may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from engine.adapters.base import Adapter
from engine.config import CompressorName, VisualCompression
from engine.errors import ModelLoadError
from engine.grammar.grammar import MAX_GRAMMAR_CHARS
from engine.messages import GenerateRequest, RejectCode
from engine.visual_compression import compressed

# Outside these ranges, float32 arithmetic on logits gives infinities or leaves nothing to draw.
_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (0, 2**31),
    "min_tokens": (0, 2**31),
    "temperature": (0, 100),
    "top_p": (1e-6, 1),
    "top_k": (0, 2**31),
    "min_p": (0, 1),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "repetition_penalty": (0.01, 100),
    "choice_index": (0, 2**31),
    "seed": (-(2**63), 2**64 - 1),
}
_MAX_BIAS = 1000.0
_MAX_STOP_IDS = 1024


class Rejected(ValueError):
    """The request can never be served; ``code`` and the message are sent to the client."""

    def __init__(self, code: RejectCode, message: str) -> None:
        super().__init__(message)
        self.code: RejectCode = code


@dataclass(slots=True, frozen=True)
class RequestValidator:
    """The limits that a request must meet.

    ``visual_compression``: the default compression of pictures for the target itself, if that is allowed.
    """

    adapter: Adapter
    vocab_size: int
    max_model_len: int
    encoder_cache_tokens: int
    compressors: tuple[CompressorName, ...]
    visual_compression: VisualCompression | None = None

    def __post_init__(self) -> None:
        if self.visual_compression is not None and not self.adapter.can_spare_tokens:
            raise ModelLoadError("--target-visual-compression is not supported for this model's family")

    def admit(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request as it is to be run: the same, unless pictures are compressed for the target.

        Raises ``Rejected`` unless the request can be served completely.
        """
        self._check_images(request)
        request = self._compressed(request)
        self._check_prompt(request)
        self._check_sampling(request)
        self._check_speculation(request)
        return request

    def _compressed(self, request: GenerateRequest) -> GenerateRequest:
        how = request.visual_compression or self.visual_compression
        if how is None or how.method == "none":
            return request
        if self.visual_compression is None:
            raise Rejected(
                "invalid_request", "visual_compression was not allowed when the engine was started"
            )
        try:
            return replace(request, prompt=compressed(request.prompt, how, self.adapter))
        except ValueError as error:
            raise Rejected("invalid_request", str(error)) from error

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

    def _check_speculation(self, request: GenerateRequest) -> None:
        asked = request.speculative
        if asked.compressor not in self.compressors:
            raise Rejected(
                "invalid_request",
                f"the draft has no compressor {asked.compressor!r}; it has {', '.join(self.compressors)}",
            )
        if asked.details and len(asked.details) != len(request.prompt.images):
            raise Rejected("invalid_request", "details must have one entry for each picture")

    def _check_sampling(self, request: GenerateRequest) -> None:
        p = request.sampling
        for name, (low, high) in _RANGES.items():
            value = getattr(p, name)
            if not low <= value <= high:  # false for NaN too
                raise Rejected("invalid_request", f"{name} must lie in {low}..{high}, got {value}")
        if not all(abs(bias) <= _MAX_BIAS for bias in p.logit_bias.values()):
            raise Rejected("invalid_request", f"logit_bias must lie in -{_MAX_BIAS}..{_MAX_BIAS}")
        ids = [*p.stop_token_ids, *p.logit_bias]
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise Rejected("invalid_request", f"token ids must lie in 0..{self.vocab_size - 1}")
        if len(p.stop_token_ids) > _MAX_STOP_IDS:
            raise Rejected("invalid_request", f"at most {_MAX_STOP_IDS} stop_token_ids are allowed")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(p, name)
            if count is not None and not 0 <= count <= self.vocab_size:
                raise Rejected("invalid_request", f"{name} must lie in 0..{self.vocab_size}")
        if p.grammar is not None:
            if len(p.grammar) > MAX_GRAMMAR_CHARS:
                raise Rejected("invalid_grammar", f"a grammar has at most {MAX_GRAMMAR_CHARS} characters")
            if p.ignore_eos:
                raise Rejected("invalid_request", "with a grammar ignore_eos would leave no token to draw")

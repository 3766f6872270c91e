"""Stand-ins for what is behind HTTP: an engine that says what it is told to, and a processor of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.client import EngineDeadError, EngineState, ReportListener, RequestRejectedError
from engine.config import VisualCompression
from engine.messages import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerateRequest,
    RequestOutput,
    RequestTimings,
    StepReport,
    TokenLogprobs,
    TracedRound,
)
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.detokenizer import Detokenizer
from processing.prompt import ImageInput, Prompt
from processing.tools.support import ToolSupport
from processing.vocabulary import Vocabulary
from tests.server.drafting import drafted, statistics

EOS_TEXT, IMAGE_TEXT = "<|end|>", "<image>"
IMAGE_TOKENS = 4
MAX_MODEL_LEN = 256


def byte_tokenizer() -> Tokenizer:
    """256 tokens of one byte, so that an emoji takes four, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS_TEXT), AddedToken(IMAGE_TEXT)])
    return tokenizer


class ByteProcessor:
    """``processing.processor.Processor`` of bytes; a picture takes ``IMAGE_TOKENS`` tokens."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.vocabulary = Vocabulary(self.tokenizer)
        self.vocab_size = len(self.vocabulary)
        self.eos = self.tokenizer.token_to_id(EOS_TEXT)
        self.image = self.tokenizer.token_to_id(IMAGE_TEXT)
        self.applied: tuple[list[ChatMessage], dict[str, Any] | None] = ([], None)

    template_arguments = frozenset({"mode"})

    @property
    def tools(self) -> ToolSupport:
        """As of a model whose template knows tools, in the style of Hermes."""
        return ToolSupport("{{ tools }}<tool_call>", takes_tools=True, special_id=lambda text: None)

    @property
    def image_token_id(self) -> int:
        return self.image

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, **how: Any) -> Detokenizer:
        return Detokenizer(self.vocabulary, **how)

    def token_bytes(self, token_id: int) -> bytes:
        return self.vocabulary.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        return self.vocabulary.token_text(token_id)

    def apply(
        self, messages: Sequence[ChatMessage], *, template_kwargs: dict[str, Any] | None = None
    ) -> Prompt:
        self.applied = list(messages), template_kwargs
        token_ids: list[int] = []
        images: list[ImageInput] = []
        for message in messages:
            token_ids += self.encode(f"{message.role}:")
            for part in message.parts:
                match part:
                    case TextPart(text):
                        token_ids += self.encode(text)
                    case ImagePart(image):
                        images.append(self._image(image, len(token_ids)))
                        token_ids += [self.image] * IMAGE_TOKENS
        return Prompt(token_ids=token_ids, images=images)

    def _image(self, image: Image.Image, offset: int) -> ImageInput:
        pixels = np.asarray(image.convert("RGB").resize((2, 2)), dtype=np.float32)
        return ImageInput(
            hash=pixels.tobytes()[:16], spans=[(offset, IMAGE_TOKENS)], tensors={"pixel_values": pixels}
        )


Answer = Callable[[GenerateRequest], AsyncGenerator[RequestOutput, None]]


class FakeEngineClient:
    """``EngineClient`` that answers by ``answer``. Everything a test wants to know is recorded."""

    def __init__(self, processor: ByteProcessor) -> None:
        self.processor = processor
        self.state: EngineState = "loading"
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.listeners: list[ReportListener] = []
        self.loads = True
        self.visual_compression: VisualCompression | None = None
        self.reset()

    def reset(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.closed_early: list[str] = []
        self.num_open = 0
        self.unheard: list[tuple[list[str], Callable[[], None]]] | None = None
        self.stalled = False
        self.answer: Answer = self.says("Hello, world!")
        if self.state != "loading":
            self.state = "ready"

    def add_listener(self, listener: ReportListener) -> None:
        self.listeners.append(listener)

    async def start(self) -> None:
        if not self.loads:
            self.state = "failed"
            return
        self.state = "ready"
        self.info = EngineInfo(
            model="fake",
            family="fake",
            dtype="float32",
            device="cpu",
            vocab_size=len(self.processor.vocabulary),
            max_model_len=MAX_MODEL_LEN,
            max_images=None,
            num_pages=1,
            page_size=16,
            load_seconds=0.0,
            draft="ngram",
            num_steps=6,
            topk=4,
            num_draft_tokens=32,
            compressors=("auto", "none", "text_only", "pool"),
            visual_compression=self.visual_compression,
        )

    async def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        if self.info is None:
            raise EngineDeadError("the weights are missing")
        return self.info

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        if self.state != "ready":
            raise EngineDeadError(f"the engine is {self.state}")
        self.requests.append(request)
        self.num_open += 1
        ended = False
        try:
            async for output in self.answer(request):
                while self.stalled and self.state == "ready":  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                if self.state == "failed":
                    ended = True
                    raise EngineDeadError("the engine died")
                if self.state == "stopped":
                    ended = True
                    yield RequestOutput(request_id=request.request_id, token_ids=[], finish_reason="abort")
                    return
                ended = output.finish_reason is not None
                yield output
        finally:
            self.num_open -= 1
            if not ended:
                self.closed_early.append(request.request_id)

    def when_ended(self, request_ids: Iterable[str], callback: Callable[[], None]) -> None:
        """``unheard`` is not ``None``: as while the engine is in a long step."""
        if self.unheard is None:
            callback()
        else:
            self.unheard.append((list(request_ids), callback))

    async def shutdown(self, timeout: float = 0.0) -> None:
        try:
            async with asyncio.timeout(timeout):
                while self.num_open:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        except TimeoutError:
            pass
        self.state = "stopped"

    def report(self, stats: EngineStats, num_tokens: int = 0) -> None:
        self.stats = stats
        for listener in self.listeners:
            listener(StepReport(outputs=[], stats=stats, num_tokens=num_tokens))

    def says(
        self,
        text: str,
        *,
        step: int = 1,
        finish_reason: FinishReason = "stop",
        num_cached: int = 0,
        pause: float = 0.0,
        drafts: bool = False,
    ) -> Answer:
        """``text`` in steps of ``step`` tokens; ended by the EOS token, or cut by ``max_tokens``.

        With ``drafts`` each step of a request that speculates is a round of ``tests.server.drafting``.
        """
        ids = self.processor.encode(text)
        if finish_reason == "stop":
            ids = [*ids, self.processor.eos]

        async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
            allowed = ids[: request.sampling.max_tokens]
            stops = len(allowed) == len(ids) and finish_reason == "stop"
            rounds: list[TracedRound] = []
            for start in range(0, max(1, len(allowed)), step):
                await asyncio.sleep(pause)
                chunk = allowed[start : start + step]
                is_last = start + step >= len(allowed)
                if drafts and request.speculative.enabled:
                    rounds.append(drafted(chunk))
                yield RequestOutput(
                    request_id=request.request_id,
                    token_ids=chunk,
                    logprobs=self._logprobs(request.sampling.logprobs, chunk),
                    prompt_logprobs=None
                    if start
                    else self._logprobs(request.sampling.prompt_logprobs, request.prompt.token_ids[1:]),
                    finish_reason=("stop" if stops else "length") if is_last else None,
                    stop_token_id=self.processor.eos if is_last and stops else None,
                    num_cached_tokens=num_cached,
                    timings=RequestTimings(queue=0.1, prefill=0.2, decode=0.3) if is_last else None,
                    speculation=statistics(rounds) if is_last and drafts else None,
                    rounds=rounds[-1:] if request.speculative.trace else None,
                )

        return answer

    def rejects(self, error: RequestRejectedError | EngineDeadError, *, after: str = "") -> Answer:
        async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
            if after:
                ids = self.processor.encode(after)
                yield RequestOutput(request_id=request.request_id, token_ids=ids)
            raise error

        return answer

    def _logprobs(self, num_top: int | None, token_ids: list[int]) -> list[TokenLogprobs] | None:
        if num_top is None:
            return None
        return [
            TokenLogprobs(
                logprob=-0.5,
                top_ids=[token_id, *range(num_top - 1)][:num_top],
                top_logprobs=[-0.5, *[float("-inf")] * (num_top - 1)][:num_top],
            )
            for token_id in token_ids
        ]

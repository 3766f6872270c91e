"""The offline API: answers a batch of chats with pictures in this process.

    from engine.llm import LLM
    from processing.chat import ChatMessage, ImagePart, TextPart

    llm = LLM("path/to/model")
    chat = [ChatMessage("user", [ImagePart(picture), TextPart("What is this?")])]
    print(llm.generate([chat], max_tokens=64)[0].text)

Uses the same step loop as the server, without any transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.loop import run_to_completion
from engine.messages import FinishReason, GenerateRequest, RequestOutput, SamplingParams
from processing.chat import ChatMessage
from processing.errors import PromptError
from processing.processor import Processor


@dataclass(slots=True)
class Completion:
    """One answer. ``token_ids`` includes the stop token, if one ended the answer; ``text`` does not."""

    num_prompt_tokens: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    error: str | None = None


class LLM:
    """A loaded model and its processor. ``settings`` are the fields of ``EngineConfig``."""

    def __init__(self, model: str, **settings: Any) -> None:
        config = EngineConfig(model=model, **settings)
        self.processor = Processor.from_pretrained(model, config.revision, config.trust_remote_code)
        self.core = EngineCore.load(config)
        # As many as run together, and as many again ready to follow: pixels of more would only take memory.
        self._max_open = 2 * config.max_num_seqs

    def generate(
        self, chats: Sequence[Sequence[ChatMessage]], *, progress: bool = True, **sampling: Any
    ) -> list[Completion]:
        """Answer every chat, in order. ``sampling`` are the fields of ``SamplingParams``.

        By default ``temperature`` is 0 and ``max_tokens`` is what the context leaves. As many chats run
        together as the engine's limits allow. A chat that the template or the engine refuses gets a
        ``Completion`` with ``error``; the others are answered.
        """
        defaults = {"temperature": 0.0, "max_tokens": self.core.info.max_model_len}
        params = SamplingParams(**(defaults | sampling))
        completions = [Completion() for _ in chats]
        with tqdm(total=len(chats), desc="answers", unit="chat", disable=not progress) as bar:
            requests = self._requests(chats, params, completions, bar)
            for output in run_to_completion(self.core, requests, max_open=self._max_open):
                self._add(completions[int(output.request_id)], output)
                if output.finish_reason is not None:
                    bar.update()
        return completions

    def _requests(
        self,
        chats: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        completions: list[Completion],
        bar: tqdm[Any],
    ) -> Iterator[GenerateRequest]:
        """Yield requests lazily, while earlier ones run, so that the pixels of all chats never coexist."""
        for index, (chat, completion) in enumerate(zip(chats, completions, strict=True)):
            try:
                prompt = self.processor.apply(chat)
            except PromptError as error:
                completion.finish_reason, completion.error = "error", str(error)
                bar.update()
                continue
            completion.num_prompt_tokens = len(prompt.token_ids)
            yield GenerateRequest(request_id=str(index), prompt=prompt, sampling=params)

    def _add(self, completion: Completion, output: RequestOutput) -> None:
        completion.token_ids += output.token_ids
        if output.finish_reason is not None:
            completion.finish_reason = output.finish_reason
            completion.num_prompt_tokens -= output.num_spared_tokens
            completion.num_cached_tokens = output.num_cached_tokens
            completion.error = output.error.message if output.error else None
            stop = 1 if output.stop_token_id is not None else 0
            completion.text = self.processor.decode(completion.token_ids[: len(completion.token_ids) - stop])

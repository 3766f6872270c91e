"""Drives the engine in-process, as the server's engine process does: ``add``, then ``step``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.settings import Settings
from benchmarks.workload import Chat, Trace
from engine.config import EngineConfig, VisualCompression
from engine.core import EngineCore
from engine.draft.choose import MakeDrafter, choose_drafter
from engine.messages import GenerateRequest, SamplingParams, SpeculativeParams, StepReport
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.processor import Processor
from processing.prompt import Prompt

SPECULATE = SpeculativeParams()


class Ours:
    def __init__(self, settings: Settings, make_drafter: MakeDrafter = choose_drafter, **config: Any) -> None:
        engine_config = EngineConfig(
            model=settings.model, device="cpu", dtype="float32", num_threads=settings.threads, **config
        )
        self.core = EngineCore.load(engine_config, make_drafter)
        self._processor = Processor.from_pretrained(settings.model)
        self._ids = itertools.count()

    @property
    def target(self) -> Any:
        """The engine's model, for timing its forward passes."""
        return self.core.target

    def run(
        self, chats: Sequence[Chat], num_tokens: int, step: Callable[[], StepReport] | None = None
    ) -> list[Trace]:
        """Generate exactly ``num_tokens`` greedily for each chat, all at once.

        Timing starts with decoded pictures.
        """
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        traces = self.answer(chats, sampling, step=step)
        assert all(len(trace.token_ids) == num_tokens for trace in traces)
        return traces

    def answer(
        self,
        chats: Sequence[Chat],
        sampling: SamplingParams,
        speculative: SpeculativeParams = SPECULATE,
        *,
        salt: str = "",
        lossy: VisualCompression | None = None,
        step: Callable[[], StepReport] | None = None,
    ) -> list[Trace]:
        """Answer all chats at once. ``salt``: runs with different ones share no cached prefix."""
        step = step or self.core.step
        traces: dict[str, Trace] = {}
        for chat in chats:
            request_id = str(next(self._ids))
            traces[request_id] = Trace(time.perf_counter())
            self.core.add(
                GenerateRequest(
                    request_id=request_id,
                    prompt=self._prompt(chat),
                    sampling=sampling,
                    speculative=speculative,
                    visual_compression=lossy,
                    cache_salt=salt,
                )
            )
        while self.core.has_work:
            report, now = step(), time.perf_counter()
            for output in report.outputs:
                assert output.error is None, output.error
                trace = traces[output.request_id]
                trace.token_ids += output.token_ids
                trace.token_times += [now] * len(output.token_ids)
                trace.speculation = output.speculation
        return list(traces.values())

    def text(self, trace: Trace) -> str:
        return self._processor.decode(trace.token_ids).strip()

    def _prompt(self, chat: Chat) -> Prompt:
        return self._processor.apply([_message(message) for message in chat])


def _message(message: dict[str, Any]) -> ChatMessage:
    parts = [
        ImagePart(part["image"]) if part["type"] == "image" else TextPart(part["text"])
        for part in message["content"]
    ]
    return ChatMessage(message["role"], parts)

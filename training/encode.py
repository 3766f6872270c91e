"""Encodes dialogues to token ids as serving does, and marks the tokens that the draft is to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from processing.errors import PromptError
from processing.processor import Processor
from processing.prompt import Prompt
from training.errors import DataError
from training.records import Dialogue, Document, Item

Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes items with the target's processor.

    ``stop_ids``: tokens that end an answer. ``mask``: ``assistant``, or ``all`` to predict every token except
    those of pictures.
    """

    processor: Processor
    stop_ids: frozenset[int]
    mask: str
    max_length: int

    def prompt(self, item: Item) -> Prompt:
        """Encode the whole item. Raises ``DataError`` if the chat template rejects it."""
        if isinstance(item, Document):
            return Prompt(token_ids=self.processor.encode_plain(item.text, True)[: self.max_length])
        return self._apply(item, len(item.messages), answering=False)

    def spans(self, item: Item, token_ids: Sequence[int]) -> Spans:
        """Return the half-open ranges of ``token_ids`` to be predicted, in order.

        An answer begins where the model would begin when serving (after the preceding chat, rendered with the
        template's generation prompt) and ends with the token that would stop the model. If the template
        renders earlier turns differently once later ones follow, there is no such place, and the answer is
        skipped.
        """
        if isinstance(item, Document) or self.mask == "all":
            return self._all_but_pictures(token_ids)
        spans: Spans = []
        for index, message in enumerate(item.messages):
            if message.role != "assistant":
                continue
            before = self._apply(item, index, answering=True).token_ids
            after = self._apply(item, index + 1, answering=False).token_ids
            if before == list(token_ids[: len(before)]) and after == list(token_ids[: len(after)]):
                stops = (i for i in range(len(before), len(after)) if after[i] in self.stop_ids)
                spans.append((len(before), next(stops, len(after) - 1) + 1))
        return [(start, end) for start, end in spans if start < end]

    def _apply(self, dialogue: Dialogue, num_messages: int, *, answering: bool) -> Prompt:
        part = Dialogue(dialogue.messages[:num_messages], dialogue.where)
        try:
            return self.processor.apply(part.chat(), add_generation_prompt=answering)
        except PromptError as error:
            raise DataError(f"{dialogue.where}: {error}") from error

    def _all_but_pictures(self, token_ids: Sequence[int]) -> Spans:
        spans: Spans = []
        start = 1  # token 0 has no predecessor to predict it from
        for i, token_id in enumerate([*token_ids, self.processor.image_token_id]):
            if token_id == self.processor.image_token_id or i == len(token_ids):
                if start < i:
                    spans.append((start, i))
                start = i + 1
        return spans

"""Speculation between HTTP and engine: parameters, metrics and traces. Knows no text and no order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from engine import messages
from engine.messages import Detail, ShownPicture, SpeculationStats, SpeculativeParams
from server.errors import bad_request
from server.schemas.messages import ImageDetail
from server.schemas.speculation import (
    AnswerMetrics,
    SeenPicture,
    SpeculativeDecoding,
    SpeculativeFields,
    TracedRound,
)

if TYPE_CHECKING:
    from processing.processor import Processor


DETAILS: Final[dict[ImageDetail, Detail]] = {
    "auto": "auto",
    "low": "low",
    "high": "high",
    "original": "high",
}


def speculative_params(
    asked: SpeculativeFields | None, details: Sequence[ImageDetail], compressors: Sequence[str]
) -> SpeculativeParams:
    """Return the engine's parameters. ``details``: that of each picture. ``compressors``: those of the loaded
    draft. Raises ``ApiError`` if another one is requested.
    """
    asked = asked or SpeculativeFields.model_validate({})
    if asked.compressor not in compressors:
        raise bad_request(
            f"'speculative.compressor' '{asked.compressor}' is not supported by the draft of this server; "
            f"use one of: {', '.join(compressors)}.",
            param="speculative.compressor",
            code="unsupported_parameter",
        )
    wanted = [DETAILS[detail] for detail in details]
    return SpeculativeParams(
        enabled=asked.enabled,
        num_steps=asked.num_steps,
        topk=asked.topk,
        num_draft_tokens=asked.num_draft_tokens,
        trace=asked.trace,
        compressor=asked.compressor,
        details=wanted if set(wanted) - {"auto"} else [],
    )


def answer_metrics(choices: Sequence[SpeculationStats | None]) -> AnswerMetrics | None:
    """Return sums over all choices; ``None`` unless the engine reported on each, as a part would mislead."""
    reported = [stats for stats in choices if stats is not None]
    if len(reported) < len(choices):
        return None
    num_rounds = sum(stats.num_spec_steps for stats in reported)
    num_drafts = sum(stats.num_draft_tokens for stats in reported)
    num_accepted = sum(stats.num_accepted_draft_tokens for stats in reported)
    histograms = (stats.acceptance_histogram for stats in reported)
    return AnswerMetrics(
        speculative_decoding=SpeculativeDecoding(
            num_spec_steps=num_rounds,
            num_draft_tokens=num_drafts,
            num_accepted_draft_tokens=num_accepted,
            mean_acceptance_length=(num_accepted + num_rounds) / num_rounds if num_rounds else None,
            draft_acceptance_rate=num_accepted / num_drafts if num_drafts else None,
            acceptance_histogram=[sum(counts) for counts in zip_longest(*histograms, fillvalue=0)],
            num_spec_tokens=sum(stats.num_spec_tokens for stats in reported),
            **seen_pictures(reported[0]),
        )
    )


def seen_pictures(stats: SpeculationStats) -> dict[str, Any]:
    """Return the metrics about the pictures of a prompt, which all choices have in common."""
    branches = {shown.compressor for shown in stats.pictures if shown.compressor is not None}
    kept = sum(shown.visual_tokens for shown in stats.pictures)
    return {
        "compressor": "mixed" if len(branches) > 1 else next(iter(branches), None),
        "visual_tokens": stats.visual_tokens,
        "draft_visual_tokens": kept if stats.pictures else None,
        "pictures": [seen_picture(shown) for shown in stats.pictures if shown.grids] or None,
    }


def seen_picture(shown: ShownPicture) -> SeenPicture:
    """Return a picture's entry in a trace."""
    return SeenPicture(
        compressor=shown.compressor,
        visual_tokens=sum(rows * columns for rows, columns in shown.grids),
        draft_visual_tokens=shown.visual_tokens,
        grids=shown.grids,
        sources=shown.sources,
    )


class TraceFormatter:
    """Formats the rounds of one choice for the client."""

    def __init__(self, processor: Processor, index: int) -> None:
        self._processor = processor
        self._index = index

    def format(self, rounds: Sequence[messages.TracedRound], position: int) -> Iterator[TracedRound]:
        """Yield ``rounds`` for the client. ``position``: output tokens of the choice before the first one."""
        for one in rounds:
            yield TracedRound(
                index=self._index,
                position=position,
                token_ids=one.token_ids,
                tokens=[self._processor.token_text(token_id) for token_id in one.token_ids],
                parents=one.parents,
                accepted=one.accepted,
                bonus_token_id=one.bonus_token_id,
                bonus_token=self._processor.token_text(one.bonus_token_id),
            )
            position += len(one.accepted) + 1

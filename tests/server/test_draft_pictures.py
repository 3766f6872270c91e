"""What a draft sees of pictures, over HTTP: how a client bounds it, and how it hears of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import openai
import pytest

from engine.messages import GenerateRequest, RequestOutput, ShownPicture, SpeculationStats
from server.speculation import answer_metrics
from tests.server.conftest import MODEL, Live


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ([("pool-5", 20), ("pool-5", 4)], ("pool-5", 24)),
        ([("pool-5", 20), ("none", 100)], ("mixed", 120)),
        ([(None, 0), ("none", 100)], ("none", 100)),
        ([(None, 0)], (None, 0)),
        ([], (None, None)),
    ],
)
def test_the_block_tells_what_the_draft_saw_of_the_pictures(
    shown: list[tuple[str | None, int]], said: tuple[str | None, int | None]
) -> None:
    """Pictures are the prompt's, so choices do not add up."""
    pictures = [ShownPicture(compressor=branch, visual_tokens=kept) for branch, kept in shown]
    stats = SpeculationStats(visual_tokens=200, pictures=pictures)
    told = answer_metrics([stats, stats])
    assert told is not None
    block = told.speculative_decoding
    assert (block.compressor, block.draft_visual_tokens, block.visual_tokens) == (*said, 200)


def test_with_a_trace_the_block_tells_what_was_kept_of_each_picture(
    live: Live, client: openai.OpenAI
) -> None:
    pictures = [
        ShownPicture(compressor="prune-5", visual_tokens=2, grids=[(2, 3), (1, 4)], sources=[0, 9]),
        ShownPicture(compressor="none", visual_tokens=4, grids=[(2, 2)]),
        ShownPicture(compressor=None, visual_tokens=0, grids=[(1, 4)]),
    ]

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        told = SpeculationStats(visual_tokens=18, pictures=pictures)
        yield RequestOutput(
            request_id=request.request_id, token_ids=[72], finish_reason="length", speculation=told
        )

    live.engine.answer = answer
    for whole in (True, False):
        asked = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            stream=not whole,
            extra_body={"speculative": {"trace": True}},
        )
        block = (asked if whole else list(asked)[-1]).metrics["speculative_decoding"]  # type: ignore[union-attr, arg-type]
        assert (block["visual_tokens"], block["draft_visual_tokens"], block["compressor"]) == (18, 6, "mixed")
        names = ("compressor", "visual_tokens", "draft_visual_tokens", "grids", "sources")
        assert [tuple(one[name] for name in names) for one in block["pictures"]] == [
            ("prune-5", 10, 2, [[2, 3], [1, 4]], [0, 9]),
            ("none", 4, 4, [[2, 2]], None),
            (None, 4, 0, [[1, 4]], None),
        ]


def test_detail_is_for_the_draft(live: Live, client: openai.OpenAI) -> None:
    """In the order of the pictures; a request that leaves it alone says nothing to the engine."""

    def told(*details: str | None) -> list[str]:
        parts = [
            {"type": "image_url", "image_url": {"url": "color:red"} | ({"detail": d} if d else {})}
            for d in details
        ]
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])  # type: ignore[list-item, misc]
        return list(live.engine.requests[-1].speculative.details)

    assert told("low", None, "original", "high") == ["low", "auto", "high", "high"]
    assert told(None, "auto") == []
    image = {"type": "input_image", "image_url": "color:red", "detail": "low"}
    client.responses.create(model=MODEL, input=[{"role": "user", "content": [image]}])  # type: ignore[list-item, misc]
    assert live.engine.requests[-1].speculative.details == ["low"]

"""What the page's inside view says of pictures, in Chromium: what the draft kept of them."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import OpenPage
from tests.server.conftest import StartServer

pytestmark = pytest.mark.program


def describe_example(page: Page, metrics: dict[str, object]) -> None:
    """The answer's last chunk tells ``metrics`` of speculation."""
    usage = {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 10}}
    chunks = (
        {"choices": [{"delta": {"content": "A cat."}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage, "metrics": {"speculative_decoding": metrics}},
    )
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    events = {"content_type": "text/event-stream", "body": body}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**events))
    page.get_by_role("button", name="Describe the picture in detail.").click()
    expect(page.locator(".answer[aria-busy=false] .text")).to_have_text("A cat.")


def seen(compressor: str | None, kept: int, grids: list[list[int]], sources: list[int] | None) -> object:
    """What the server tells of a picture."""
    total = sum(rows * columns for rows, columns in grids)
    counts = {"visual_tokens": total, "draft_visual_tokens": kept}
    return {"compressor": compressor, **counts, "grids": grids, "sources": sources}


@pytest.mark.parametrize(
    ("told", "caption", "cells"),
    [
        (
            seen("prune-5", 2, [[2, 5]], [3, 6]),
            "The draft saw 2 of 10 visual tokens, branch prune-5",
            [("M3 0h1v1h-1zM1 1h1v1h-1z", 8, True)],
        ),
        (
            seen("pool-4", 2, [[2, 2], [1, 3]], [3, 5]),
            "The draft saw 2 of 7 visual tokens, branch pool-4",
            [("M1 1h1v1h-1z", 3, False), ("M1 0h1v1h-1z", 2, False)],
        ),
        (seen("text_only", 0, [[2, 2]], []), "The draft saw 0 of 4 visual tokens", [("", 4, True)]),
        (seen("prune-4", 1, [[1, 4]], [2]), "The draft saw 1 of 4 visual tokens, branch prune-4", []),
        (seen("none", 4, [[2, 2]], None), "The draft saw all 4 visual tokens: no compression", []),
        (seen(None, 0, [[2, 2]], None), "The draft saw none of 4 visual tokens: the picture came from", []),
    ],
    ids=["pruned", "tiles", "nothing", "no grid", "whole", "cached"],
)
def test_what_the_draft_kept_of_a_picture_is_drawn_over_it(
    told: object,
    caption: str,
    cells: list[tuple[str, int, bool]],
    start_server: StartServer,
    open_page: OpenPage,
) -> None:
    """``cells`` of each grid: the lit ones, how many are dimmed, and whether they lie on the picture."""
    page = open_page(start_server().url)
    describe_example(page, {"draft_visual_tokens": 2, "pictures": [told]})
    figure = page.get_by_role("figure", name=caption)
    expect(figure.get_by_role("img", name="example.png")).to_be_visible()
    expect(page.locator("#seen-counts")).to_have_text("The model saw 10 visual tokens.")
    masks = figure.locator(".mask").all()
    assert len(masks) == len(cells)
    for mask, (kept, num_dropped, is_over) in zip(masks, cells, strict=True):
        assert mask.locator(".kept").get_attribute("d") == kept
        assert (mask.locator(".dropped").get_attribute("d") or "").count("M") == num_dropped
        assert (mask.bounding_box() == figure.locator("img").bounding_box()) is is_over


def test_a_draft_that_sees_no_pictures_says_so(start_server: StartServer, open_page: OpenPage) -> None:
    """Such as look-up."""
    page = open_page(start_server().url)
    describe_example(page, {"draft_visual_tokens": None})
    expect(page.locator("#seen-counts")).to_have_text("The model saw 10 visual tokens. No draft saw them.")

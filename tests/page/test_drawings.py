"""Pictures in ``docs/`` that are made of boxes and words: in Chromium, every word is in its place."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.imports import ROOT

pytestmark = pytest.mark.program

BOXES = """() => {
  const box = (element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    return { name: element.textContent.trim(), left, top, right, bottom };
  };
  const all = (name) => [...document.querySelectorAll(name)].map(box);
  return { canvas: box(document.documentElement), rects: all("rect"), texts: all("text") };
}"""

Box = dict[str, float]


def holds(outer: Box, inner: Box) -> bool:
    begins = outer["left"] <= inner["left"] and outer["top"] <= inner["top"]
    return begins and inner["right"] <= outer["right"] and inner["bottom"] <= outer["bottom"]


def is_apart(one: Box, other: Box) -> bool:
    beside = one["right"] <= other["left"] or other["right"] <= one["left"]
    return beside or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]


@pytest.mark.parametrize("name", ["architecture", "speculation-tree"])
def test_no_text_leaves_its_box_or_the_canvas(name: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto((ROOT / "docs" / f"{name}.svg").as_uri())
    drawn = page.evaluate(BOXES)
    page.close()
    assert len(drawn["texts"]) > 5
    for i, text in enumerate(drawn["texts"]):
        assert holds(drawn["canvas"], text), f"{text['name']!r} leaves the canvas"
        for rect in drawn["rects"]:
            assert holds(rect, text) or is_apart(rect, text), f"{text['name']!r} crosses a border"
        for other in drawn["texts"][:i]:
            assert is_apart(text, other), f"{text['name']!r} lies on {other['name']!r}"

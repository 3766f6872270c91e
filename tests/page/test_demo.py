"""The page in Chromium as users meet it: with pictures, against the demo model; and whom it keeps out."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from demo.build import build
from tests.http.conftest import LiveServer, serve
from tests.imports import ROOT
from tests.page.conftest import OpenPage

pytestmark = [pytest.mark.program, pytest.mark.network]  # the first build fetches the language model

AXE = ROOT / "tests/http/node/node_modules/axe-core/axe.min.js"
CHART = (ROOT / "docs/chart.png").read_bytes()
QUESTION = "Describe the picture in detail."
DROP = """([type, target, base64, kind]) => {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", { type: kind }));
  const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
  const event = type === "paste" ? new ClipboardEvent(type, options) : new DragEvent(type, options);
  document.querySelector(target).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serve(build(), tmp_path_factory.mktemp("demo"), "--served-model-name", "specvlm-demo") as server:
        yield server


def hand_in(page: Page, how: str, content: bytes = CHART) -> None:
    page.evaluate(DROP, [how, "#log", base64.b64encode(content).decode(), "image/png"])
    expect(page.locator("#pictures img")).to_have_count(1)


def ask(page: Page, text: str) -> Locator:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    found = page.locator(".answer[aria-busy=false]").last
    expect(found).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return found


def decode_greedily(page: Page) -> None:
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("tab", name="Inside").click()


def said_over_http(server: LiveServer) -> str:
    url = "data:image/png;base64," + base64.b64encode(CHART).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0}
    answer = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=120).json()
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_is_handed_in_and_the_answer_is_the_servers(
    how: str, server: LiveServer, open_page: OpenPage
) -> None:
    page = open_page(server.url)
    decode_greedily(page)
    hand_in(page, how)
    answer = ask(page, QUESTION)
    expect(answer.locator(".text")).to_have_text(said_over_http(server))
    assert answer.locator(".draft").count() > 5, "nothing was drafted"
    shown = page.locator("#inside-figures").inner_text()
    assert "tokens per round" in shown
    assert "–" not in shown
    expect(page.locator("#seen-counts")).to_have_text("The model saw 100 visual tokens.")
    expect(page.locator("#tree g.bonus")).to_have_count(1)
    follow_up = ask(page, "How many bars are there?")
    expect(follow_up.locator(".text")).not_to_be_empty()


def test_the_cells_that_the_draft_kept_are_lit(server: LiveServer, open_page: OpenPage) -> None:
    """Of the picture of an earlier question too, whose compressed tokens are found again."""
    page = open_page(server.url)
    decode_greedily(page)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Visual tokens the draft sees").select_option("pool")
    page.get_by_role("tab", name="Inside").click()
    other = io.BytesIO()
    Image.open(io.BytesIO(CHART)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other, "PNG")
    hand_in(page, "drop", other.getvalue())  # one that no draft has seen whole
    drawn = []
    for question in ("What is shown here?", "How many bars are there?"):
        ask(page, question)
        figure = page.get_by_role("figure", name="The draft saw 9 of 100 visual tokens, branch pool-10")
        drawn.append(figure.locator(".mask .kept").get_attribute("d"))
    assert drawn[0] == drawn[1]
    assert drawn[0].count("M") == 9


def test_a_broken_picture_is_named_and_hinders_nothing(server: LiveServer, open_page: OpenPage) -> None:
    page = open_page(server.url, refuses=True)
    hand_in(page, "drop", CHART[:500])
    answer = ask(page, QUESTION)
    expect(answer.get_by_role("alert")).to_have_text("The image is damaged or incomplete.")
    hand_in(page, "drop")
    answer = ask(page, QUESTION)
    expect(answer.locator(".text")).not_to_be_empty()


@pytest.mark.skipif(not AXE.exists(), reason="npm package axe-core is not installed: make node")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_axe_finds_no_barrier(
    scheme: str, size: tuple[int, int], server: LiveServer, open_page: OpenPage
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    page = open_page(server.url, color_scheme=scheme, viewport=viewport)
    page.evaluate(AXE.read_text())
    check_barriers(page, "welcome")
    hand_in(page, "drop")
    check_barriers(page, "picture")
    ask(page, QUESTION)
    check_barriers(page, "answer")
    for name in ("Inside", "Settings", "Status"):
        page.get_by_role("tab", name=name).click()
        if name == "Status":
            expect(page.get_by_role("meter", name="KV cache in use")).to_be_visible()
        check_barriers(page, name)


def check_barriers(page: Page, view: str) -> None:
    found = page.evaluate(
        "async () => (await axe.run()).violations.map((v) => [v.id, ...v.nodes.map((n) => n.html)])"
    )
    assert not found, f"{view}: {json.dumps(found, indent=1)}"

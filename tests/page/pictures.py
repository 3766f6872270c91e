"""Makes the page's pictures in ``docs/`` from a real answer of the demo: ``python -m tests.page.pictures``.

Two screenshots, the tree of the answer's most branching round, and what a compressor keeps of a picture, as
the page draws them.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from demo.build import build
from tests.http.conftest import serve
from tests.imports import ROOT
from tests.page.conftest import CHROMIUM

DOCS = ROOT / "docs"
QUESTION = "Describe the picture in detail."
SIZES = {"desktop": (1280, 760), "phone": (390, 844)}

# A copy of the tree that needs no style sheet: what it looks like is written into its elements.
TREE = """(svg) => {
  const copy = svg.cloneNode(true);
  const shape = ["fill", "stroke", "stroke-width", "stroke-dasharray"];
  const text = ["fill", "font-family", "font-size"];
  const [from, to] = [svg, copy].map((one) => [...one.querySelectorAll("path, rect, text")]);
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of element.tagName === "text" ? text : shape) to[i].setAttribute(name, style[name]);
  });
  const ground = document.createElementNS(svg.namespaceURI, "rect");
  for (const [name, value] of Object.entries({ width: "100%", height: "100%", fill: "white" })) {
    ground.setAttribute(name, value);
  }
  copy.prepend(ground);
  return new XMLSerializer().serializeToString(copy);
}"""


def main() -> None:
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(build(), Path(folder), "--served-model-name", "specvlm-demo") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        page = browser.new_page(device_scale_factor=1.5)
        page.goto(f"{server.url}/")
        ask(page)
        for name, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            show_most_branching_round(page)
            save(page, DOCS / f"page-{name}.png")
        (DOCS / "speculation-tree.svg").write_text(page.locator("#tree svg").evaluate(TREE) + "\n")
        compress(page)
        save(page.locator("#seen"), DOCS / "page-pictures.png")
        browser.close()


def ask(page: Page) -> None:
    """The page's own example, greedily, and once: of a second time, look-up would know every word."""
    expect(page.locator("#server-state.ready")).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("tab", name="Inside").click()
    page.get_by_role("button", name=QUESTION).click()
    expect(page.locator(".answer[aria-busy=false]")).to_be_visible(timeout=60_000)


def compress(page: Page) -> None:
    """Another picture: what was seen of the example is not thrown away."""
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("What the draft sees of pictures").select_option("prune")
    page.get_by_role("button", name="New chat").click()
    page.locator("#files").set_input_files(DOCS / "chart.png")
    page.get_by_role("textbox", name="Message").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("tab", name="Inside").click()
    expect(page.get_by_role("figure", name="The draft saw")).to_be_visible(timeout=60_000)


def show_most_branching_round(page: Page) -> None:
    """Of those with something accepted as well."""
    slider = page.get_by_role("slider", name="Round")
    branching = []
    for number in range(1, int(slider.get_attribute("max") or 1) + 1):
        slider.fill(str(number))
        accepted, rejected = (page.locator(f"#tree g.{kind}").count() for kind in ("accepted", "rejected"))
        branching.append((min(accepted, rejected), rejected, number))
    slider.fill(str(max(branching)[-1]))


def save(shown: Page | Locator, path: Path) -> None:
    """With few colours, so that it is small."""
    picture = Image.open(io.BytesIO(shown.screenshot()))
    picture.convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()

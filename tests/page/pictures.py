"""Makes the page's pictures in ``docs/`` from a real answer of the demo: ``python -m tests.page.pictures``.

Screenshots of its views, light and dark, wide and on a phone; the tree of the answer's most branching round;
and what a compressor keeps of a picture.
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
MORE = ("How many points are there?", "What is the value of Feb?", QUESTION)
DESKTOP = {"width": 1280, "height": 760}
PHONE = {"width": 390, "height": 844}

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
        photograph_inside(page)
        (DOCS / "speculation-tree.svg").write_text(page.locator("#tree svg").evaluate(TREE) + "\n")
        photograph_status(page)
        compress(page)
        save(page.locator("#seen"), DOCS / "page-pictures.png")
        browser.close()


def photograph_inside(page: Page) -> None:
    page.set_viewport_size(DESKTOP)
    show_most_branching_round(page)
    save(page, DOCS / "page-desktop.png")
    page.emulate_media(color_scheme="dark")
    save(page, DOCS / "page-dark.png")
    page.set_viewport_size(PHONE)
    page.get_by_role("tab", name="Chat").click()
    save(page, DOCS / "page-phone-dark.png")
    page.emulate_media(color_scheme="light")
    page.get_by_role("tab", name="Inside").click()
    save(page, DOCS / "page-phone.png")


def photograph_status(page: Page) -> None:
    """While answers are written; the line of speeds needs some looks to be one."""
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name="Status").click()
    for question in MORE:
        page.get_by_role("textbox", name="Message").fill(question)
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)
        page.wait_for_timeout(2500)
    save(page, DOCS / "page-status.png")


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
    page.get_by_label("Visual tokens the draft sees").select_option("prune_attention")
    page.get_by_role("button", name="New chat").click()
    page.locator("#files").set_input_files(DOCS / "chart.png")
    page.get_by_role("textbox", name="Message").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("tab", name="Inside").click()
    expect(page.get_by_role("figure", name="The draft saw")).to_be_visible(timeout=60_000)


def show_most_branching_round(page: Page) -> None:
    """Of those with something accepted as well; not the last, which runs on behind the answer's end."""
    slider = page.get_by_role("slider", name="Round")
    branching = []
    for number in range(1, int(slider.get_attribute("max") or 2)):
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

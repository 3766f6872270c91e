"""The page's message editor in Chromium: pictures that take time, keys for others, what it keeps."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import FilePayload, Page, expect

from engine.client import RequestRejectedError
from tests.page.conftest import OpenPage, answer, ask, message
from tests.server.conftest import StartServer

pytestmark = pytest.mark.program

GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"
HOLD = """() => {  // files are read once `held` is called, in which those named "broken" fail
  const read = FileReader.prototype.readAsDataURL;
  const waiting = [];
  FileReader.prototype.readAsDataURL = function (file) {
    waiting.push(() => (file.name.startsWith("broken") ? this.onerror() : read.call(this, file)));
  };
  window.held = () => waiting.splice(0).forEach((go) => go());
}"""
PASTE = """([text, name]) => {
  const data = new DataTransfer();
  data.items.add(new File(["GIF89a"], name, { type: "image/gif" }));
  if (text) data.setData("text/plain", text);
  const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: data });
  document.querySelector("#text").dispatchEvent(event);
}"""
CONFIRM = """(key) => {  // as Safari tells of a key that an input method took: after the composition's end
  const init = { key, keyCode: 229, bubbles: true, cancelable: true };
  document.querySelector("#text").dispatchEvent(new KeyboardEvent("keydown", init));
}"""


def choose(page: Page, *names: str) -> None:
    page.locator("#files").set_input_files(
        [FilePayload(name=name, mimeType="image/gif", buffer=GIF) for name in names]
    )


def fails_once(start_server: StartServer, open_page: OpenPage) -> Page:
    """A page whose first question, "Impossible?", was refused."""
    live = start_server()
    live.engine.answer = live.engine.rejects(RequestRejectedError("invalid_request", "Nobody knows."))
    page = open_page(live.url, refuses=True)
    ask(page, "Impossible?")
    expect(answer(page).get_by_role("alert")).to_have_text("Nobody knows.")
    live.engine.answer = live.engine.says("Yes.")
    return page


def test_a_message_waits_for_its_pictures(start_server: StartServer, open_page: OpenPage) -> None:
    page = open_page(start_server().url, refuses=True)  # the fake of a loader knows no such pictures
    page.evaluate(HOLD)
    choose(page, "one.gif", "two.gif")
    choose(page, "three.gif")
    ask(page, "What are these?")
    expect(message(page)).to_have_value("What are these?")
    page.evaluate("held()")
    answer(page)
    names = [image.get_attribute("alt") for image in page.locator(".question img").all()]
    assert names == ["one.gif", "two.gif", "three.gif"]
    expect(page.locator("#pictures img")).to_have_count(0)


def test_a_picture_that_cannot_be_read_is_named_and_holds_the_message_back(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server().url)
    page.evaluate(HOLD)
    choose(page, "broken.gif", "one.gif")
    ask(page, "What are these?")
    page.evaluate("held()")
    expect(page.locator("#complaint")).to_have_text("Files that could not be read: broken.gif.")
    expect(page.locator("#pictures img")).to_have_count(1)
    expect(message(page)).to_have_value("What are these?")
    expect(page.locator(".exchange")).to_have_count(0)


def test_text_that_is_pasted_brings_no_picture_of_itself(
    start_server: StartServer, open_page: OpenPage
) -> None:
    """Office programs copy both. File managers copy a file with its name, browsers one with its address."""
    page = open_page(start_server().url)
    for text, name in (
        ("7\t6\t4", "table.gif"),
        ("copied.gif", "copied.gif"),
        ("", "screen.gif"),
        ("https://example.org/cat.jpg", "image.gif"),
    ):
        page.evaluate(PASTE, [text, name])
    expect(page.get_by_role("button", name="Remove screen.gif")).to_be_visible()
    expect(page.get_by_role("button", name="Remove copied.gif")).to_be_visible()
    expect(page.get_by_role("button", name="Remove image.gif")).to_be_visible()
    expect(page.locator("#pictures img")).to_have_count(3)
    expect(message(page)).to_have_value("")


def test_keys_that_an_input_method_takes_neither_send_nor_stop(
    start_server: StartServer, open_page: OpenPage
) -> None:
    live = start_server()
    live.engine.answer = live.engine.says("word " * 5, pause=0.05)
    page = open_page(live.url)
    message(page).fill("かんじ")
    page.evaluate(CONFIRM, "Enter")
    expect(message(page)).to_have_value("かんじ")
    page.keyboard.press("Enter")
    expect(answer(page, "true").locator(".text")).to_contain_text("w")
    page.evaluate(CONFIRM, "Escape")
    expect(answer(page).locator(".text")).to_have_text(re.compile(r"^(word ?){5}$"))


def test_another_try_waits_for_valid_settings(start_server: StartServer, open_page: OpenPage) -> None:
    page = fails_once(start_server, open_page)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Temperature").fill("3")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".exchange")).to_have_count(1)
    page.get_by_label("Temperature").fill("1")
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("Yes.")
    expect(page.locator(".exchange")).to_have_count(1)
    expect(message(page)).to_be_focused()


def test_edit_keeps_what_is_being_written(start_server: StartServer, open_page: OpenPage) -> None:
    page = fails_once(start_server, open_page)
    choose(page, "one.gif")
    message(page).fill("Or this?")
    page.get_by_role("button", name="Edit").click()
    expect(message(page)).to_have_value("Impossible?\nOr this?")
    expect(page.locator("#pictures img")).to_have_count(1)
    expect(message(page)).to_be_focused()


def test_an_example_whose_picture_is_missing(start_server: StartServer, open_page: OpenPage) -> None:
    page = open_page(start_server().url, refuses=True)
    page.route("**/example.png", lambda route: route.fulfill(status=404))
    example = page.get_by_role("button", name="How many points are there?")
    example.click()
    expect(page.locator("#complaint")).to_have_text("The example picture cannot be loaded.")
    expect(page.locator(".exchange")).to_have_count(0)
    page.unroute("**/example.png")
    example.click()
    answer(page)
    expect(message(page)).to_be_focused()
    expect(page.locator("#complaint")).to_be_empty()


def test_fields_and_many_pictures_fit_a_phone(start_server: StartServer, open_page: OpenPage) -> None:
    """Below 16 pixels Safari zooms in on a field; an endless list would push the field off the screen."""
    page = open_page(start_server().url, viewport={"width": 390, "height": 844})
    sizes = "fields => fields.map((field) => parseFloat(getComputedStyle(field).fontSize))"
    fields = page.locator("textarea, select, input:not([type=checkbox], [type=range], [type=file])")
    assert min(fields.evaluate_all(sizes)) >= 16
    choose(page, *(f"{i}.gif" for i in range(40)))
    expect(page.locator("#pictures img")).to_have_count(40)
    box = page.locator("#pictures").bounding_box()
    assert box is not None
    assert box["height"] <= 0.3 * 844 + 1
    assert page.locator("#pictures").evaluate("list => list.scrollWidth - list.clientWidth") <= 0

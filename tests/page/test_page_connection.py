"""What the page keeps, and makes of a server's answers, in Chromium: keys, settings, errors, speeds."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import OpenPage, answer, ask
from tests.server.conftest import MODEL, StartServer

pytestmark = pytest.mark.program

BLOCK = """Object.defineProperty(window, "sessionStorage", {
  get() { throw new DOMException("Access is denied for this document.", "SecurityError"); },
});"""


def give_key(page: Page, key: str) -> None:
    page.get_by_role("dialog").get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


def test_keys_of_any_script_are_sent(start_server: StartServer, open_page: OpenPage) -> None:
    """Also one with a character too many, such as a space of no width that came along when it was copied."""
    page = open_page(start_server(api_key="clé-鍵").url, refuses=True, waits=False)
    give_key(page, "clé\u200b-鍵")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text("The server rejected this key.")
    give_key(page, "clé-鍵")
    expect(page.locator("#server-state")).to_have_text(MODEL)


def test_without_a_store_the_page_keeps_the_key_itself(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server(api_key="sesame").url, refuses=True, waits=False)
    page.add_init_script(BLOCK)
    page.reload()
    give_key(page, "sesame")
    expect(page.locator("#server-state")).to_have_text(MODEL)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Max tokens").fill("7")
    page.get_by_role("button", name="Reset").click()
    ask(page)
    expect(answer(page)).to_contain_text("Hello, world!")


@pytest.mark.parametrize("body", ["null", '{"error": "teapot"}', '{"detail": "teapot"}'])
def test_errors_of_a_proxy_have_other_forms(
    body: str, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server().url, refuses=True)
    statuses = iter((418, 401))
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=next(statuses), body=body), times=2
    )
    ask(page)
    expect(answer(page).get_by_role("alert")).to_have_text("The server answered with status 418.")
    page.get_by_role("button", name="Try again").click()
    give_key(page, "sesame")
    expect(answer(page)).to_contain_text("Hello, world!")


def test_settings_outlast_a_reload_until_they_are_reset(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server(served_model_name=["first", "second"]).url, refuses=True)
    page.get_by_role("tab", name="Settings").click()
    model, sees = page.get_by_label("Model"), page.get_by_label("Visual tokens the draft sees")
    model.select_option("second")
    sees.select_option("none")
    page.evaluate("""() => {
      const kept = JSON.parse(sessionStorage["specvlm.settings"]);
      sessionStorage["specvlm.settings"] = JSON.stringify({ unknown: "1", ...kept });
    }""")
    # The server sends the lists to choose from later than the user changes a field.
    page.route("**/ready", lambda route: route.fulfill(status=503, body="{}"), times=1)
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("System prompt").blur()
    expect(model).to_have_value("second")
    expect(sees).to_have_value("none")
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    expect(model).to_have_value("second")
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    page.get_by_role("button", name="Reset").click()
    expect(model).to_have_value("first")
    expect(sees).to_have_value("auto")


def test_speeds_of_long_ago_are_not_drawn_as_the_last_two_minutes(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server().url)
    speed = 0

    def show(value: int) -> None:
        nonlocal speed
        speed = value

    page.route("**/metrics", lambda route: route.fulfill(body=f"specvlm:tokens_per_second {speed}\n"))
    page.clock.install(time=0)
    page.clock.pause_at(1_000)

    def expect_line(first: int, last: int) -> None:
        label = f"From {first}.0 to {last}.0 tokens per second"
        expect(page.get_by_role("img", name=label)).to_be_visible()

    show(5)
    page.get_by_role("tab", name="Status").click()
    expect_line(5, 5)
    show(6)
    page.clock.run_for(2_000)
    expect_line(5, 6)
    page.get_by_role("tab", name="Settings").click()
    show(7)
    page.get_by_role("tab", name="Status").click()
    expect_line(7, 7)
    show(8)
    page.clock.fast_forward(60_000)
    expect_line(8, 8)

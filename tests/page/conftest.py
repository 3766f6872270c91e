"""A real browser, and a page in it that may neither complain nor ask another host for anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from tests.server.conftest import StartServer, _alone, _quiet, start_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHARED_FIXTURES = (_quiet, _alone, start_server)
PATIENCE_MS = 60_000  # a busy machine is no failure

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page was not tried: there is no Chromium (Debian: apt install chromium)")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, which is what containers of a CI often are.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def open_page(start_server: StartServer, browser: Browser) -> Iterator[OpenPage]:
    """``open_page(url)``: the page, once the server's name stands in its head.

    ``refuses``: the server will answer with errors, which browsers write to the console. Anything else that
    is written there fails the test, as does a request to another host. ``strips``: what a proxy cuts off.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_one(
        url: str, *, refuses: bool = False, waits: bool = True, strips: str = "", **options: object
    ) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        if strips:
            context.route(
                f"**{strips}/**",
                lambda route: route.continue_(url=route.request.url.replace(strips, "", 1)),
            )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)

        def on_console(message: object) -> None:
            expected = refuses and message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not expected:
                complaints.append(message.text)

        def on_request(request: object) -> None:
            if not request.url.startswith((url, "data:")):
                complaints.append(f"asked {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", on_request)
        page.goto(f"{url}/")
        if waits:
            expect(page.locator("#server-state.ready")).to_be_visible()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints


def message(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def ask(page: Page, text: str = "Hi") -> None:
    message(page).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page, state: str = "false") -> Locator:
    """The newest answer; with ``state`` "true" one that is still being written."""
    found = page.locator(f".answer[aria-busy={state}]").last
    expect(found).to_be_visible()
    return found

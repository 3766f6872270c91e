"""The page in Chromium, against a server whose engine says what it is told to: states, errors, settings."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from engine.client import EngineDeadError, RequestRejectedError
from engine.messages import EngineStats
from tests.page.conftest import OpenPage, answer, ask, message
from tests.server.conftest import MODEL, StartServer, stop_live, wait_until

pytestmark = pytest.mark.program

PHONE = {"viewport": {"width": 390, "height": 844}}
HOSTILE = '<img src="x" onerror="alert(1)"><script>alert(2)</script>'


def test_an_answer_streams_in_and_its_tokens_are_coloured_by_round(
    start_server: StartServer, open_page: OpenPage
) -> None:
    """A token is a byte here: an é is two of them, the party popper four, and no colour may eat one."""
    live = start_server()
    said = "héllo 🎉 wörld, and more of it"
    live.engine.answer = live.engine.says(said, step=4, drafts=True)
    page = open_page(live.url)
    ask(page)
    text = answer(page).locator(".text")
    expect(text).to_have_text(said)
    assert text.locator(".draft").count() > 5
    assert text.locator(".bonus").count() > 3
    assert text.locator(".mixed").count() > 0
    rounds = len(said.encode()) // 4 + 1
    expect(page.get_by_role("heading", name=f"Round {rounds}:")).to_be_visible()
    slider = page.get_by_role("slider", name="Round")
    slider.focus()
    slider.press("Home")
    expect(page.get_by_role("heading", name="Round 1: 4 drafts, 3 accepted")).to_be_visible()
    tree = page.get_by_role("img", name="4 drafts, accepted 3")
    assert [tree.locator(f"g.{kind}").count() for kind in ("root", "accepted", "bonus", "rejected")] == [
        1,
        3,
        1,
        1,
    ]
    expect(page.locator("#log .shown").first).to_have_text("h")
    page.locator("#log [data-round='2']").first.click()
    expect(page.get_by_role("heading", name="Round 3:")).to_be_visible()


def test_what_is_written_is_never_html(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server(served_model_name=[HOSTILE])
    live.engine.answer = live.engine.says(HOSTILE, drafts=True, step=3)
    page = open_page(live.url)
    ask(page, HOSTILE)
    expect(answer(page).locator(".text")).to_have_text(HOSTILE)
    expect(page.locator(".question .text")).to_have_text(HOSTILE)
    expect(page.locator("#server-state-text")).to_have_text(HOSTILE)
    assert page.locator("img[src=x], #log script").count() == 0


def test_stop_ends_the_request_and_keeps_what_came(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server()
    live.engine.answer = live.engine.says("word " * 200, pause=0.05)
    page = open_page(live.url)
    ask(page)
    expect(answer(page, "true").locator(".text")).to_contain_text("word word")
    page.get_by_role("button", name="Stop").click()
    stopped = answer(page)
    expect(stopped).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_until(lambda: len(live.engine.closed_early) == 1)
    kept = stopped.locator(".text").inner_text().strip()
    live.engine.answer = live.engine.says("Fine.")
    ask(page, "And now?")
    expect(answer(page)).to_contain_text("Fine.")
    prompt = live.engine.processor.decode(live.engine.requests[-1].prompt.token_ids)
    assert prompt.startswith(f"user:Hiassistant:{kept}"), (
        "what came before the stop is part of the conversation"
    )


@pytest.mark.parametrize("after", ["", "Half an ans"])
def test_errors_are_shown_where_the_answer_would_be(
    after: str, start_server: StartServer, open_page: OpenPage
) -> None:
    live = start_server()
    error = RequestRejectedError("invalid_request", "Nobody can answer that.")
    live.engine.answer = live.engine.rejects(error, after=after)
    page = open_page(live.url, refuses=True)
    ask(page, "Impossible?")
    failed = answer(page)
    expect(failed.get_by_role("alert")).to_have_text("Nobody can answer that.")
    expect(failed.locator(".text")).to_have_text(after)
    if after:
        return
    expect(page.get_by_text("by plain decoding")).to_be_hidden()
    failed.get_by_role("button", name="Edit").click()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(message(page)).to_have_value("Impossible?")
    live.engine.answer = live.engine.says("Yes.")
    message(page).press("Enter")
    expect(answer(page)).to_contain_text("Yes.")


def test_a_lost_engine_is_told(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server()
    live.engine.answer = live.engine.rejects(EngineDeadError("gone"), after="Hel")
    page = open_page(live.url, refuses=True)
    ask(page)
    expect(answer(page).get_by_role("alert")).to_have_text("The model stopped while it was answering.")


def stream(*chunks: dict[str, object]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def test_a_stream_that_breaks_off_is_no_answer(start_server: StartServer, open_page: OpenPage) -> None:
    page = open_page(start_server().url)
    content = stream({"choices": [{"delta": {"content": "A c"}, "finish_reason": None}]})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=content))
    ask(page)
    expect(answer(page).get_by_role("alert")).to_contain_text("was lost")
    expect(answer(page).locator(".text")).to_have_text("A c")


def test_a_server_that_is_loading_and_one_that_is_gone(
    start_server: StartServer, open_page: OpenPage
) -> None:
    live = start_server()
    live.engine.state = "restarting"
    page = open_page(live.url, refuses=True, waits=False)
    expect(page.locator("#server-state")).to_have_text("The model is loading…")
    ask(page)
    expect(answer(page).get_by_role("alert")).to_contain_text("not ready")
    live.engine.state = "ready"
    expect(page.locator("#server-state")).to_have_text(MODEL)
    page.get_by_role("button", name="Try again").click()
    expect(answer(page)).to_contain_text("Hello, world!")
    stop_live(live)
    ask(page, "Still there?")
    expect(answer(page).get_by_role("alert")).to_contain_text("cannot be reached")
    page.get_by_role("tab", name="Status").click()
    expect(page.locator("#status-complaint")).to_contain_text("cannot be reached")


def test_a_key_is_asked_for_and_kept_by_the_tab_alone(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server(api_key="sesame")
    page = open_page(live.url, refuses=True, waits=False)
    dialog = page.get_by_role("dialog", name="This server requires an API key")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#server-state")).to_have_text("This server requires a key")
    page.get_by_role("button", name="API key…").click()
    for key in ("wrong", "sesame"):
        dialog.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog.get_by_role("alert")).to_have_text("The server rejected this key.")
    expect(page.locator("#server-state")).to_have_text(MODEL)
    expect(dialog).to_be_hidden()
    ask(page)
    expect(answer(page)).to_contain_text("Hello, world!")
    stored = page.evaluate("[JSON.stringify(localStorage), document.cookie, sessionStorage['specvlm.key']]")
    assert stored == ["{}", "", "sesame"]
    page.reload()
    expect(page.locator("#server-state")).to_have_text(MODEL)


def test_settings_are_sent_and_empty_ones_left_to_the_server(
    start_server: StartServer, open_page: OpenPage
) -> None:
    live = start_server(served_model_name=["first", "second"])
    page = open_page(live.url)
    ask(page)
    answer(page)
    plain = live.engine.requests[0]
    assert (plain.sampling.temperature, plain.sampling.top_p) == (1.0, 1.0)
    assert plain.speculative.enabled
    assert plain.speculative.trace
    page.get_by_role("tab", name="Settings").click()
    fields = {
        "Temperature": "0.5",
        "Top p": "0.9",
        "Max tokens": "7",
        "Seed": "3",
        "Draft tokens per tree": "5",
    }
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Model").select_option("second")
    page.get_by_label("Visual tokens the draft sees").select_option("none")
    ask(page, "Again")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(2)
    sampling, speculative = live.engine.requests[1].sampling, live.engine.requests[1].speculative
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0.5, 0.9, 7, 3)
    assert speculative.num_draft_tokens == 5
    prompt = live.engine.processor.decode(live.engine.requests[1].prompt.token_ids)
    assert prompt.startswith("system:Be brief.user:Hi")
    page.get_by_label("Draft trees").uncheck()
    page.get_by_label("Temperature").fill("3")
    ask(page, "Too hot")
    expect(message(page)).to_have_value("Too hot")
    assert len(live.engine.requests) == 2
    page.get_by_label("Temperature").fill("")
    ask(page, "Cool")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(3)
    assert not live.engine.requests[2].speculative.enabled
    page.get_by_role("tab", name="Inside").click()
    expect(page.get_by_text("by plain decoding")).to_be_visible()
    page.reload()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(page.get_by_label("Draft trees")).not_to_be_checked()


def test_only_pictures_are_taken_and_they_can_be_removed(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server().url)
    gif = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"
    files = [("one.gif", "image/gif", gif), ("notes.txt", "text/plain", b"?"), ("two.gif", "image/gif", gif)]
    page.locator("#files").set_input_files(
        [dict(zip(("name", "mimeType", "buffer"), f, strict=True)) for f in files]
    )
    expect(page.locator("#pictures img")).to_have_count(2)
    expect(page.locator("#complaint")).to_contain_text("notes.txt")
    page.get_by_role("button", name="Remove one.gif").click()
    expect(page.locator("#pictures img")).to_have_count(1)


@pytest.mark.parametrize("prefix", ["specvlm", "vllm"])
def test_the_status(prefix: str, start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server(metrics_prefix=prefix)
    cache_hits = {
        "prefix_cache_queries": 200,
        "prefix_cache_hits": 150,
        "mm_cache_queries": 5,
        "mm_cache_hits": 2,
    }
    load = {"num_running": 3, "num_waiting": 2, "kv_cache_usage": 0.25, "generation_tokens": 50}
    page = open_page(live.url)
    page.get_by_role("tab", name="Status").click()
    live.engine.report(EngineStats(**load, **cache_hits))  # now, as speeds are those of 10 seconds
    now = page.locator("#status-now")
    expect(now).to_contain_text(re.compile("running.*3.*waiting.*2.*tokens per second.*5.0", re.DOTALL))
    meters = {
        "KV cache in use": "25 %",
        "Prompt tokens found in the prefix cache": "75 %",
        "Pictures found in the encoder cache": "40 %",
    }
    for name, value in meters.items():
        expect(page.get_by_role("meter", name=name)).to_have_attribute("aria-valuetext", value)
    expect(page.locator("#status-server")).to_contain_text("ngram")


def test_behind_a_proxy_that_strips_a_prefix(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server(root_path="/vlm")
    page = open_page(live.url, strips="/vlm")
    expect(page.locator("#server-state")).to_have_text(MODEL)
    ask(page)
    expect(answer(page)).to_contain_text("Hello, world!")


def test_the_keyboard_reaches_everything(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server()
    live.engine.answer = live.engine.says("one two three", step=4, drafts=True)
    page = open_page(live.url)
    expect(message(page)).to_be_focused()
    page.keyboard.type("By hand")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("in two lines")
    page.keyboard.press("Enter")
    answer(page)
    assert page.locator(".question .text").inner_text() == "By hand\nin two lines"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"new-chat", "inside-tab", "log", "Copy", "attach", "send", "earlier", "round", "tree"} <= reached
    page.locator("#inside-tab").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Settings")).to_be_visible()
    expect(page.get_by_role("tab", name="Settings")).to_be_focused()


def test_on_a_phone_one_view_at_a_time(start_server: StartServer, open_page: OpenPage) -> None:
    live = start_server()
    live.engine.answer = live.engine.says("a-rather-long-word-" * 20, step=6, drafts=True)
    page = open_page(live.url, **PHONE)
    ask(page)
    answer(page).locator(".bonus").first.click()
    for name in ("Inside", "Settings", "Status", "Chat"):
        if name != "Inside":  # to which the click on a token led
            page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tabpanel")).to_have_count(1)
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="Ask about a picture")).to_be_visible()

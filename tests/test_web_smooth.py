"""Long lists and fast streams: what must stay small is counted, what must not be lost is compared.

The times are measured by bench/web.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from browser import MullUp, Visit
from chat_history import fill_history

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

CONVERSATIONS, MESSAGES = 500, 200
TYPED = "The quick brown fox jumps over the lazy dog, twice."


@pytest.fixture(scope="module")
def full(mull_up: MullUp) -> MullUp:
    """The server with as many conversations as somebody gathers in years."""
    mull_up.ask("/api/conversations", method="DELETE")
    fill_history(mull_up.home, conversations=CONVERSATIONS - 1, messages=2)
    fill_history(mull_up.home, conversations=1, messages=MESSAGES)
    return mull_up


def test_five_hundred_conversations_hold_few_elements_however_far_one_scrolls(
    visit: Go, full: MullUp
) -> None:
    v = visit()
    links = v.page.locator("aside a[href^='/c/']")
    links.first.wait_for()
    assert links.count() <= 60
    area = v.page.locator("aside .sidebar-list")
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while len(seen) < CONVERSATIONS and time.monotonic() < deadline:
        hrefs = links.evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert len(hrefs) <= 60
        seen.update(hrefs)
        bottom = area.evaluate(
            "e => { e.scrollTop += e.clientHeight;"
            " return e.scrollHeight - e.scrollTop - e.clientHeight }"
        )
        if bottom < 2:
            v.page.wait_for_load_state("networkidle")
        v.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))")
    assert len(seen) == CONVERSATIONS


def test_two_hundred_messages_are_drawn_only_where_they_are_looked_at(
    visit: Go, full: MullUp
) -> None:
    newest = full.ask("/api/conversations?limit=1")["items"][0]["id"]
    v = visit(f"/c/{newest}")
    expect(v.answers.last).to_be_in_viewport()
    drawn = v.page.locator(".prose > :not(.plain)")
    assert v.page.locator("*").count() < 6000
    assert drawn.count() < 400
    v.page.locator(".scroller").evaluate("e => { e.scrollTop = 0 }")
    expect(v.questions.first).to_be_in_viewport()
    assert v.page.locator("*").count() < 9000


def test_typing_loses_no_letter_while_an_answer_streams(visit: Go) -> None:
    v = visit()
    v.model("endless")
    v.ask("As fast as you can")
    expect(v.answers.last.get_by_text("Round and round").first).to_be_visible()
    v.composer.press_sequentially(TYPED)
    expect(v.composer).to_have_value(TYPED)
    expect(v.button("composer.stop")).to_be_visible()
    v.button("composer.stop").click()
    v.done()

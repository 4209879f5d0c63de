"""An answer outlives its page and its connection; a conversation outlives its server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import ROUND_AND_ROUND, MullUp, Visit, visits, write_home

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

GROWN = "turn 20,"


def thinking(v: Visit) -> Any:
    return v.page.get_by_role("region", name=v.t("thinking.label"))


def start_endless(v: Visit) -> None:
    v.model("endless")
    v.ask("Go round")
    expect(thinking(v).get_by_text("Round and round").first).to_be_visible()


@pytest.mark.parametrize(("size", "language"), [("desktop", "en"), ("phone", "ko")])
def test_a_reload_in_the_middle_of_an_answer_loses_nothing(
    visit: Go, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    start_endless(v)
    v.page.reload()
    expect(thinking(v)).to_contain_text(ROUND_AND_ROUND[:60])
    expect(v.button("composer.stop")).to_be_visible()
    v.button("thinking.answer_now").click()
    answer = v.done()
    expect(answer).to_contain_text("Enough of that.")
    kept = v.server.ask("/api/conversations/" + v.page.url.rsplit("/", 1)[1])["messages"][-1]
    assert kept["state"] == "done"
    answer.get_by_role("button", expanded=False).click()
    shown = thinking(v).locator(".thinking-body").inner_text()
    assert " ".join(shown.split()) == " ".join(kept["thinking"].split())


def test_a_second_page_follows_the_same_answer(visit: Go) -> None:
    v = visit()
    start_endless(v)
    other = visit(v.page.url.removeprefix(v.server.url))
    expect(thinking(other).get_by_text("Round and round").first).to_be_visible()
    other.button("thinking.answer_now").click()
    expect(v.done()).to_contain_text("Enough of that.")
    expect(other.done()).to_contain_text("Enough of that.")


def test_a_lost_connection_is_taken_up_where_it_was_lost(visit: Go) -> None:
    v = visit()
    v.expects("ERR_INTERNET_DISCONNECTED")
    v.expects("ERR_NETWORK")
    start_endless(v)
    v.page.context.set_offline(True)
    other = visit(v.page.url.removeprefix(v.server.url))
    other.button("thinking.answer_now").click()
    other.done()
    v.page.context.set_offline(False)
    expect(v.done()).to_contain_text("Enough of that.")
    expect(v.page.locator(".offline")).to_have_count(0)


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MullUp]:
    """A server of this file's own, to be killed."""
    server = MullUp(write_home(tmp_path_factory.mktemp("mortal")), model="endless").start()
    yield server
    server.end(signal.SIGKILL)


def test_a_server_killed_in_mid_answer_leaves_a_whole_conversation(
    browser: Any, mortal: MullUp
) -> None:
    opened = visits(browser, mortal)
    v = next(opened)("/")
    v.expects("ERR_")
    v.expects("404")
    start_endless(v)
    conversation = v.page.url.rsplit("/", 1)[1]

    def kept() -> str:
        return str(mortal.ask(f"/api/conversations/{conversation}")["messages"][-1]["thinking"])

    while GROWN not in kept():
        v.page.wait_for_timeout(50)
    mortal.end(signal.SIGKILL)
    expect(v.page.locator(".offline")).to_be_visible()
    mortal.start()
    answer = v.done()
    expect(answer).to_contain_text(v.t("ending.stopped_empty"))
    expect(v.page.locator(".offline")).to_have_count(0)
    assert GROWN in kept()
    # It goes on as if nothing had happened.
    v.ask("And now?")
    expect(thinking(v).last.get_by_text("Round and round").first).to_be_visible()
    v.button("thinking.answer_now").click()
    expect(v.done(2)).to_contain_text("Enough of that.")
    next(opened, None)


def test_a_page_opened_before_its_server_answers_recovers_by_itself(
    browser: Any, mortal: MullUp
) -> None:
    opened = visits(browser, mortal)
    v = next(opened)("/")
    v.expects("ERR_")
    mortal.end(signal.SIGKILL)
    v.link("nav.status").click()
    expect(v.page.get_by_text(v.t("error.offline")).first).to_be_visible()
    mortal.start()
    expect(v.page.get_by_text(v.t("status.uptime"))).to_be_visible()
    next(opened, None)

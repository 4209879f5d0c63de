"""What one writes, attaches or files stays, whatever fails or is late; nothing is asked twice."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import PATIENCE_MS, MullUp, Visit

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]


def a_chat(v: Visit) -> str:
    """The path of a conversation of one question and its answer, which is open now."""
    v.model("plain")
    v.ask("The first question")
    v.done()
    return str(v.page.url.removeprefix(v.server.url))


def refuse(v: Visit, path: str) -> None:
    v.expects("ERR_FAILED")
    v.page.route(path, lambda route: route.abort())


def hold(v: Visit, path: str | re.Pattern[str]) -> list[Any]:
    """Requests that wait until they are let go."""
    held: list[Any] = []
    v.page.route(path, lambda route: held.append(route))
    return held


def has_come(v: Visit, held: list[Any]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not held:
        assert time.monotonic() < deadline, "the page did not ask"
        v.page.wait_for_timeout(10)


def follow_link(v: Visit, path: str) -> None:
    """Within the page, which is not loaded anew."""
    v.open_list().locator(f"a[href='{path}']").click()


def test_a_first_question_that_cannot_be_sent_stays_and_leaves_no_empty_chat(visit: Go) -> None:
    v = visit()
    v.model("plain")
    v.server.ask("/api/conversations", method="DELETE")
    refuse(v, "**/messages")
    v.composer.fill("Long thought about")
    v.button("composer.send").click()
    expect(v.page.get_by_text(v.t("error.offline")).first).to_be_visible()
    expect(v.composer).to_have_value("Long thought about")
    v.page.unroute("**/messages")
    v.button("composer.send").click()
    v.done()
    assert len(v.server.ask("/api/conversations")["items"]) == 1


def test_a_question_that_fails_after_one_has_left_is_a_draft_again(visit: Go) -> None:
    v = visit()
    here = a_chat(v)
    held = hold(v, "**/messages")
    v.composer.fill("Sent on the way out")
    v.button("composer.send").click()
    has_come(v, held)
    v.button("nav.new").first.click()
    expect(v.questions).to_have_count(0)
    v.expects("ERR_FAILED")
    held[0].abort()
    expect(v.page.get_by_text(v.t("error.offline")).first).to_be_visible()
    expect(v.composer).to_have_value("")
    follow_link(v, here)
    expect(v.composer).to_have_value("Sent on the way out")


def test_what_was_written_while_sending_failed_stands_below_it(visit: Go) -> None:
    v = visit()
    a_chat(v)
    held = hold(v, "**/messages")
    v.composer.fill("First thing")
    v.button("composer.send").click()
    has_come(v, held)
    v.composer.fill("Second thing")
    v.expects("ERR_FAILED")
    held[0].abort()
    expect(v.composer).to_have_value("First thing\n\nSecond thing")


def test_a_new_wording_that_cannot_be_sent_stays_in_its_field(visit: Go) -> None:
    v = visit()
    a_chat(v)
    v.button("message.edit").click()
    field = v.page.get_by_role("textbox", name=v.t("message.edit"))
    refuse(v, "**/messages")
    field.fill("A better wording")
    field.press("Enter")
    expect(v.page.get_by_text(v.t("error.offline")).first).to_be_visible()
    expect(field).to_have_value("A better wording")
    v.page.reload()
    v.button("message.edit").click()
    expect(field).to_have_value("A better wording")
    v.page.unroute("**/messages")
    field.press("Enter")
    expect(v.questions.last).to_contain_text("A better wording")
    v.done()
    v.button("message.edit").click()
    field.press("Escape")
    expect(field).to_have_count(0)


def test_a_suggestion_leaves_what_was_being_written(visit: Go, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("Only a line.")
    v = visit()
    v.composer.fill("Half a thought")
    v.page.locator("input[type=file]").set_input_files(tmp_path / "notes.md")
    files = v.page.get_by_role("list", name=v.t("files.attached"))
    expect(files).to_contain_text("notes.md")
    v.page.get_by_role("list", name=v.t("welcome.try")).get_by_role("button").first.click()
    expect(v.questions).to_have_count(1)
    expect(v.questions.first.get_by_text("notes.md")).to_have_count(0)
    v.button("nav.new").first.click()
    expect(v.composer).to_have_value("Half a thought")
    expect(files).to_contain_text("notes.md")


def test_files_wait_with_their_draft_and_go_only_with_their_own_question(
    visit: Go, tmp_path: Path
) -> None:
    for name in ("early.md", "late.md"):
        (tmp_path / name).write_text("Only a line.")
    v = visit()
    here = a_chat(v)
    chosen = v.page.locator("form.composer").get_by_role("list", name=v.t("files.attached"))
    v.page.locator("input[type=file]").set_input_files(tmp_path / "early.md")
    expect(chosen).to_contain_text("early.md")
    v.button("nav.new").first.click()
    expect(v.questions).to_have_count(0)
    expect(chosen).to_have_count(0)
    follow_link(v, here)
    expect(chosen).to_contain_text("early.md")
    held = hold(v, "**/messages")
    v.composer.fill("What is in it?")
    v.button("composer.send").click()
    has_come(v, held)
    v.page.locator("input[type=file]").set_input_files(tmp_path / "late.md")
    expect(chosen).to_contain_text("late.md")
    held[0].continue_()
    expect(v.questions.last.get_by_text("early.md")).to_be_visible()
    v.done(2)
    expect(chosen.get_by_role("listitem")).to_have_count(1)
    expect(chosen).to_contain_text("late.md")


def test_while_an_answer_begins_none_can_be_asked_for_beside_it(visit: Go) -> None:
    v = visit()
    held = hold(v, "**/answers")
    v.model("endless")
    v.ask("Load first")
    has_come(v, held)
    expect(v.page.locator(".waiting")).to_be_visible()
    expect(v.page.get_by_text(v.t("chat.unanswered"))).to_have_count(0)
    v.page.keyboard.press("Alt+r")
    v.button("composer.stop").click()
    assert len(held) == 1
    held[0].continue_()
    answer = v.done()
    expect(answer).to_contain_text(re.compile(v.t("ending.stopped_empty")))
    v.button("nav.new").first.click()
    expect(v.composer).to_have_value("")


def test_the_list_and_the_open_chat_tell_the_same(visit: Go, mull_up: MullUp) -> None:
    mull_up.ask("/api/conversations", method="DELETE")
    v = visit()
    a_chat(v)

    def organise(place: Any) -> None:
        place.get_by_role("button", name=re.compile("^" + v.t("list.actions", title=""))).click()
        v.item("list.organise").click()

    organise(v.page.locator("aside"))
    dialog = v.page.get_by_role("dialog")
    folder = dialog.get_by_role("combobox", name=v.t("list.folder"))
    folder.fill("Work")
    v.button("action.save").click()
    expect(dialog).to_have_count(0)
    organise(v.page.locator(".chat-head"))
    expect(folder).to_have_value("Work")
    v.button("action.cancel").click()
    v.page.locator("aside").get_by_role(
        "button", name=re.compile("^" + v.t("list.actions", title=""))
    ).click()
    v.item("list.rename").click()
    v.page.get_by_label(v.t("list.title")).fill("Renamed")
    v.button("action.save").click()
    expect(v.page.get_by_role("heading", name="Renamed")).to_be_visible()


def test_what_was_deleted_as_a_page_was_left_is_not_listed_by_the_next(
    visit: Go, mull_up: MullUp
) -> None:
    v = visit()
    a_chat(v)
    before = mull_up.ask("/api/conversations")
    v.page.locator("aside").get_by_role(
        "button", name=re.compile("^" + v.t("list.actions", title=""))
    ).first.click()
    v.item("action.delete").click()
    # To the next page nothing is deleted yet.
    v.page.route("**/api/conversations?*", lambda route: route.fulfill(json=before))
    v.page.reload()
    links = v.page.locator("aside a[href^='/c/']")
    if len(before["items"]) > 1:
        links.first.wait_for()
    expect(links).to_have_count(len(before["items"]) - 1)


def test_a_page_that_was_left_while_the_server_was_away_does_not_stay_offline(visit: Go) -> None:
    v = visit()
    v.expects("ERR_FAILED")
    v.model("endless")
    v.page.route("**/events?after=0", lambda route: route.abort())
    v.ask("Go round")
    expect(v.page.locator(".offline")).to_be_visible()
    v.button("nav.new").first.click()
    expect(v.page.locator(".offline")).to_have_count(0)


def test_an_answer_gone_on_with_is_whole_on_every_page(visit: Go) -> None:
    v = visit()
    path = "/api/conversations/" + a_chat(v).rsplit("/", 1)[1]
    kept = v.server.ask(path)["messages"][-1]
    asked = {"parent": kept["id"], "continue": True, "model": "thinker"}
    id = v.server.ask(f"{path}/answers", asked)["response_id"]
    whole = v.page.request.get(f"{v.server.url}/api/answers/{id}/events?after=0").text()
    assert whole.startswith("event: before\n")
    so_far = re.split(r"id: \d+\nevent: end\n", whole)[0]
    assert so_far != whole

    # As it was before the last event, to a page that is opened then.
    def still_runs(route: Any) -> None:
        told = route.fetch().json()
        told["messages"][-1] |= {"state": "running", "response_id": id}
        route.fulfill(json=told)

    v.page.route("**" + path, still_runs)
    v.page.route(
        "**/events?after=0",
        lambda route: route.fulfill(body=so_far, content_type="text/event-stream"),
        times=1,
    )
    held = hold(v, re.compile(r"/events\?after=[1-9]"))
    v.page.reload()
    has_come(v, held)
    expect(v.answers.last).to_contain_text(kept["text"])
    expect(v.button("composer.stop")).to_be_visible()
    held[0].continue_()
    expect(v.done()).to_contain_text(kept["text"])

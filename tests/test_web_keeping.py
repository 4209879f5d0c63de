"""Keeping: the list of conversations, search, folders, export, import, files, in a browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import MullUp, Visit

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

PATHS = [("desktop", "en"), ("phone", "ko")]


def add(server: MullUp, title: str, text: str = "A question", **fields: Any) -> str:
    """A conversation of one question, made beside the page."""
    made = server.ask("/api/conversations", {"title": title, "model": "plain", **fields})
    path = f"/api/conversations/{made['id']}"
    server.ask(f"{path}/messages", {"parent": None, "text": text, "files": []})
    return str(made["id"])


@pytest.fixture
def empty(mull_up: MullUp) -> MullUp:
    mull_up.ask("/api/conversations", method="DELETE")
    return mull_up


def listed(v: Visit) -> Any:
    """The links of the list; on a phone it is opened first."""
    return v.open_list().locator("a[href^='/c/']")


def menu_of(v: Visit, title: str) -> None:
    name = v.t("list.actions", title=title)
    v.open_list().get_by_role("button", name=name, exact=True).click()


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_a_conversation_is_renamed_pinned_and_deleted_with_a_way_back(
    visit: Go, empty: MullUp, size: str, language: str
) -> None:
    add(empty, "An older chat")
    add(empty, "A newer chat")
    v = visit(size=size, language=language)
    # The way back is open for six seconds, in which a busy machine may not have come to it.
    v.page.add_init_script(
        "const later = setTimeout;"
        "window.setTimeout = (run, ms, ...rest) => later(run, ms === 6000 ? 60000 : ms, ...rest);"
    )
    v.page.reload()
    expect(listed(v)).to_have_count(2)
    menu_of(v, "An older chat")
    v.item("list.rename").click()
    v.page.get_by_label(v.t("list.title")).fill("Renamed")
    v.button("action.save").click()
    menu_of(v, "Renamed")
    v.item("list.pin").click()
    expect(listed(v).first).to_contain_text("Renamed")
    menu_of(v, "Renamed")
    v.item("action.delete").click()
    expect(listed(v)).to_have_count(1)
    v.button("action.undo").click()
    expect(listed(v)).to_have_count(2)
    v.page.reload()
    expect(listed(v).first).to_contain_text("Renamed")


def test_a_deleted_conversation_stays_deleted(visit: Go, empty: MullUp) -> None:
    gone = add(empty, "To be forgotten")
    v = visit(f"/c/{gone}")
    menu_of(v, "To be forgotten")
    v.item("action.delete").click()
    expect(listed(v)).to_have_count(0)
    v.page.goto(empty.url)
    expect(listed(v)).to_have_count(0)
    deadline = time.monotonic() + 60
    while empty.ask("/api/conversations")["items"]:  # the page was left before it was done
        assert time.monotonic() < deadline
    v.expects("404")
    v.page.goto(f"{empty.url}/c/{gone}")
    expect(v.page.get_by_role("heading", name=v.t("chat.gone"))).to_be_visible()


def test_folders_and_tags_file_a_conversation_and_filter_the_list(visit: Go, empty: MullUp) -> None:
    add(empty, "Tax return")
    add(empty, "Holiday")
    v = visit()
    menu_of(v, "Tax return")
    v.item("list.organise").click()
    dialog = v.page.get_by_role("dialog")
    dialog.get_by_role("combobox", name=v.t("list.folder")).fill("Papers")
    dialog.get_by_role("textbox", name=v.t("list.tags")).fill("money, 2026")
    v.button("action.save").click()
    chosen = v.page.get_by_role("button", name=re.compile("^" + v.t("list.filter") + ": "))
    chosen.click()
    v.page.get_by_role("menuitemradio", name="Papers").click()
    expect(listed(v)).to_have_count(1)
    expect(listed(v)).to_contain_text("Tax return")
    chosen.click()
    v.page.get_by_role("menuitemradio", name="#2026").click()
    expect(listed(v)).to_contain_text("Tax return")
    chosen.click()
    v.item("list.all").click()
    expect(listed(v)).to_have_count(2)


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_search_finds_titles_and_texts_and_leads_to_the_message(
    visit: Go, empty: MullUp, size: str, language: str
) -> None:
    add(empty, "Birds", "왜 철새는 길을 잃지 않을까?")
    add(empty, "Fish", "Why do eels wander?")
    v = visit(size=size, language=language)
    listed(v)
    field = v.page.get_by_label(v.t("shortcuts.search"))
    field.fill("철새는")
    hit = v.page.locator("a.hit")
    expect(hit).to_have_count(1)
    expect(hit.locator("mark")).to_have_text("철새는")
    field.fill("fish")
    expect(hit).to_contain_text("Fish")
    field.fill("eels")
    expect(hit.locator("mark")).to_have_text("eels")
    hit.click()
    expect(v.questions.get_by_text("Why do eels wander?")).to_be_in_viewport()
    listed(v)
    v.button("search.clear").click()
    expect(listed(v)).to_have_count(2)


def test_a_search_without_a_hit_says_so(visit: Go, empty: MullUp) -> None:
    v = visit()
    v.page.get_by_label(v.t("shortcuts.search")).fill("zyxwv")
    expect(v.page.get_by_text(v.t("search.nothing", q="zyxwv"))).to_be_visible()


def test_a_conversation_is_exported_as_markdown_and_json(
    visit: Go, empty: MullUp, tmp_path: Path
) -> None:
    add(empty, "To keep", "Keep these words")
    v = visit()
    for key, wanted in (("list.export_markdown", "Keep these words"), ("list.export_json", "{")):
        menu_of(v, "To keep")
        with v.page.expect_download() as download:
            v.item(key).click()
        path = tmp_path / key
        download.value.save_as(path)
        assert wanted in path.read_text()


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_everything_is_exported_deleted_and_imported_again(
    visit: Go, empty: MullUp, tmp_path: Path, size: str, language: str
) -> None:
    add(empty, "One", "first words")
    add(empty, "Two", "second words")
    v = visit("/settings", size=size, language=language)
    with v.page.expect_download() as download:
        v.link("settings.export").click()
    download.value.save_as(tmp_path / "mull.json")
    v.button("settings.delete_all").click()
    expect(v.page.get_by_text(v.t("settings.delete_all_text"))).to_be_visible()
    v.button("settings.delete_all_yes").click()
    expect(v.page.get_by_text(v.t("settings.deleted_all"))).to_be_visible()
    assert empty.ask("/api/conversations")["items"] == []
    v.page.locator("input[type=file]").set_input_files(tmp_path / "mull.json")
    expect(v.page.get_by_text(v.t("settings.imported", n=2, messages=2))).to_be_visible()
    expect(listed(v)).to_have_count(2)


def test_a_file_that_cannot_be_imported_says_why(visit: Go, empty: MullUp, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"half": ')
    v = visit("/settings")
    v.expects("400")
    v.page.locator("input[type=file]").set_input_files(broken)
    expect(v.page.get_by_role("alert")).to_contain_text(re.compile("JSON", re.I))


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_files_go_with_a_question_and_are_shown_beside_it(
    visit: Go, tmp_path: Path, size: str, language: str
) -> None:
    (tmp_path / "notes.md").write_text("# Notes\nOnly a line.")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "code.py").write_text("print(1)\n")
    v = visit(size=size, language=language)
    v.model("plain")
    v.page.locator("input[type=file]").set_input_files(
        [tmp_path / name for name in ("notes.md", "table.csv", "code.py")]
    )
    files = v.page.get_by_role("list", name=v.t("files.attached"))
    expect(files.get_by_role("listitem")).to_have_count(3)
    v.button("files.remove", name="code.py").click()
    expect(files.get_by_role("listitem")).to_have_count(2)
    v.ask("What is in these?")
    expect(v.questions.last.get_by_text("notes.md")).to_be_visible()
    expect(v.questions.last.get_by_text("table.csv")).to_be_visible()
    v.done()
    kept = v.server.ask("/api/conversations/" + v.page.url.rsplit("/", 1)[1])
    assert [f["name"] for f in kept["messages"][0]["files"]] == ["notes.md", "table.csv"]


def test_a_file_that_is_no_text_is_refused_in_its_place(visit: Go, tmp_path: Path) -> None:
    (tmp_path / "program.bin").write_bytes(bytes(range(256)) * 40)
    v = visit()
    v.expects("400")
    v.expects("415")
    v.page.locator("input[type=file]").set_input_files(tmp_path / "program.bin")
    expect(v.page.get_by_role("alert")).to_be_visible()
    expect(v.button("composer.send")).to_be_disabled()


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_the_context_meter_warns_and_nothing_too_long_is_sent(
    visit: Go, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    v.model("plain")
    meter = v.page.locator(".meter")
    v.composer.fill("x" * 2000)  # one token a letter, of 4,096
    expect(meter).to_contain_text(re.compile(r"4,096"))
    v.composer.fill("x" * 6000)
    expect(meter).to_have_class(re.compile("over"))
    expect(v.button("composer.send")).to_be_disabled()
    v.composer.press("Control+Enter")
    expect(v.questions).to_have_count(0)
    expect(v.composer).to_have_value("x" * 6000)


def test_a_chatgpt_export_is_imported_with_its_branches(
    visit: Go, empty: MullUp, tmp_path: Path
) -> None:
    def node(key: str, parent: str | None, children: list[str], role: str, text: str) -> Any:
        content = {"content_type": "text", "parts": [text]}
        message = {"id": key, "author": {"role": role}, "content": content, "create_time": 1.0}
        return {"id": key, "parent": parent, "children": children, "message": message}

    tree = {
        "q": node("q", None, ["a", "b"], "user", "Which way?"),
        "a": node("a", "q", [], "assistant", "To the left."),
        "b": node("b", "q", [], "assistant", "To the right."),
    }
    chat = {"title": "Ways", "create_time": 1.0, "mapping": tree, "current_node": "b"}
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([chat]))
    v = visit("/settings")
    v.page.locator("input[type=file]").set_input_files(file)
    listed(v).get_by_text("Ways").click()
    expect(v.answers.last).to_contain_text("To the right.")
    v.button("branches.before").click()
    expect(v.answers.last).to_contain_text("To the left.")

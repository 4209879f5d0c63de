"""For everyone: accessibility, keyboard, languages, installation, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import MullUp, Visit, all_words
from run_examples import WrittenRun

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]


def faults(v: Visit) -> list[str]:
    """What axe finds on the page that is open, of WCAG A and AA, whatever its weight."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = Axe().run(v.page, options=options).response["violations"]
    return [
        f"{one['impact']} {one['id']}: {one['help']}: {[n['html'][:160] for n in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical") or "best-practice" not in one["tags"]
    ]


@pytest.fixture(scope="module")
def example_run(mull_up: MullUp) -> Iterator[str]:
    folder = mull_up.home / "runs" / "accessible"
    run = WrittenRun(folder)
    run.pretrain()
    run.reinforce(range(1, 61))
    run.sample("17 + 25", "42", "correct")
    run.finish()
    yield "/runs/accessible"
    shutil.rmtree(folder)  # other files' tests share the server


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "en", "light"), ("phone", "ko", "dark")]
)
def test_axe_finds_nothing_on_any_page(
    visit: Go, example_run: str, size: str, language: str, theme: str
) -> None:
    v = visit(size=size, language=language, theme=theme)
    wrong = {"/": faults(v)}
    v.ask("Show me everything")
    v.done().get_by_role("button", expanded=False).click()
    wrong["chat"] = faults(v)
    v.button("composer.settings").click()
    wrong["chat settings"] = faults(v)
    for path in ("/models", "/runs", example_run, "/status", "/settings", "/login", "/nowhere"):
        v.page.goto(v.server.url + path)
        v.page.locator("main:not([aria-busy=true]) h1").wait_for()
        wrong[path] = faults(v)
    assert not any(wrong.values()), json.dumps(wrong, indent=1, ensure_ascii=False)


def test_the_whole_of_a_chat_is_done_without_a_mouse(visit: Go) -> None:
    v = visit()
    keys = v.page.keyboard
    expect(v.composer).to_be_focused()
    keys.type("A question by hand")
    keys.press("Enter")
    v.done()
    keys.press("Alt+r")
    expect(v.page.get_by_role("group", name=v.t("branches.label"))).to_contain_text("2 / 2")
    v.done()
    keys.press("ArrowUp")
    expect(v.page.get_by_role("textbox", name=v.t("message.edit"))).to_be_focused()
    keys.press("Escape")
    keys.press("Alt+s")
    expect(v.page.get_by_role("dialog")).to_be_visible()
    keys.press("Escape")
    expect(v.page.get_by_role("dialog")).to_have_count(0)
    keys.press("Control+k")
    expect(v.page.get_by_label(v.t("shortcuts.search"))).to_be_focused()
    keys.press("Escape")
    keys.press("Alt+n")
    expect(v.page).to_have_url(v.server.url + "/")
    keys.press("Control+,")
    expect(v.page).to_have_url(v.server.url + "/settings")
    keys.press("Control+b")
    expect(v.button("nav.open")).to_be_visible()


def test_escape_stops_an_answer_and_alt_a_asks_for_it_at_once(visit: Go) -> None:
    v = visit()
    v.model("endless")
    v.ask("Think")
    expect(v.answers.last.get_by_text("Round and round").first).to_be_visible()
    v.page.keyboard.press("Alt+a")
    expect(v.done()).to_contain_text("Enough of that.")
    v.ask("Again")
    expect(v.answers.last.get_by_text("Round and round").first).to_be_visible()
    v.page.keyboard.press("Escape")
    expect(v.done(2)).to_contain_text(v.t("ending.stopped_empty"))


@pytest.mark.parametrize(("path", "language"), [("/", "ko"), ("/settings", "en")])
def test_the_list_of_shortcuts_is_whole_everywhere(visit: Go, path: str, language: str) -> None:
    v = visit(path, language=language)
    v.page.locator("body").focus()
    v.page.evaluate("document.activeElement.blur()")
    v.page.keyboard.press("?")
    shown = v.page.get_by_role("dialog", name=v.t("shortcuts.title"))
    for key in all_words(language):
        if key.startswith("shortcuts.") and key != "shortcuts.title":
            expect(shown).to_contain_text(v.t(key))
    v.page.keyboard.press("Escape")
    expect(shown).to_have_count(0)


def test_focus_returns_to_what_opened_a_menu_or_a_dialog(visit: Go) -> None:
    v = visit()
    for opener in (
        v.page.get_by_role("button", name=re.compile("^" + v.t("think.label") + ": ")),
        v.button("composer.settings"),
    ):
        opener.press("Enter")
        v.page.keyboard.press("Escape")
        expect(opener).to_be_focused()


def test_both_languages_have_every_string() -> None:
    english, korean = all_words("en"), all_words("ko")
    assert english.keys() == korean.keys()
    assert len(english) > 250
    holes = re.compile(r"\{\w+\}")
    for key, text in english.items():
        assert set(holes.findall(text)) == set(holes.findall(korean[key])) or "|" in text, key


# What is not a word of the page: names, units, and what people and models wrote.
SAME_IN_BOTH = re.compile(r"^[\W\d_]*$|^(mull|nano|English|한국어|pass@1|Ctrl|Alt|Esc|Enter)$")


@pytest.mark.parametrize("path", ["/", "/models", "/runs", "/status", "/settings", "/login"])
def test_no_english_is_left_on_a_korean_page(visit: Go, mull_up: MullUp, path: str) -> None:
    mull_up.ask("/api/conversations", method="DELETE")  # their titles may be words of the page
    v = visit(path, language="ko")
    english = {text for text in all_words("en").values() if not SAME_IN_BOTH.match(text)}
    texts = v.page.evaluate(
        """() => {
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          const found = [];
          while (walker.nextNode()) found.push(walker.currentNode.data.trim());
          for (const e of document.querySelectorAll('[aria-label],[title],[placeholder]'))
            for (const a of ['aria-label', 'title', 'placeholder'])
              if (e.hasAttribute(a)) found.push(e.getAttribute(a));
          return found.filter(Boolean);
        }"""
    )
    assert not english & set(texts)
    assert v.page.evaluate("document.documentElement.lang") == "ko"


def test_the_page_can_be_installed_and_opens_without_its_server(visit: Go) -> None:
    v = visit(workers="allow")
    manifest = v.page.evaluate(
        "fetch(document.querySelector('link[rel=manifest]').href).then(r => r.json())"
    )
    assert manifest["display"] == "standalone"
    assert {icon["sizes"] for icon in manifest["icons"]} >= {"192x192", "512x512"}
    v.page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
    v.page.reload()
    v.page.wait_for_function("navigator.serviceWorker.controller !== null")
    v.page.wait_for_load_state("networkidle")
    v.expects("ERR_INTERNET_DISCONNECTED")
    v.expects("Failed to fetch")
    v.expects("ERR_FAILED")
    v.page.context.set_offline(True)
    v.page.reload()
    expect(v.page.get_by_text(v.t("error.offline"))).to_be_visible()
    v.page.context.set_offline(False)
    expect(v.page.get_by_text(v.t("error.offline"))).to_have_count(0)


def test_the_policy_of_the_page_allows_nothing_from_elsewhere(mull_up: MullUp) -> None:
    import urllib.request

    with urllib.request.urlopen(mull_up.url) as response:
        policy = dict(
            part.strip().split(" ", 1) if " " in part.strip() else (part.strip(), "")
            for part in response.headers["Content-Security-Policy"].split(";")
            if part.strip()
        )
    assert policy["default-src"] in ("'none'", "'self'")
    assert policy.get("script-src", "'self'") == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"https?:|\*|unsafe-eval", json.dumps(policy))


def test_no_motion_is_left_for_those_who_want_none(visit: Go) -> None:
    v = visit()  # every visit of these tests asks for reduced motion
    moving: list[Any] = v.page.evaluate(
        """() => [...document.querySelectorAll('*')].filter(e => {
          const s = getComputedStyle(e);
          return s.animationName !== 'none' ||
            s.transitionDuration.split(',').some(d => parseFloat(d) > 0);
        }).map(e => e.className)"""
    )
    assert moving == []

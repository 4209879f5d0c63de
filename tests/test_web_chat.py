"""Talking: every control of a chat, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser import Visit

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

SAMPLING = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "presence", "frequency"]
PATHS = [("desktop", "en"), ("phone", "ko")]


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_a_question_is_answered_and_its_thinking_folds_itself_away(
    visit: Go, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    v.ask("What is six times seven?")
    answer = v.done()
    expect(answer.get_by_text("forty-two")).to_be_visible()
    fold = answer.get_by_role("button", expanded=False)
    expect(fold).to_contain_text(v.t("facts.tokens", n=0).replace("0", "").strip())
    expect(answer.get_by_text("First I note what is asked")).to_have_count(0)
    fold.click()
    expect(answer.get_by_text("First I note what is asked")).to_be_visible()


def test_an_answer_is_markdown_with_formulas_tables_and_code_to_copy(visit: Go) -> None:
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    v.ask("Show everything")
    answer = v.done()
    expect(answer.locator("strong")).to_have_text("forty-two")
    expect(answer.locator(".katex").first).to_be_visible()
    expect(answer.get_by_role("table").get_by_role("row")).to_have_count(3)
    code = answer.locator("pre")
    expect(code.locator("[class*=hljs]").first).to_be_attached()
    answer.get_by_role("button", name=v.t("action.copy")).first.click()
    v.page.wait_for_function(
        "navigator.clipboard.readText().then(text => text.trim() === 'print(6 * 7)')"
    )


def test_an_answer_says_what_it_took(visit: Go) -> None:
    v = visit()
    v.ask("What did that cost?")
    facts = v.done().locator(".facts")
    expect(facts).to_contain_text(re.compile(r"\d+ tokens"))
    expect(facts).to_contain_text(re.compile(r"tokens/s"))
    expect(facts).to_contain_text(re.compile(r"\d(\.\d)? s"))


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_answer_now_ends_the_thinking_and_an_answer_follows(
    visit: Go, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    v.model("endless")
    v.ask("Think for ever")
    expect(v.answers.last.get_by_text("Round and round").first).to_be_visible()
    v.button("thinking.answer_now").click()
    expect(v.done().get_by_text("Enough of that.")).to_be_visible()


def test_stop_keeps_what_was_written_and_answering_again_makes_a_branch(visit: Go) -> None:
    v = visit()
    v.model("endless")
    v.ask("Never stop")
    expect(v.answers.last.get_by_text("Round and round").first).to_be_visible()
    v.button("composer.stop").click()
    answer = v.done()
    expect(answer).to_contain_text(v.t("ending.stopped_empty"))
    v.model("plain")
    answer.get_by_role("button", name=v.t("message.regenerate")).first.click()
    expect(v.done()).to_contain_text("just this answer")
    branches = v.page.get_by_role("group", name=v.t("branches.label"))
    expect(branches).to_contain_text("2 / 2")
    v.button("branches.before").click()
    expect(v.answers.last).to_contain_text(v.t("ending.stopped_empty"))
    v.button("branches.after").click()
    expect(v.answers.last.get_by_text("just this answer")).to_be_visible()


def test_an_edited_question_branches_and_both_branches_stay(visit: Go) -> None:
    v = visit()
    v.model("plain")
    v.ask("The first wording")
    v.done()
    v.button("message.edit").click()
    field = v.page.get_by_role("textbox", name=v.t("message.edit"))
    field.fill("The second wording")
    field.press("Enter")
    expect(v.questions.last).to_contain_text("The second wording")
    v.done()
    v.page.reload()
    expect(v.questions.last).to_contain_text("The second wording")
    v.button("branches.before").click()
    expect(v.questions.last).to_contain_text("The first wording")
    expect(v.answers.last.get_by_text("just this answer")).to_be_visible()


def test_an_answer_cut_at_the_limit_can_be_continued(visit: Go) -> None:
    v = visit()
    v.model("plain")
    v.button("composer.settings").click()
    v.page.get_by_text(v.t("chatset.sampling")).click()
    v.page.get_by_label(v.t("sampling.max_tokens")).fill("3")
    v.button("action.save").click()
    v.ask("Say it all")
    answer = v.done()
    expect(answer).to_contain_text(v.t("ending.length"))
    before = answer.locator(".prose").inner_text()
    answer.get_by_role("button", name=v.t("ending.continue")).click()
    expect(answer.locator(".prose")).not_to_have_text(before)
    assert v.done().locator(".prose").inner_text().startswith(before.strip())


def test_thinking_is_turned_off_and_limited_in_the_composer(visit: Go) -> None:
    v = visit()
    picker = v.page.get_by_role("button", name=re.compile("^" + v.t("think.label") + ": "))
    picker.click()
    v.item("think.off").click()
    v.ask("Answer at once")
    answer = v.done()
    expect(answer.get_by_text("forty-two")).to_be_visible()
    expect(answer.get_by_role("region", name=v.t("thinking.label"))).to_have_count(0)
    v.model("endless")
    picker.click()
    v.item("think.short").click()
    expect(picker).to_contain_text("256")
    v.ask("Think a little")
    expect(v.done(2).get_by_text("Enough of that.")).to_be_visible()
    # A budget of 256 lets a sentence end, for a tenth more at most.
    expect(v.answers.last).to_contain_text(re.compile("· (25[6-9]|26[0-9]|27[0-9]|28[0-2]) tokens"))


def test_a_chats_settings_are_kept_and_its_system_prompt_is_told(visit: Go) -> None:
    v = visit()
    v.model("plain")
    v.button("composer.settings").click()
    v.page.get_by_label(v.t("chatset.system")).fill("Be brief.")
    v.page.get_by_text(v.t("chatset.sampling")).click()
    for name in SAMPLING:
        expect(v.page.get_by_label(v.t(f"sampling.{name}"))).to_be_visible()
    v.page.get_by_label(v.t("sampling.temperature")).fill("0.3")
    v.button("action.save").click()
    v.ask("Hello")
    v.done()
    v.page.reload()
    v.page.get_by_role("button", name=v.t("chat.system", text="Be brief.")).click()
    expect(v.page.get_by_label(v.t("chatset.system"))).to_have_value("Be brief.")
    expect(v.page.get_by_label(v.t("sampling.temperature"))).to_have_value("0.3")
    conversation = v.server.ask("/api/conversations/" + v.page.url.rsplit("/", 1)[1])
    assert conversation["system"] == "Be brief."
    assert conversation["settings"]["sampling"]["temperature"] == 0.3


def test_a_preset_is_saved_used_in_another_chat_and_removed(visit: Go) -> None:
    v = visit()
    v.button("composer.settings").click()
    v.page.get_by_label(v.t("chatset.system")).fill("Speak like a lawyer.")
    v.button("preset.add").click()
    v.page.get_by_label(v.t("preset.name")).fill("Lawyer")
    v.page.get_by_label(v.t("preset.name")).press("Enter")
    expect(v.button("preset.remove", name="Lawyer")).to_be_visible()
    other = visit()
    other.button("composer.settings").click()
    other.page.get_by_role("button", name="Lawyer", exact=True).click()
    expect(other.page.get_by_label(other.t("chatset.system"))).to_have_value("Speak like a lawyer.")
    other.button("preset.remove", name="Lawyer").click()
    expect(other.page.get_by_role("button", name="Lawyer", exact=True)).to_have_count(0)


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_two_models_answer_the_same_question_side_by_side(
    visit: Go, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    v.model("thinker")
    v.button("model.compare").click()
    v.page.get_by_role("menuitemradio", name=re.compile("^plain")).click()
    v.ask("Which of you is better?")
    v.done(2)
    thinker = v.page.get_by_role("region", name="thinker")
    plain = v.page.get_by_role("region", name="plain")
    expect(thinker.get_by_text("forty-two")).to_be_visible()
    expect(plain.get_by_text("just this answer")).to_be_visible()
    with v.page.expect_response(lambda response: response.request.method == "PATCH"):
        plain.get_by_role("button", name=v.t("compare.choose")).click()
    expect(plain.get_by_role("button", pressed=True)).to_be_visible()
    v.page.reload()
    expect(plain.get_by_role("button", pressed=True)).to_be_visible()


def test_an_empty_chat_offers_three_questions_that_are_asked_by_a_click(visit: Go) -> None:
    v = visit()
    offered = v.page.get_by_role("list", name=v.t("welcome.try")).get_by_role("button")
    expect(offered).to_have_count(3)
    offered.first.click()
    expect(v.questions).to_have_count(1)
    v.done()


def test_what_was_typed_is_still_there_after_a_reload(visit: Go) -> None:
    v = visit()
    v.composer.fill("Half a thought")
    v.page.reload()
    expect(v.composer).to_have_value("Half a thought")


def test_an_ime_ends_a_syllable_with_enter_without_sending_it(visit: Go) -> None:
    v = visit(language="ko")
    session = v.page.context.new_cdp_session(v.page)
    v.composer.focus()
    session.send("Input.imeSetComposition", {"text": "한", "selectionStart": 1, "selectionEnd": 1})
    v.composer.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    session.send("Input.insertText", {"text": "한"})
    expect(v.questions).to_have_count(0)
    expect(v.composer).to_have_value("한")

"""Around the chat: models, training runs, status, settings and login, in a real browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PATIENCE_MS, MullUp, Visit, visits, write_home
from mull_command import run_mull
from run_examples import WrittenRun
from scripted_models import write_scripted_model

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

PATHS = [("desktop", "en"), ("phone", "ko")]


# --- models ---------------------------------------------------------------------------------------


def card(v: Visit, name: str) -> Any:
    heading = v.page.get_by_role("heading", name=name, exact=True)
    return v.page.get_by_role("listitem").filter(has=heading)


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_a_model_says_what_it_is_and_is_loaded_measured_and_unloaded(
    visit: Go, size: str, language: str
) -> None:
    v = visit("/models", size=size, language=language)
    plain = card(v, "plain")
    for fact in ("models.size", "models.parameters", "models.precision", "models.licence"):
        expect(plain).to_contain_text(v.t(fact))
    if plain.get_by_role("button", name=v.t("models.unload_it", name="plain")).is_visible():
        v.button("models.unload_it", name="plain").click()
    v.button("models.load_it", name="plain").click()
    expect(plain).to_contain_text(v.t("models.loaded"))
    v.button("models.measure_it", name="plain").click()
    expect(plain.locator(".speed")).to_contain_text(
        re.compile(re.escape(v.t("models.speed_writes", n="\0")).replace("\0", r"[\d,.]+"))
    )
    v.button("models.unload_it", name="plain").click()
    expect(plain).to_contain_text(v.t("models.not_loaded"))


def test_a_model_is_deleted_only_after_a_question(visit: Go, mull_up: MullUp) -> None:
    write_scripted_model(mull_up.home / "models" / "spare", thinking=None, answer="Spare words.")
    v = visit("/models")
    v.button("models.delete_it", name="spare").click()
    v.button("action.cancel").click()
    assert (mull_up.home / "models" / "spare").exists()
    v.button("models.delete_it", name="spare").click()
    v.page.get_by_role("dialog").get_by_role("button", name=v.t("action.delete")).click()
    expect(card(v, "spare")).to_have_count(0)
    assert not (mull_up.home / "models" / "spare").exists()


def test_models_that_can_be_fetched_say_how_large_they_are_and_whether_they_fit(visit: Go) -> None:
    v = visit("/models")
    giant = card(v, "deepseek-r1")
    expect(giant).to_contain_text("GB")
    expect(giant.locator(".notice.warning")).to_be_visible()
    expect(v.button("models.pull_it", name="deepseek-r1")).to_be_visible()


def test_a_new_model_can_be_chosen_in_the_chat_without_a_reload(visit: Go, mull_up: MullUp) -> None:
    v = visit("/")
    write_scripted_model(mull_up.home / "models" / "late", thinking=None, answer="Late but here.")
    v.model("late")
    v.ask("Are you there?")
    expect(v.done()).to_contain_text("Late but here.")
    shutil.rmtree(mull_up.home / "models" / "late")


# --- training runs --------------------------------------------------------------------------------


@pytest.fixture
def run(mull_up: MullUp) -> Iterator[WrittenRun]:
    folder = mull_up.home / "runs" / "tiny"
    shutil.rmtree(folder, ignore_errors=True)
    written = WrittenRun(folder)
    yield written
    written.metrics.close()
    written.folder.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_a_training_run_is_watched_as_it_goes(
    visit: Go, run: WrittenRun, size: str, language: str
) -> None:
    run.pretrain()
    run.reinforce(range(1, 11))
    v = visit("/runs", size=size, language=language)
    expect(v.page.get_by_text(v.t("runs.state_running"), exact=True)).to_be_visible()
    v.page.get_by_role("link", name="tiny").click()
    reward = v.page.get_by_role("figure").filter(has_text=v.t("runs.measure_reward"))
    expect(reward).to_be_visible()
    for measure in ("pass_at_1", "length", "loss"):
        expect(v.page.get_by_text(v.t(f"runs.measure_{measure}"), exact=True)).to_be_visible()
    before = reward.locator(".chart-value").inner_text()
    run.reinforce(range(11, 31))
    run.sample("17 + 25", "42", "correct")
    run.sample("18 + 25", "44", "wrong")
    expect(reward.locator(".chart-value")).not_to_have_text(before)
    answers = v.page.get_by_role("region", name=v.t("runs.samples")).get_by_role("listitem")
    expect(answers).to_have_count(2)
    expect(answers.first).to_contain_text("18 + 25")
    expect(answers.first).to_contain_text(v.t("runs.verdict_wrong"))
    answers.first.get_by_text(v.t("runs.thinking"), exact=True).click()
    expect(answers.first.get_by_text("I add the two numbers")).to_be_visible()


def test_a_finished_run_shows_its_stages_scores_bill_and_report(visit: Go, run: WrittenRun) -> None:
    run.pretrain()
    run.reinforce(range(1, 61))
    run.finish()
    v = visit("/runs/tiny")
    expect(v.page.get_by_text(v.t("runs.state_done"), exact=True).first).to_be_visible()
    stages = v.page.get_by_role("region", name=v.t("runs.stages")).get_by_role("row")
    expect(stages.filter(has_text="base").first).to_contain_text("163,840")
    scores = v.page.get_by_role("region", name=v.t("runs.scores")).first
    expect(scores).to_contain_text("31 ± 2")
    expect(v.page.get_by_text("2 min", exact=True)).to_be_visible()
    expect(v.page.get_by_text("$0.00040", exact=True).first).to_be_visible()
    with v.page.context.expect_page() as opened:
        v.link("runs.report").click()
    expect(opened.value.get_by_role("heading", name="tiny").first).to_be_visible()


def test_a_curve_is_read_with_the_keyboard(visit: Go, run: WrittenRun) -> None:
    run.reinforce(range(1, 6))
    v = visit("/runs/tiny")
    curve = v.page.get_by_role("slider", name=re.compile("^" + v.t("runs.measure_reward")))
    curve.focus()
    curve.press("ArrowLeft")
    expect(curve).to_have_attribute("aria-valuenow", "4")
    curve.press("ArrowLeft")
    expect(curve).to_have_attribute("aria-valuenow", "3")


def test_without_runs_the_page_says_how_to_start_one(visit: Go) -> None:
    v = visit("/runs")
    expect(v.page.get_by_text(v.t("runs.none"))).to_be_visible()
    expect(v.page.get_by_text("mull train")).to_have_count(2)


# --- status ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_the_status_page_shows_load_memory_and_models_as_they_change(
    visit: Go, size: str, language: str
) -> None:
    v = visit("/status", size=size, language=language)
    finished = v.page.locator(".tile").filter(has_text=v.t("status.finished")).locator("dd")
    before = int(finished.inner_text().replace(",", ""))
    other = visit("/", size=size, language=language)
    other.model("plain")
    other.ask("Count me")
    other.done()
    expect(finished).not_to_have_text(f"{before:,}")
    expect(card(v, "plain")).to_contain_text(v.t("status.weights"))
    memory = v.page.get_by_role("region", name=v.t("status.memory")).get_by_role("img")
    expect(memory).to_have_attribute("aria-label", re.compile("[0-9] [MG]B"))
    expect(v.page.locator(".spark")).to_have_count(2)


# --- settings -------------------------------------------------------------------------------------


def saving(v: Visit) -> Any:
    """What is changed in the settings meanwhile has reached the server at the end."""

    def is_change(response: Any) -> bool:
        return response.url.endswith("/api/settings") and response.request.method == "PATCH"

    return v.page.expect_response(is_change)


def test_language_and_theme_change_at_once_and_are_kept(visit: Go) -> None:
    v = visit("/settings")
    with saving(v):
        v.page.get_by_role("radio", name="한국어").check()
    expect(v.page.get_by_role("heading", name="설정")).to_be_visible()
    assert v.page.evaluate("document.documentElement.lang") == "ko"
    paper = "getComputedStyle(document.body.parentElement).backgroundColor"
    light = v.page.evaluate(paper)
    with saving(v):
        v.page.get_by_role("radio", name="어둡게").check()
    assert v.page.evaluate(paper) != light
    v.page.reload()
    expect(v.page.get_by_role("heading", name="설정")).to_be_visible()
    assert v.page.evaluate(paper) != light
    with saving(v):
        v.page.get_by_role("radio", name="시스템 설정대로").check()
        v.page.get_by_role("radio", name="브라우저 설정대로").check()
    expect(v.page.get_by_role("heading", name="Settings")).to_be_visible()


def test_a_choice_stands_though_the_server_tells_of_another(visit: Go, mull_up: MullUp) -> None:
    mull_up.ask("/api/settings", {"theme": "dark", "show_thinking": True}, "PUT")
    v = visit("/login")
    v.page.goto("about:blank")
    held: list[Any] = []
    v.page.route(
        "**/api/settings",
        lambda route: held.append(route) if route.request.method == "GET" else route.continue_(),
    )
    v.page.goto(v.server.url + "/settings")
    light = v.page.get_by_role("radio", name=v.t("settings.theme_light"))
    light.check()
    while not held:
        v.page.wait_for_timeout(10)
    held[-1].continue_()
    expect(v.page.get_by_label(v.t("settings.show_thinking"))).to_be_checked()
    expect(light).to_be_checked()


def test_a_choice_made_right_before_the_page_is_left_is_kept(visit: Go, mull_up: MullUp) -> None:
    v = visit("/settings")
    v.page.wait_for_load_state("networkidle")
    mull_up.ask("/api/settings", {"show_thinking": True}, "PATCH")  # by another page
    v.page.get_by_role("radio", name=v.t("settings.theme_dark")).check()
    v.page.goto("about:blank")
    kept: dict[str, Any] = {}
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while "theme" not in kept and time.monotonic() < deadline:
        kept = mull_up.ask("/api/settings")
    assert kept == {"theme": "dark", "show_thinking": True}


def test_enter_begins_a_line_where_it_shall_not_send(visit: Go) -> None:
    v = visit("/settings")
    with saving(v):
        v.page.get_by_label(v.t("settings.enter_sends")).uncheck()
    v.button("nav.new").first.click()
    v.composer.press_sequentially("one")
    v.composer.press("Enter")
    v.composer.press_sequentially("two")
    expect(v.composer).to_have_value("one\ntwo")
    v.composer.press("Control+Enter")
    expect(v.questions.last).to_contain_text("two")
    v.page.goto(v.server.url + "/settings")
    with saving(v):
        v.page.get_by_label(v.t("settings.enter_sends")).check()


def test_the_thinking_stays_open_for_whoever_wants_it_so(visit: Go) -> None:
    v = visit("/settings")
    with saving(v):
        v.page.get_by_label(v.t("settings.show_thinking")).check()
    v.button("nav.new").first.click()
    v.ask("Show me your thoughts")
    expect(v.done().get_by_text("First I note what is asked")).to_be_visible()
    v.page.goto(v.server.url + "/settings")
    with saving(v):
        v.page.get_by_label(v.t("settings.show_thinking")).uncheck()


# --- login ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MullUp]:
    """A server that asks for a key."""
    home = write_home(tmp_path_factory.mktemp("guarded"))
    key_for(home, "root")
    server = MullUp(home, model="plain", flags=("--accounts",)).start()
    yield server
    server.end()


def key_for(home: Path, name: str) -> str:
    made = run_mull("keys", "add", name, env={"MULL_HOME": str(home)})
    assert made.returncode == 0, made.stderr
    return made.stdout.split()[-1]


@pytest.mark.parametrize(("size", "language"), PATHS)
def test_a_key_opens_the_page_and_logging_out_closes_it(
    browser: Any, guarded: MullUp, size: str, language: str
) -> None:
    secret = key_for(guarded.home, "mina")
    opened = visits(browser, guarded)
    go = next(opened)
    v = go("/", size=size, language=language)
    v.expects("401")
    field = key_field(v)
    field.fill("wrong")
    v.button("login.button").click()
    expect(v.page.get_by_role("alert")).to_have_text(v.t("login.wrong"))
    field.fill(secret)
    field.press("Enter")
    v.ask("Who am I?")
    v.done()
    cookies = {c["name"]: c for c in v.page.context.cookies()}
    assert cookies["mull_session"]["httpOnly"]
    assert cookies["mull_session"]["sameSite"] == "Strict"
    v.composer.fill("Half a secret")
    v.page.goto(guarded.url + "/settings")
    expect(v.page.get_by_text(v.t("settings.account_is", name="mina"))).to_be_visible()
    assert "Half a secret" in v.page.evaluate("JSON.stringify(localStorage)")
    v.button("login.out").click()
    expect(v.page.get_by_role("heading", name=v.t("login.title"))).to_be_visible()
    assert v.page.evaluate("({...localStorage})") == {"mull.settings": "{}"}
    assert guarded.ask("/api/session")["login_required"]
    next(opened, None)


def test_one_owner_never_sees_anothers_conversation(browser: Any, guarded: MullUp) -> None:
    opened = visits(browser, guarded)
    go = next(opened)
    first, second = (log_in(go("/"), key_for(guarded.home, name)) for name in ("ada", "bo"))
    first.ask("A secret of mine")
    first.done()
    path = first.page.url.removeprefix(guarded.url)
    second.expects("404")
    second.page.goto(guarded.url + path)
    expect(second.page.get_by_role("heading", name=second.t("chat.gone"))).to_be_visible()
    expect(second.page.get_by_text("A secret of mine")).to_have_count(0)
    next(opened, None)


def key_field(v: Visit) -> Any:
    """Where a key is typed, on the login page and not on the page that shows before it."""
    return v.page.locator("form.login-card").get_by_label(v.t("login.key"))


def log_in(v: Visit, secret: str) -> Visit:
    v.expects("401")
    key_field(v).fill(secret)
    v.button("login.button").click()
    v.composer.wait_for()
    return v

"""How the page looks: every scene of docs/app.md is set up, and nothing in it spills or is cut off.

The pictures of the docs are taken by these tests, with what is installed and trained at home:
MULL_SCREENSHOTS=docs/images .venv/bin/python -m pytest tests/test_web_pictures.py
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import ROOT, ROUND_AND_ROUND, MullUp, Visit, visits
from run_examples import WrittenRun
from scripted_models import write_scripted_model

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]
Take = Callable[[Visit, str], None]

PICTURES = os.environ.get("MULL_SCREENSHOTS")
CHAT_MODEL = "smollm2-135m"

# Two models that recite a text, for what the small real ones cannot write.
THOUGHT = (
    "They want the sum of a geometric series. The ratio is one half, so it converges, and the sum "
    "is a / (1 - r) = 1 / (1 - 0.5) = 2. A table of partial sums would show how fast; a few lines "
    "of Python let them check it. I should say why the rest halves with every term."
)
ANSWER = r"""The sum is **2**. What is missing from 2 halves with every term:

$$\sum_{k=0}^{n} \frac{1}{2^k} = 2 - \frac{1}{2^n}$$

| terms | sum | missing |
|---:|---:|---:|
| 1 | 1 | 1 |
| 4 | 1.875 | 0.125 |
| 10 | 1.998047 | 0.001953 |

To see it for yourself:

```python
total, term = 0.0, 1.0
while term > 1e-9:  # what is missing is as large as the last term
    total += term
    term /= 2
print(total)
```
"""
THOUGHT_KO = (
    "부피가 같은 정육면체와 구의 겉넓이를 비교하라는 질문이다. 부피를 1로 두면 정육면체의 겉넓이는 "
    "6이고, 구는 반지름이 약 0.62이므로 겉넓이가 약 4.84가 된다. 그래서 구가 더 작다. 표로 보여 "
    "주면 좋겠다."
)
ANSWER_KO = r"""**구의 겉넓이가 더 작습니다.** 부피가 $1$로 같을 때 두 도형은 이렇게 다릅니다.

| 도형 | 한 변·반지름 | 겉넓이 |
|---|---:|---:|
| 정육면체 | 1 | 6 |
| 구 | 0.62 | 4.84 |

구의 겉넓이는 다음 식으로 구합니다.

$$S = \sqrt[3]{36\pi V^2} \approx 4.84$$

같은 부피를 가장 작은 겉넓이로 감싸는 도형이 구입니다. 물방울이 둥근 까닭도 여기에 있습니다.
"""
EARLIER = [
    ("What is the largest ocean on Earth?", "Geography", False),
    ("구와 정육면체 가운데 겉넓이가 작은 것은?", "수학", True),
    ("How do I undo the last commit in git?", None, False),
    ("Tips for sleeping better", None, False),
    ("Why do leaves turn red in autumn?", "Geography", False),
    ("서울에서 부산까지 기차로 얼마나 걸리나요?", None, False),
    ("A birthday poem for Jun", None, False),
]

# What is drawn wider than the window, or a label of which a part cannot be seen.
SPILLS = """() => {
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push('the page is too wide');
  const labels = 'button, a, h1, h2, h3, label, dt, dd, th, summary, .chip-text, .facts span';
  for (const e of document.querySelectorAll(labels)) {
    if (!e.checkVisibility() || e.closest('.visually-hidden, [inert]')) continue;
    const style = getComputedStyle(e);
    const cut = e.scrollWidth > e.clientWidth + 1 && style.overflowX !== 'visible';
    const box = e.getBoundingClientRect();
    const beyond = box.right > innerWidth + 1 &&
      !e.closest('.columns, .table-scroll');
    if ((cut && style.textOverflow !== 'ellipsis' && style.display !== 'inline') || beyond)
      found.push(`${e.tagName} ${e.className} ${e.textContent.slice(0, 60)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MullUp]:
    """A server with a model that chats and a run; for the pictures those that MULL_HOME has."""
    home = tmp_path_factory.mktemp("studio")
    model, run = home / "models" / CHAT_MODEL, home / "runs" / "nano"
    model.parent.mkdir()
    own = Path(os.environ.get("MULL_HOME", Path.home() / ".mull"))
    if PICTURES and (own / "models" / CHAT_MODEL).exists():
        model.symlink_to((own / "models" / CHAT_MODEL).resolve())
    else:
        write_scripted_model(model, thinking=None, answer="It is the Pacific Ocean.")
    if PICTURES and (own / "runs" / "nano").exists():
        heavy = shutil.ignore_patterns("checkpoints", "data", "final", "kept", "stages", "*.lock")
        shutil.copytree(own / "runs" / "nano", run, ignore=heavy)
    else:
        write_run(run)
    server = MullUp(home, model=CHAT_MODEL, flags=("--watts=30", "--usd-per-kwh=0.25")).start()
    yield server
    server.end()


def write_run(folder: Path) -> None:
    run = WrittenRun(folder)
    run.pretrain()
    run.reinforce(range(1, 61))
    run.sample("What is 37 * 48?", "1776", "correct", step=60)
    run.finish()


@pytest.fixture
def visit(browser: Any, studio: MullUp) -> Iterator[Go]:
    """Opens pages of somebody who has a few conversations and no settings."""
    studio.ask("/api/settings", {}, "PUT")
    studio.ask("/api/conversations", method="DELETE")
    for title, folder, pinned in reversed(EARLIER):
        made = studio.ask("/api/conversations", {"title": title, "folder": folder})
        path = f"/api/conversations/{made['id']}"
        studio.ask(f"{path}/messages", {"parent": None, "text": title, "files": []})
        studio.ask(path, {"pinned": pinned, "title": title}, "PATCH")
    yield from visits(browser, studio)


@pytest.fixture
def recite(studio: MullUp) -> Iterator[Callable[..., str]]:
    """Adds a model that recites, for the length of a test."""
    written = []

    def add(name: str, thinking: str, answer: str, **how: Any) -> str:
        written.append(studio.home / "models" / name)
        write_scripted_model(written[-1], thinking=thinking, answer=answer, **how)
        return name

    yield add
    for folder in written:
        studio.ask(f"/api/models/{folder.name}/unload", {})
        shutil.rmtree(folder)


@pytest.fixture
def take() -> Take:
    """Looks whether all is in its place, and keeps the picture where it is wanted."""

    def picture(v: Visit, name: str) -> None:
        v.page.evaluate("document.fonts.ready.then(() => 1)")
        assert v.page.evaluate(SPILLS) == []
        if PICTURES:
            folder = ROOT / PICTURES
            folder.mkdir(parents=True, exist_ok=True)
            v.page.mouse.move(0, 0)
            v.page.wait_for_timeout(300)
            v.page.screenshot(path=folder / f"{name}.png")

    return picture


def think(v: Visit, question: str, answers: int = 1) -> Any:
    """Ask, wait, and open the thinking of the answer."""
    v.ask(question)
    answer = v.done(answers)
    answer.get_by_role("button", expanded=False).click()
    return answer


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "en", "light"), ("phone", "ko", "dark")]
)
def test_an_empty_chat(visit: Go, take: Take, size: str, language: str, theme: str) -> None:
    v = visit(size=size, language=language, theme=theme)
    expect(v.page.get_by_role("list", name=v.t("welcome.try"))).to_be_visible()
    take(v, f"empty-{size}-{language}")


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "en", "light"), ("phone", "ko", "light")]
)
def test_an_answer_with_its_thinking_open(
    visit: Go, take: Take, size: str, language: str, theme: str
) -> None:
    v = visit(size=size, language=language, theme=theme)
    v.model("nano")
    think(v, "What is 37 * 48?")
    take(v, f"thinking-{size}-{language}")


@pytest.mark.parametrize(
    ("size", "language", "theme", "question", "thinking", "text"),
    [
        ("desktop", "en", "dark", "What is 1 + 1/2 + 1/4 + 1/8 + …?", THOUGHT, ANSWER),
        (
            "phone",
            "ko",
            "light",
            "부피가 같은 구와 정육면체, 어느 쪽 겉넓이가 작나요?",
            THOUGHT_KO,
            ANSWER_KO,
        ),
    ],
)
def test_formulas_tables_and_code(
    visit: Go,
    take: Take,
    recite: Callable[..., str],
    size: str,
    language: str,
    theme: str,
    question: str,
    thinking: str,
    text: str,
) -> None:
    model = recite("recital", thinking, text)
    v = visit(size=size, language=language, theme=theme)
    v.model(model)
    v.ask(question)
    answer = v.done()
    expect(answer.locator(".katex").first).to_be_visible()
    take(v, f"answer-{size}-{language}")


def test_branches(visit: Go, take: Take) -> None:
    v = visit(language="ko")
    v.model("nano")
    v.ask("Multiply 40 by 25.")
    v.done()
    v.button("message.edit").click()
    field = v.page.get_by_role("textbox", name=v.t("message.edit"))
    field.fill("Multiply 47 by 68.")
    field.press("Enter")
    expect(v.questions.last).to_contain_text("47 by 68")
    v.done()
    v.page.get_by_role("button", name=v.t("message.regenerate")).click()
    answer = v.done()
    expect(answer).to_contain_text("2 / 2")
    v.questions.last.hover()
    take(v, "branches-desktop-ko")


@pytest.mark.parametrize(("size", "language"), [("desktop", "en"), ("phone", "ko")])
def test_two_models_side_by_side(visit: Go, take: Take, size: str, language: str) -> None:
    v = visit(size=size, language=language)
    v.model("nano")
    v.button("model.compare").click()
    v.page.get_by_role("menuitemradio", name=re.compile(f"^{CHAT_MODEL}")).click()
    v.ask("What is 37 * 48?")
    v.done(2)
    take(v, f"compare-{size}-{language}")


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "en", "light"), ("phone", "ko", "dark")]
)
def test_the_models_page(visit: Go, take: Take, size: str, language: str, theme: str) -> None:
    v = visit("/models", size=size, language=language, theme=theme)
    v.button("models.measure_it", name=CHAT_MODEL).click()
    speed = v.page.get_by_role("listitem").filter(
        has=v.page.get_by_role("heading", name=CHAT_MODEL)
    )
    expect(speed.locator(".speed")).to_contain_text(re.compile(r"\d"))
    expect(v.button("models.measure_it", name=CHAT_MODEL)).to_be_enabled()
    take(v, f"models-{size}-{language}")


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "en", "light"), ("phone", "ko", "light")]
)
def test_a_training_run(visit: Go, take: Take, size: str, language: str, theme: str) -> None:
    v = visit("/runs/nano", size=size, language=language, theme=theme)
    expect(v.page.get_by_role("figure").first).to_be_visible()
    take(v, f"run-{size}-{language}")


@pytest.mark.parametrize(
    ("size", "language", "theme"), [("desktop", "ko", "dark"), ("phone", "en", "light")]
)
def test_the_status_page_while_answers_are_made(
    visit: Go, take: Take, recite: Callable[..., str], size: str, language: str, theme: str
) -> None:
    model = recite("recital", ROUND_AND_ROUND, ANSWER, endless=True, context=65536, layers=8)
    v = visit(size=size, language=language, theme=theme)
    v.model(model)
    v.ask("What is 1 + 1/2 + 1/4 + 1/8 + …?")
    v.page.get_by_text(ROUND_AND_ROUND[:20]).first.wait_for()  # or leaving would take it back
    v.page.goto(v.server.url + "/status")
    decoded = v.page.locator(".tile").filter(has_text=v.t("status.writing")).locator("dd")
    expect(decoded).to_contain_text(re.compile("[1-9]"))
    expect(v.page.locator(".spark")).to_have_count(2)
    if PICTURES:
        v.page.wait_for_timeout(2_500)  # for a curve worth looking at
    take(v, f"status-{size}-{language}")
    v.page.go_back()
    v.button("composer.stop").click()
    v.done()


@pytest.mark.parametrize(("size", "language"), [("desktop", "ko"), ("phone", "en")])
def test_the_settings_page(visit: Go, take: Take, size: str, language: str) -> None:
    v = visit("/settings", size=size, language=language)
    expect(v.page.get_by_role("radio", name="한국어")).to_be_visible()
    take(v, f"settings-{size}-{language}")


def test_the_list_of_conversations_on_a_phone(visit: Go, take: Take) -> None:
    v = visit(size="phone", language="ko")
    v.open_list().get_by_text(EARLIER[1][0]).first.wait_for()
    take(v, "list-phone-ko")


@pytest.mark.parametrize(("size", "language"), [("desktop", "en"), ("phone", "ko")])
def test_the_settings_of_a_chat(visit: Go, take: Take, size: str, language: str) -> None:
    v = visit(size=size, language=language)
    v.button("composer.settings").click()
    v.page.get_by_text(v.t("chatset.sampling")).click()
    take(v, f"chat-settings-{size}-{language}")

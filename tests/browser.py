"""A real Chromium in front of a real `mull up`: what the tests of the page share.

The models are small real ones that recite a known text (scripted_models). Every visit is watched:
a request to another origin, an error on the console or an exception in the page fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ports import free_port
from scripted_models import write_scripted_model

ROOT = Path(__file__).parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 860}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}
PATIENCE_MS = 30_000  # others may have the machine meanwhile
LOCALES = {"en": "en-GB", "ko": "ko-KR"}

THINKING = (
    "The question is short, so a short look is enough. First I note what is asked. "
    "Then I check it once more, slowly, and nothing speaks against it."
)
# Long enough that it is no loop to the engine, which would end one.
ROUND_AND_ROUND = "Round and round" + "".join(f", turn {turn}" for turn in range(1, 601))
ANSWER = """The answer is **forty-two**, as in $6 \\cdot 7 = 42$.

| step | value |
|---|---|
| six | 6 |
| seven | 7 |

```python
print(6 * 7)
```
"""


def chromium() -> str:
    """The browser of this machine; a test that needs it is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: apt-get install chromium")


# --- the server -----------------------------------------------------------------------------------

# `mull` whose answers are longer unless the page says how long: what has no end must last for all
# that a test does meanwhile.
_PATIENT = [
    sys.executable,
    "-c",
    "import sys; from mull import llm; llm.DEFAULT_MAX_TOKENS = 60_000; "
    "from mull.cli import main; sys.exit(main())",
]


@dataclass
class MullUp:
    """A `mull up` process with its own MULL_HOME, that can be killed and started again."""

    home: Path
    model: str = "thinker"
    flags: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> MullUp:
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *_PATIENT,
                    "up",
                    "--no-browser",
                    f"--port={self.port}",
                    "-m",
                    self.model,
                    *self.flags,
                ],
                env={**os.environ, "MULL_HOME": str(self.home)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, (self.home / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "mull up did not answer within two minutes"
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def end(self, how: int = signal.SIGTERM) -> None:
        """SIGKILL is the death that leaves no time to save anything."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One request to the page's own routes, beside the page."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path,
            data,
            {"Content-Type": "application/json", "Accept": "application/json"},
            method=method or ("GET" if body is None else "POST"),
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def stop_answers(self) -> None:
        """Those without an end, before the next test."""
        listed = self.ask("/api/conversations?limit=200")["items"]
        for id in (each["id"] for each in listed if each["running"]):
            for message in self.ask(f"/api/conversations/{id}")["messages"]:
                if message["state"] == "running":
                    with contextlib.suppress(urllib.error.HTTPError):  # it has just ended
                        self.ask(f"/api/answers/{message['response_id']}/stop", {})


def write_home(home: Path) -> Path:
    """A MULL_HOME with the models of these tests."""
    models = home / "models"
    models.mkdir(parents=True)
    write_scripted_model(models / "thinker", thinking=THINKING, answer=ANSWER)
    write_scripted_model(models / "plain", thinking=None, answer="No thought, just this answer.")
    write_scripted_model(
        models / "endless",
        thinking=ROUND_AND_ROUND,
        answer="Enough of that.",
        endless=True,
        context=65536,
        layers=8,
    )
    return home


# --- the browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")  # an event loop runs in this thread as long as it lives
def browser() -> Iterator[Any]:
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def mull_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MullUp]:
    """The server most tests share."""
    chromium()
    priced = ("--watts=30", "--usd-per-kwh=0.25")
    server = MullUp(write_home(tmp_path_factory.mktemp("mull-home")), flags=priced).start()
    yield server
    server.end()


@dataclass
class Visit:
    """A page somebody has open, and what went wrong in it."""

    page: Any
    server: MullUp
    language: str
    size: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def t(self, key: str, **values: object) -> str:
        """The page's own words in the language of this visit."""
        return words(self.language, key, **values)

    def button(self, key: str, **values: object) -> Any:
        return self.page.get_by_role("button", name=self.t(key, **values), exact=True)

    def link(self, key: str) -> Any:
        return self.page.get_by_role("link", name=self.t(key), exact=True)

    def item(self, key: str, **values: object) -> Any:
        """An entry of the menu that is open."""
        return self.page.locator('[role^="menuitem"]').filter(has_text=self.t(key, **values))

    def expects(self, part: str) -> None:
        """A console error with these words belongs to the test."""
        self.expected.append(part)

    def check(self) -> None:
        wrong = [p for p in self.problems if not any(part in p for part in self.expected)]
        assert not wrong, "\n".join(wrong)

    # the chat

    @property
    def composer(self) -> Any:
        return self.page.get_by_role("textbox", name=self.t("composer.message"), exact=True)

    @property
    def answers(self) -> Any:
        return self.page.get_by_role("article", name=self.t("message.answer"))

    @property
    def questions(self) -> Any:
        return self.page.get_by_role("article", name=self.t("message.question"))

    def open_list(self) -> Any:
        """The list of conversations at the side; on a phone it is a drawer to be opened."""
        if self.page.locator(".shell.with-sidebar").count() == 0:
            self.button("nav.open").click()
        return self.page.locator("aside")

    def ask(self, text: str) -> None:
        self.composer.fill(text)
        self.button("composer.send").click()
        self.questions.last.get_by_text(text).wait_for()

    def done(self, count: int = 1) -> Any:
        """The last answer, once there are so many and none is running."""
        from playwright.sync_api import expect

        expect(self.answers).to_have_count(count, timeout=2 * PATIENCE_MS)
        expect(self.button("composer.stop")).to_have_count(0, timeout=2 * PATIENCE_MS)
        return self.answers.last

    def model(self, name: str) -> None:
        """Choose who answers."""
        start = self.t("model.choose", model="\0").split("\0")[0]
        self.page.get_by_role("button", name=re.compile("^" + re.escape(start))).click()
        self.page.get_by_role("menuitemradio", name=re.compile(f"^{name}")).click()


@pytest.fixture
def visit(browser: Any, mull_up: MullUp) -> Iterator[Callable[..., Visit]]:
    """Opens pages, each in a browser context of its own; what they complained of fails the test."""
    mull_up.ask("/api/settings", {}, "PUT")  # nobody has chosen anything yet
    yield from visits(browser, mull_up)
    mull_up.stop_answers()


def visits(browser: Any, default: MullUp) -> Iterator[Callable[..., Visit]]:
    opened: list[tuple[Visit, Any]] = []

    def go(
        path: str = "/",
        *,
        size: str = "desktop",
        language: str = "en",
        theme: str = "light",
        server: MullUp = default,
        workers: str = "block",
        **options: Any,
    ) -> Visit:
        context = browser.new_context(
            **SIZES[size],
            locale=LOCALES[language],
            color_scheme=theme,
            service_workers=workers,
            reduced_motion="reduce",
            **options,
        )
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        visit = Visit(page, server, language, size)
        _watch(visit)
        opened.append((visit, context))
        page.goto(server.url + path)
        page.locator("main:not([aria-busy=true])").first.wait_for()
        return visit

    yield go
    for _visit, context in opened:
        context.close()
    for visit, _context in opened:
        visit.check()


def _watch(visit: Visit) -> None:
    origin = urlsplit(visit.server.url).netloc

    def request(sent: Any) -> None:
        parts = urlsplit(sent.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != origin:
            visit.problems.append(f"a request left for {sent.url[:200]}")

    def console(message: Any) -> None:
        if message.type == "error":
            visit.problems.append(f"console: {message.text[:500]}")

    visit.page.on("request", request)
    visit.page.on("console", console)
    visit.page.on("pageerror", lambda error: visit.problems.append(f"exception: {error}"))


# --- the page's own words -------------------------------------------------------------------------


@cache
def all_words(language: str) -> dict[str, str]:
    """Every string of the page in one language, as its source files have them."""
    found: dict[str, str] = {}
    for name in (f"{language}.ts", f"pages.{language}.ts"):
        source = (ROOT / "web/src/i18n" / name).read_text()
        for key, text in re.findall(r'^\s+"([\w.]+)":\s+"((?:[^"\\]|\\.)*)",', source, re.M):
            found[key] = json.loads(f'"{text}"')
    return found


def words(language: str, key: str, **values: object) -> str:
    text = all_words(language)[key]
    if "|" in text:
        one, more = text.split("|")
        text = one if values.get("n") == 1 else more
    for name, value in values.items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        text = text.replace(f"{{{name}}}", shown)
    return text

"""A teacher behind an API: its answers, its refusals, and being stopped while it is silent."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from train_run_parts import on_one_thread, tiny

from mull.errors import TrainError
from mull.tasks import Problem
from mull.train.recipe_stages import Distill
from mull.train.run import run_recipe
from mull.train.run_folder import comparable
from mull.train.session import StopAsked
from mull.train.stages import api_teacher
from mull.train.stages.api_teacher import ApiTeacher


class Api(ThreadingHTTPServer):
    """Says odd or even, or what `faults` has for a question: one status each time it is asked
    ("cut": breaks off). go_on: answers after the first `at_once` wait for it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[Any]] = {}
        self.every: int | None = None
        self.at_once = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.lock = threading.Lock()

    @property
    def teacher(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#wise"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, body["model"]) == ("/v1/chat/completions", "wise")
        question = body["messages"][0]["content"]
        with self.server.lock:
            self.server.asked[question] += 1
            faults = self.server.faults.get(question)
            fault = faults.pop(0) if faults else self.server.every
            is_held = sum(self.server.asked.values()) > self.server.at_once
        if is_held:
            self.server.go_on.wait(30)
        if isinstance(fault, int):
            self.reply(fault, {"error": {"message": "I\x1b[2J will not"}})
            return
        said = "odd" if int(question[:-1]) % 2 else "even"
        message = {"content": said, "reasoning_content": f"{question[-2]} {said}"}
        choice = {"message": message, "finish_reason": "stop"}
        self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 3}}, fault == "cut")

    def reply(self, status: int, value: Any, is_cut: bool = False) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n" % len(data) + data[: len(data) // 2])
        if is_cut:
            self.close_connection = True
            return
        self.wfile.write(data[len(data) // 2 :] + b"\r\n0\r\n\r\n")

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from on_one_thread()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(api_teacher, "_PATIENCE_S", (0.0, 0.0, 0.0))
    server = Api()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def teacher_at(address: str, check: Callable[[], None] = lambda: None) -> ApiTeacher:
    values = {"name": "s", "kind": "distill", "teacher": address, "task": "t", "steps": 1}
    judge: Any = None  # it only answers here
    return ApiTeacher(Distill.model_validate(values | {"samples": 2}), judge, check)


def problems(*numbers: int) -> list[Problem]:
    return [Problem(f"{number}?", "", "t") for number in numbers]


def test_answers_come_in_order_and_what_passes_is_asked_again(api: Api) -> None:
    api.faults = {"3?": ["cut", 503, 429], "4?": ["cut"]}
    teacher = teacher_at(api.teacher)
    found = teacher.answers(problems(*range(20)), 0)
    assert [[each.text for each in some] for some in found] == [["even"] * 2, ["odd"] * 2] * 10
    assert found[7][1].thinking == "7 odd"
    assert teacher.tokens == 20 * 2 * 3
    assert sum(api.asked.values()) == 40 + 4


def test_a_question_that_is_refused_costs_its_own_answer_alone(api: Api) -> None:
    api.faults = {"3?": [400, 422]}
    found = teacher_at(api.teacher).answers(problems(*range(6)), 0)
    texts = [[each.text for each in some] for some in found]
    assert texts[2:5] == [["even"] * 2, ["", ""], ["even"] * 2]
    assert api.asked["3?"] == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "refuses every question .400 .*will not"), (401, "401 .*; set MULL_TEACHER_KEY"),
     (404, "answers 404"), (500, "answers 500")],
)  # fmt: skip
def test_what_no_question_gets_past_is_one_line(api: Api, status: int, said: str) -> None:
    api.every = status
    with pytest.raises(TrainError, match=said) as caught:
        teacher_at(api.teacher).answers(problems(*range(6)), 0)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:x/v1", "http://a b/v1"])
def test_an_address_that_is_none_is_one_line(address: str) -> None:
    with pytest.raises(TrainError, match="is no address"):
        teacher_at(address).answers(problems(1), 0)


def test_a_silent_api_keeps_no_run_from_stopping(api: Api) -> None:
    api.go_on.clear()

    def check() -> None:
        if api.asked:
            raise StopAsked("interrupted")

    before = threading.active_count()
    with pytest.raises(StopAsked):
        teacher_at(api.teacher, check).answers(problems(*range(30)), 0)
    asked = sum(api.asked.values())
    api.go_on.set()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert sum(api.asked.values()) <= max(asked, 8)  # those under way, and no more


def test_answers_that_are_paid_for_outlive_a_stop(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_teacher, "_AT_ONCE", 1)
    changes = (f"stages.student.teacher={api.teacher}", "stages.student.steps=1")
    recipe, out = tiny(tmp_path, *changes), tmp_path / "out"
    base = recipe.stages[0].model_copy(update={"steps": 1, "validate_every": 0})
    recipe = recipe.model_copy(update={"stages": (base, recipe.stages[4])})

    awaited = ApiTeacher._awaited

    api.at_once = 8
    api.go_on.clear()

    def stopped(self: ApiTeacher, came: Any) -> Any:
        if sum(api.asked.values()) >= 5:
            while sum(api.asked.values()) <= api.at_once:
                time.sleep(0.001)  # as on a busy machine: more have come than were looked at
            raise StopAsked("interrupted")
        return awaited(self, came)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ApiTeacher, "_awaited", stopped)
        assert run_recipe(recipe, out).status == "interrupted"
    kept = (out / "kept" / "student.jsonl").read_bytes()
    assert kept.count(b"\n") >= api.at_once - 1
    api.go_on.set()
    assert run_recipe(recipe, out, resume=True).status == "done"
    whole = (out / "kept" / "student.jsonl").read_bytes()
    assert whole.startswith(kept)
    assert whole.count(b"\n") == 16
    assert sum(api.asked.values()) <= 16 + 2  # one under way, one whose question was half answered
    steps = [each for each in comparable(out / "metrics.jsonl") if each["kind"] == "step"]
    assert steps[-2]["values"]["left_out"] == {}

"""What can go wrong around a server: kills, full disks, locked or damaged databases, models."""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
import pytest
from browser import MullUp
from databases import cluster
from scripted_models import write_scripted_model
from wire_server import ANSWER, ENDLESS, Api, endless_model, plain_model, running_server, sse_events

from mull.cli import main
from mull.errors import StoreBusyError, StoreError
from mull.serve.store.database import Database

ASK = {"messages": [{"role": "user", "content": "Go on."}]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    write_scripted_model(models / "plain", thinking=None, answer=ANSWER)
    write_scripted_model(
        models / "endless", thinking=None, answer=ENDLESS, endless=True, context=65536
    )
    return tmp_path


@contextmanager
def started(home: Path, *flags: str) -> Iterator[MullUp]:
    server = MullUp(home, model="plain", flags=("--threads=1", *flags)).start()
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


def is_a_stretch_of_the_recital(text: str) -> bool:
    return text in ENDLESS * (len(text) // len(ENDLESS) + 2)


Up = Callable[..., None]


@pytest.fixture
def up_ends(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Up]:
    """Runs `mull up` with flags: it must end with this code and one line that says so much."""
    monkeypatch.setenv("MULL_HOME", str(home))
    loggers = [logging.getLogger(name) for name in ("mull", "uvicorn")]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]

    def run(code: int, said: str, *flags: str, model: str = "plain") -> None:
        assert main(["up", "--no-browser", "--port=0", "-m", model, *flags]) == code
        told = capfd.readouterr().err
        assert told.startswith("mull: ")
        assert told.count("\n") == 1, told
        assert said in told
        assert "topsecret" not in told

    yield run
    for logger, level, propagates, handlers in before:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagates, handlers


# --- how a process ends


def test_kill_9_in_the_middle_of_streams_loses_no_finished_message(home: Path) -> None:
    with started(home) as server:
        api = Api(server.url)
        chats = [api.chat(title=f"chat {i}") for i in range(6)]
        asked = [api.say(chat, f"question {i}") for i, chat in enumerate(chats)]
        done = [
            api.answer(chat, question["id"])
            for chat, question in zip(chats[:3], asked[:3], strict=True)
        ]
        begun = [
            api.begin(chat, question["id"], model="endless", sampling={"max_tokens": 30_000})
            for chat, question in zip(chats[3:], asked[3:], strict=True)
        ]
        assert len(begun) == 3
        for chat in chats[3:]:  # as soon as something of each is written
            while not api("GET", f"/conversations/{chat}")["messages"][1]["text"]:
                time.sleep(0.02)
        server.end(signal.SIGKILL)
    with sqlite3.connect(home / "chats.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    with started(home) as server:
        api = Api(server.url)
        found = [api("GET", f"/conversations/{chat}")["messages"] for chat in chats]
        assert [messages[0]["text"] for messages in found] == [q["text"] for q in asked]
        assert [messages[1] for messages in found[:3]] == done
        cut = [messages[1] for messages in found[3:]]
        assert {message["state"] for message in cut} == {"stopped"}
        assert all(is_a_stretch_of_the_recital(message["text"]) for message in cut)
        assert all(message["text"] for message in cut)
        # and what was cut off can be gone on with
        more = api.answer(chats[3], cut[0]["id"], **{"continue": True}, sampling={"max_tokens": 5})
        assert more["text"].startswith(cut[0]["text"])


class Reader(threading.Thread):
    """Reads one streamed chat completion to its end."""

    def __init__(self, url: str, **body: Any) -> None:
        super().__init__()
        self.url, self.body = url, {**ASK, "stream": True, **body}
        self.text, self.finish, self.is_whole = "", None, False
        self.has_begun = threading.Event()

    def run(self) -> None:
        path = f"{self.url}/v1/chat/completions"
        with httpx2.stream("POST", path, json=self.body, timeout=60) as response:
            for _, _, data in sse_events(response):
                if data == "[DONE]":
                    self.is_whole = True
                    return
                choice = data["choices"][0]
                self.text += choice["delta"].get("content") or ""
                self.finish = choice["finish_reason"] or self.finish
                if self.text:
                    self.has_begun.set()


def until_said(home: Path, event: str) -> None:
    deadline = time.monotonic() + 30
    while event not in (home / "server.log").read_text():
        assert time.monotonic() < deadline, f"the log does not say {event!r}"
        time.sleep(0.02)


def test_sigterm_lets_streams_finish_and_takes_nothing_new(home: Path) -> None:
    with started(home) as server:
        reader = Reader(server.url, model="endless", max_tokens=10_000)
        reader.start()
        assert reader.has_begun.wait(30)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        until_said(home, "shutting down")
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{server.url}/health", timeout=5)
        reader.join(60)
        assert (reader.is_whole, reader.finish) == (True, "length")
        assert is_a_stretch_of_the_recital(reader.text)
        assert server.process.wait(30) == 0
    log = (home / "server.log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines][-3:] == ["shutting down", "answer", "request"]
    assert lines[-2]["completion_tokens"] == 10_000
    assert not any(word in log for word in ("Go on.", "step7"))


def test_a_second_signal_ends_answers_with_what_they_have(home: Path) -> None:
    with started(home) as server:
        reader = Reader(server.url, model="endless", max_tokens=60_000)
        reader.start()
        assert reader.has_begun.wait(30)
        api = Api(server.url)
        chat = api.chat()
        asked = api.say(chat, "one")["id"]
        api.begin(chat, asked, model="endless", sampling={"max_tokens": 60_000})
        deadline = time.monotonic() + 30
        while len(api("GET", f"/conversations/{chat}")["messages"][-1]["text"]) <= 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        until_said(home, "shutting down")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130
        reader.join(10)
        assert (reader.is_whole, reader.finish) == (True, "insufficient_system_resource")
    with started(home) as server:
        message = Api(server.url)("GET", f"/conversations/{chat}")["messages"][1]
        assert message["state"] == "stopped"
        assert is_a_stretch_of_the_recital(message["text"])
        assert len(message["text"]) > 20


# --- the disk and the database


def test_a_full_disk_is_said_and_loses_nothing(home: Path) -> None:
    with started(home) as server:
        assert server.process is not None
        api = Api(server.url)
        chat = api.chat(title="before")
        asked = api.say(chat, "one")
        process = psutil.Process(server.process.pid)
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        refused = api.client.post(
            f"/api/conversations/{chat}/messages", json={"text": "word " * 20_000}
        )
        assert refused.status_code == 507
        assert "free some space" in refused.json()["error"]["message"]
        assert api("GET", f"/conversations/{chat}")["title"] == "before"
        process.rlimit(psutil.RLIMIT_FSIZE, unlimited)
        # full again while an answer is under way
        begun = api.begin(chat, asked["id"], model="endless", sampling={"max_tokens": 60_000})
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        api("POST", f"/answers/{begun['response_id']}/stop")
        told = api.end_of(begun["response_id"])
        assert "could not be saved" in told["error"]
        assert is_a_stretch_of_the_recital(told["text"])
        process.rlimit(psutil.RLIMIT_FSIZE, unlimited)
        deadline = time.monotonic() + 60
        kept: dict[str, Any] = {}
        while kept.get("state") != "stopped":
            assert time.monotonic() < deadline, kept
            kept = api("GET", f"/conversations/{chat}")["messages"][1]
            time.sleep(0.1)
        assert (kept["text"], kept["error"]) == (told["text"], None)
        assert "Traceback" not in (home / "server.log").read_text()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a lock a moment instead of five seconds."""
    monkeypatch.setitem(Database.__init__.__kwdefaults__, "busy_seconds", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_is_said_and_holds_up_no_stream(tmp_path: Path) -> None:
    with running_server(endless_model(tmp_path)) as url:
        api = Api(url)
        chat = api.chat()
        asked = api.say(chat, "one")["id"]
        begun = api.begin(chat, asked, sampling={"max_tokens": 3000})
        events = api.events(begun["response_id"])
        next(events)
        lock = sqlite3.connect(tmp_path / "chats.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        refused = api.client.post("/api/conversations", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert "try again" in refused.json()["error"]["message"]
        assert api("GET", f"/conversations/{chat}")["head"]  # reading goes on
        pieces = [data["text"] for name, _, data in events if name == "answer"]
        assert len(pieces) > 50
        lock.execute("ROLLBACK")
        lock.close()
        deadline = time.monotonic() + 30  # the writer may be about to make up for it
        while (made := api.client.post("/api/conversations", json={})).status_code == 503:
            assert time.monotonic() < deadline
        assert made.status_code == 201


def test_connections_that_the_database_ends_are_made_anew(tmp_path: Path) -> None:
    with (
        cluster() as database_url,
        running_server(plain_model(tmp_path), database_url=database_url) as url,
    ):
        api = Api(url)
        chat = api.chat()
        with psycopg.connect(database_url, autocommit=True) as admin:
            ended = admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()
        assert ended
        assert api("GET", f"/conversations/{chat}")["id"] == chat


def test_a_bad_database_ends_the_command_with_one_line(home: Path, up_ends: Up) -> None:
    (home / "chats.db").write_bytes(b"this is no database at all, " * 200)
    up_ends(2, "damaged")
    (home / "chats.db").unlink()
    with Database(f"sqlite:///{home / 'chats.db'}") as database, database.write() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    up_ends(2, "newer mull")
    up_ends(2, "postgresql", "--database", "mysql://x/y")
    gone = "postgresql://mull:topsecret@127.0.0.1:1/none"
    up_ends(2, "is the database running", "--database", gone)


def test_a_new_file_that_another_writes_into_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="locked by another program"):
        Database(f"sqlite:///{path}", busy_seconds=0.1)
    done = threading.Timer(0.3, other.execute, ["COMMIT"])
    done.start()
    with Database(f"sqlite:///{path}") as database, database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    done.join()
    other.close()


def test_a_busy_or_unwritable_database_says_which(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with Database(f"sqlite:///{path}", busy_seconds=0.1) as database:
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError, match="locked by another program"), database.write():
            pass
        lock.close()
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(f"sqlite:///{tmp_path / 'folder' / 'chats.db'}")


# --- models and ports


def test_a_damaged_model_ends_the_command_with_one_line(home: Path, up_ends: Up) -> None:
    weights = next((home / "models" / "plain").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    up_ends(2, weights.name)
    weights.write_bytes(b"\xff" * 1000)
    up_ends(2, weights.name)
    up_ends(2, "no-such-model", model="no-such-model")


def test_a_model_damaged_under_a_running_server_is_said_and_others_answer(home: Path) -> None:
    with started(home) as server:
        weights = next((home / "models" / "endless").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:5000])
        path = f"{server.url}/v1/chat/completions"
        refused = httpx2.post(path, json={**ASK, "model": "endless"}, timeout=30)
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert error["code"] == "model_unavailable"
        assert "\n" not in error["message"]
        assert httpx2.post(path, json=ASK, timeout=30).status_code == 200


def test_a_port_in_use_ends_the_command_with_one_line(up_ends: Up) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up_ends(1, f"port {port}", f"--port={port}")

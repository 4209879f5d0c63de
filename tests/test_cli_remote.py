"""`mull ask --url` and `mull chat --url`, against mull itself and servers that misbehave."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mull_command import Terminal
from wire_server import ANSWER, THINKING, running_server, thinking_model

from mull.cli import main
from mull.cli.remote import api_url
from mull.errors import RequestError
from mull.serve.accounts import keys
from mull.serve.store.database import Database


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_model(tmp_path_factory.mktemp("remote")).parent


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running_server(folder / "thinker") as url:
        yield url


def test_the_answer_goes_to_stdout_and_json_has_the_thinking(
    url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "Tell me of Rome.", "--url", url]) == 0
    assert capfd.readouterr().out == f"{ANSWER}\n"
    assert main(["ask", "Tell me of Rome.", "--url", f"{url}/v1/", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["model"], told["thinking"], told["answer"]) == ("thinker", THINKING, ANSWER)
    assert told["usage"]["reasoning_tokens"] > 0
    assert told["timing"]["ttft_s"] > 0


def test_thinking_is_shown_at_a_terminal_and_left_out_where_it_is_not_wanted(url: str) -> None:
    asking = Terminal(["ask", "Rome?", "--url", url])
    asking.wait_for(THINKING)
    asking.wait_for(ANSWER)
    assert asking.exit_code() == 0
    asking = Terminal(["ask", "Rome?", "--url", url, "--no-think"])
    asking.wait_for(ANSWER)
    assert asking.exit_code() == 0
    assert THINKING not in asking.raw


def test_a_chat_with_a_server_is_one_conversation(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "Tell me of Rome.\nAnd then?\n/model\n/model none\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", "--url", url]) == 2  # for the last line alone
    out, err = capfd.readouterr()
    assert out == f"{ANSWER}\n" * 2
    assert f"thinker at {url}/v1" in err
    assert "no model 'none'" in err


def one_error(capfd: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert main(list(words)) == code
    err = capfd.readouterr().err
    assert err.startswith("mull: ")
    assert err.count("\n") == 1
    return err


def test_what_is_wrong_is_said_in_one_line(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert "`mull up` starts one" in one_error(capfd, 1, "ask", "x", "--url", nobody)
    assert "thinker" in one_error(capfd, 2, "ask", "x", "--url", url, "-m", "none")
    assert "temperature" in one_error(capfd, 2, "ask", "x", "--url", url, "--temperature", "7")
    assert "--url" in one_error(capfd, 2, "ask", "x", "--url", "ftp://x")


def test_a_key_comes_from_the_flag_or_the_environment(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{folder / 'keyed.db'}"
    for name in ("MULL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with Database(database) as opened, opened.write() as db:
        secret = keys.add(db, "minji")
        slow = keys.add(db, "slow", rate_per_minute=1)
    with running_server(folder / "thinker", accounts=True, database_url=database) as url:
        asked = ["ask", "x", "--url", url]
        assert "MULL_API_KEY" in one_error(capfd, 2, *asked)
        assert main([*asked, "--api-key", secret]) == 0
        monkeypatch.setenv("OPENAI_API_KEY", secret)
        assert main(asked) == 0
        monkeypatch.setenv("MULL_API_KEY", "mull-wrong")
        assert "not accepted" in one_error(capfd, 2, *asked)
        capfd.readouterr()
        assert "again in" in one_error(capfd, 1, *asked, "--api-key", slow)


def test_addresses_are_taken_as_people_write_them() -> None:
    wanted = "http://h:1/v1"
    for given in ("h:1", "http://h:1", "http://h:1/", wanted, "http://h:1/v1/chat/completions"):
        assert api_url(given) == wanted
    assert api_url("https://api.example.org/openai/v1/") == "https://api.example.org/openai/v1"
    for bad in ("", "http://", "file:///etc/passwd", "http://h:99999", "http://h/?x=1"):
        with pytest.raises(RequestError):
            api_url(bad)


@contextmanager
def server_that_says(body: bytes, status: int = 200) -> Iterator[str]:
    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Says)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


def test_another_makers_server_is_understood(capfd: pytest.CaptureFixture[str]) -> None:
    said = chunk(reasoning="hm") + chunk(content="Ja\x1b[2J.") + b": x\n\ndata: [DONE]\n\n"
    with server_that_says(said) as url:
        assert main(["ask", "x", "--url", url, "-m", "theirs", "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["thinking"], told["answer"]) == ("hm", "Ja\x1b[2J.")
        assert main(["ask", "x", "--url", url, "-m", "theirs"]) == 0
        assert "\x1b" not in capfd.readouterr().out  # nothing of theirs moves our cursor


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (b"<html>busy</html>", 502, 1, "502"),
        (b'{"detail": "gone\\nfor good"}', 500, 1, "gone"),
        (b"data: <html>\n\n", 200, 1, "does not speak"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', 200, 1, "out of memory"),
        (b"data: " + b"[" * 100_000 + b"\n\n", 200, 1, "does not speak"),
        (b"x" * 5_000_000, 200, 1, "without end"),
    ],
)
def test_a_server_that_misbehaves_is_told_in_one_line(
    body: bytes, status: int, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with server_that_says(body, status) as url:
        assert said in one_error(capfd, code, "ask", "x", "--url", url, "-m", "theirs")

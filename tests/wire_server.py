"""A real server on a free port, with a real model that recites what the tests expect."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from scripted_models import write_scripted_model

from mull.serve.server import Server, listen, url_of
from mull.serve.settings import Settings

THINKING = "First I weigh what was asked, then I settle on words."
ANSWER = "Rome is old; its hills are seven."
# Long enough to come round again without being taken for a loop.
ENDLESS = " ".join(f"step{i}" for i in range(2500)) + ". "


@contextmanager
def running_server(model: Path, **settings: Any) -> Iterator[str]:
    """The URL of a server of this model, which stops when the block is left."""
    with serving(model, **settings) as server:
        yield server.url


@dataclass
class Running:
    url: str
    server: Server


@contextmanager
def serving(model: Path, **settings: Any) -> Iterator[Running]:
    """The same, with the server itself."""
    # One thread: teams of them would wait for each other in the middle of other tests' processes.
    own: dict[str, Any] = {"cache_tokens": 16384, "threads": 1}
    own |= {"database_url": f"sqlite:///{model.parent / 'chats.db'}"}
    chosen = Settings(**{"model": str(model), "port": 0, **own, **settings})
    listening = listen(chosen)
    server = Server(chosen)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(server.serve(sockets=[listening]))
    )
    threads = torch.get_num_threads()
    thread.start()
    try:
        yield Running(url_of(listening), server)
    finally:
        server.should_exit = True
        thread.join()
        loop.close()
        torch.set_num_threads(threads)


def thinking_model(folder: Path) -> Path:
    """R1's form: thinks THINKING, says ANSWER."""
    return write_scripted_model(folder / "thinker", thinking=THINKING, answer=ANSWER)


def plain_model(folder: Path) -> Path:
    """Says ANSWER at once."""
    return write_scripted_model(folder / "plain", thinking=None, answer=ANSWER)


def endless_model(folder: Path, **options: Any) -> Path:
    """Says ENDLESS, again and again."""
    name = folder / "endless"
    return write_scripted_model(name, thinking=None, answer=ENDLESS, endless=True, **options)


class Api:
    """The page's own routes, asked as the page asks; an error status fails the test."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.client = httpx2.Client(base_url=url, timeout=60, trust_env=False, headers=headers)

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        response = self.client.request(method, f"/api{path}", json=body, **options)
        assert response.is_success, (response.status_code, response.text[:500])
        return response.json() if response.content else None

    def status(self, method: str, path: str, body: Any = None, **options: Any) -> int:
        return self.client.request(method, f"/api{path}", json=body, **options).status_code

    def chat(self, **values: Any) -> str:
        """A new conversation's id."""
        return str(self("POST", "/conversations", values)["id"])

    def say(self, chat: str, text: str, parent: str | None = None, **more: Any) -> Any:
        asked = {"parent": parent, "text": text, **more}
        return self("POST", f"/conversations/{chat}/messages", asked)

    def begin(self, chat: str, parent: str, **wishes: Any) -> Any:
        """An answer under way: its message, and the id to follow it by."""
        return self("POST", f"/conversations/{chat}/answers", {"parent": parent, **wishes})

    def answer(self, chat: str, parent: str, **wishes: Any) -> Any:
        """The message of a whole answer."""
        return self.end_of(self.begin(chat, parent, **wishes)["response_id"])

    def end_of(self, response_id: str, after: int = 0) -> Any:
        for name, _, data in self.events(response_id, after):
            if name in ("end", "error"):
                return data["message"]
        raise AssertionError("the stream ended without an end")

    def events(self, response_id: str, after: int = 0) -> Iterator[tuple[str, int | None, Any]]:
        """(name, number, data) of each."""
        path = f"/api/answers/{response_id}/events?after={after}"
        with self.client.stream("GET", path) as response:
            assert response.status_code == 200
            yield from sse_events(response)


def sse_events(response: httpx2.Response) -> Iterator[tuple[str, int | None, Any]]:
    name, number, data = "message", None, None
    for line in response.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "id":
            number = int(value)
        elif key == "data":
            data = value if value == "[DONE]" else json.loads(value)
        elif not line and data is not None:
            yield name, number, data
            name, number, data = "message", None, None

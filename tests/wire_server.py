"""A real server on a free port, with a real model that recites what the tests expect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from scripted_models import write_scripted_model

from mull.serve.app import create_app
from mull.serve.server import listen, url_of
from mull.serve.settings import Settings

THINKING = "First I weigh what was asked, then I settle on words."
ANSWER = "Rome is old; its hills are seven."


@contextmanager
def running_server(model: Path, **settings: Any) -> Iterator[str]:
    """The URL of a server of this model, which stops when the block is left."""
    own = {"cache_tokens": 16384, "database_url": f"sqlite:///{model.parent / 'chats.db'}"}
    chosen = Settings(**{"model": str(model), "port": 0, **own, **settings})
    listening = listen(chosen)
    server = uvicorn.Server(uvicorn.Config(create_app(chosen), log_level="warning"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(server.serve(sockets=[listening]))
    )
    thread.start()
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join()
        loop.close()


def thinking_model(folder: Path) -> Path:
    """R1's form: thinks THINKING, says ANSWER."""
    return write_scripted_model(folder / "thinker", thinking=THINKING, answer=ANSWER)

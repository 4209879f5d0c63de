"""Deleted means gone: no byte of what was said is left in any file of the database."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import string
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from wire_server import ANSWER, Api, plain_model, running_server

from mull.serve.store import conversations
from mull.serve.store.database import Database


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stored"


@pytest.fixture
def api(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr("mull.serve.store.store._ERASE_SECONDS", 60.0)  # however slow the disk
    url = f"sqlite:///{folder / 'chats.db'}"
    with running_server(model, database_url=url) as served:
        yield Api(served)


class Secrets:
    """Words that occur nowhere else, put into whatever can be written down."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.words: list[str] = []

    def word(self) -> str:
        word = "zq" + "".join(self._random.choices(string.ascii_lowercase, k=14))
        self.words.append(word)
        return word

    def text(self, words: int) -> str:
        return " ".join(self.word() for _ in range(words))

    def left_in(self, folder: Path) -> list[str]:
        """Those of which some eight letters in a row are still in a file."""
        found: set[bytes] = set()
        for path in folder.iterdir():
            for run in re.findall(rb"[a-z]{8,}", path.read_bytes()):
                found.update(run[i : i + 8] for i in range(len(run) - 7))
        return [w for w in self.words if any(w[i : i + 8].encode() in found for i in range(9))]


def fill(api: Api, secrets: Secrets, *, messages: int = 8) -> str:
    """A conversation with secrets of many sizes in all its places, changed now and then."""
    chat = api.chat(
        title=secrets.word(),
        system=secrets.text(300),
        folder=secrets.word(),
        tags=[secrets.word(), secrets.word()],
    )
    parent = None
    for size in random.Random(messages).choices([1, 5, 40, 300, 1500], k=messages):
        named = f"{secrets.word()}.txt"
        file = api("POST", "/files", files={"file": (named, secrets.text(size).encode())})
        asked = api.say(chat, secrets.text(size), parent=parent, files=[file["id"]])
        parent = asked["id"]
        api("PATCH", f"/conversations/{chat}", {"title": secrets.word(), "system": secrets.text(9)})
    short = api.say(chat, secrets.text(30))
    api.answer(chat, short["id"])
    return chat


def test_a_deleted_chat_leaves_no_byte_of_its_text(api: Api, folder: Path) -> None:
    gone, kept = Secrets(1), Secrets(2)
    chats = [fill(api, secrets) for secrets in (gone, kept, gone)]
    assert len(gone.left_in(folder)) > 0.95 * len(gone.words)  # or the test looks at nothing
    for chat in (chats[0], chats[2]):
        api("DELETE", f"/conversations/{chat}")
    assert gone.left_in(folder) == []
    assert api("GET", f"/conversations/{chats[1]}")["messages"][-1]["text"] == ANSWER


def test_all_chats_deleted_at_once_leave_nothing(api: Api, folder: Path) -> None:
    secrets = Secrets(3)
    for _ in range(3):
        fill(api, secrets)
    api("DELETE", "/conversations")
    assert secrets.left_in(folder) == []
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert ANSWER[4:20].encode() not in everything


def test_a_chat_deleted_while_it_is_answered_is_gone_too(api: Api, folder: Path) -> None:
    secrets = Secrets(4)
    chat = fill(api, secrets, messages=2)
    begun = api.begin(chat, api.say(chat, secrets.text(3))["id"])
    api("DELETE", f"/conversations/{chat}")
    assert secrets.left_in(folder) == []
    # nor can it be read out of memory
    assert api.status("GET", f"/answers/{begun['response_id']}/events") == 404


def test_deleted_files_and_presets_leave_nothing(api: Api, folder: Path) -> None:
    secrets = Secrets(5)
    named = f"{secrets.word()}.md"
    file = api("POST", "/files", files={"file": (named, secrets.text(700).encode())})
    preset = api("POST", "/presets", {"name": secrets.word(), "system": secrets.text(500)})
    api("DELETE", f"/files/{file['id']}")
    api("DELETE", f"/presets/{preset['id']}")
    assert secrets.left_in(folder) == []


def test_what_somebody_still_reads_goes_once_they_have_done(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mull.serve.store.store._ERASE_SECONDS", 0.1)
    monkeypatch.setattr("mull.serve.store.erasing._CHECKPOINT_TRIES", 1)
    monkeypatch.setattr("mull.serve.store.store._ERASE_AGAIN_SECONDS", 0.1)
    secrets = Secrets(7)
    chat = fill(api, secrets, messages=2)
    with closing(sqlite3.connect(folder / "chats.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        api("DELETE", f"/conversations/{chat}")
        time.sleep(0.5)  # some tries
        assert secrets.left_in(folder) != []
    deadline = time.monotonic() + 60
    while secrets.left_in(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_a_killed_process_left_half_erased_goes_at_the_next_start(
    api: Api, model: Path, folder: Path, tmp_path: Path
) -> None:
    secrets = Secrets(6)
    chat = fill(api, secrets, messages=3)
    # as if killed between the delete and the erasing: the files as they are at that moment
    url = f"sqlite:///{folder / 'chats.db'}"
    killed = tmp_path / "killed"
    with Database(url) as database:
        with database.write() as db:
            conversations.remove_one(db, "local", chat)
        shutil.copytree(folder, killed)
    assert secrets.left_in(killed)
    with running_server(model, database_url=f"sqlite:///{killed / 'chats.db'}"):
        pass
    assert secrets.left_in(killed) == []

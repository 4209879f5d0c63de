"""Conversations over HTTP, on SQLite and on PostgreSQL: trees, search, files, export and import."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import KINDS, database
from wire_server import ANSWER, THINKING, Api, running_server, thinking_model

from mull.serve.store.database import Database
from mull.serve.store.store import Store
from mull.serve.store.tables import conversations
from mull.serve.store.values import now

LONG = "Tell me of Rome, of its hills and of its rivers, and of all who built there, one by one."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=KINDS)
def url(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    with (
        database(request.param, folder) as database_url,
        running_server(model, database_url=database_url) as url,
    ):
        yield url


@pytest.fixture
def api(url: str) -> Iterator[Api]:
    api = Api(url)
    yield api
    api("DELETE", "/conversations")
    api.client.close()


def test_a_question_names_its_chat_and_the_answer_is_kept_whole(api: Api) -> None:
    chat = api.chat()
    asked = api.say(chat, "  Where is Rome?\nAnd since when?")
    done = api.answer(chat, asked["id"])
    found = api("GET", f"/conversations/{chat}")
    assert (found["title"], found["head"]) == ("Where is Rome?", done["id"])
    assert [m["role"] for m in found["messages"]] == ["user", "assistant"]
    kept = found["messages"][1]
    assert (kept["text"], kept["thinking"], kept["state"]) == (ANSWER, THINKING, "done")
    assert kept == done
    assert kept["usage"]["reasoning_tokens"] > 0
    assert kept["timing"]["total_s"] > 0


def test_edits_and_second_answers_are_branches(api: Api) -> None:
    chat = api.chat()
    first = api.say(chat, "one")
    answers = [api.answer(chat, first["id"])["id"] for _ in range(2)]
    edited = api.say(chat, "one, better said")
    follow = api.say(chat, "two", parent=answers[0])
    found = api("GET", f"/conversations/{chat}")
    parents = {m["id"]: m["parent"] for m in found["messages"]}
    assert [parents[id] for id in answers] == [first["id"]] * 2
    assert parents[edited["id"]] is None
    assert parents[follow["id"]] == answers[0]
    seen: set[str | None] = {None}
    for message in found["messages"]:
        assert message["parent"] in seen
        seen.add(message["id"])
    assert found["head"] == follow["id"]
    api("PATCH", f"/conversations/{chat}", {"head": answers[1]})
    assert api("GET", f"/conversations/{chat}")["head"] == answers[1]


def test_a_continued_chat_finds_its_cache_and_leaves_old_thinking_out(api: Api) -> None:
    chat = api.chat()
    first = api.answer(chat, api.say(chat, LONG)["id"])
    second = api.answer(chat, api.say(chat, "And then?", parent=first["id"])["id"])
    before, after = first["usage"], second["usage"]
    said = before["completion_tokens"] - before["reasoning_tokens"]
    more = after["prompt_tokens"] - before["prompt_tokens"] - said
    # the question's nine letters and the template's few marks; not the thinking
    assert before["reasoning_tokens"] >= 10
    assert more < len("And then?") + 6
    # all of the first prompt but a started block and the opened thinking
    assert after["cached_tokens"] > before["prompt_tokens"] - 40


def test_what_was_sampled_without_thinking_is_all_found_again(api: Api) -> None:
    chat = api.chat(settings={"thinking": "off"})
    first = api.answer(chat, api.say(chat, LONG)["id"])
    second = api.answer(chat, api.say(chat, "And then?", parent=first["id"])["id"])
    held = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    assert first["usage"]["reasoning_tokens"] == 0
    assert held - 40 < second["usage"]["cached_tokens"] <= held


def test_an_answer_that_was_stopped_is_gone_on_with(api: Api) -> None:
    chat = api.chat(settings={"thinking": "off"})
    asked = api.say(chat, "one")
    cut = api.answer(chat, asked["id"], sampling={"max_tokens": 3})
    assert cut["finish_reason"] == "length"
    whole = api.answer(chat, cut["id"], **{"continue": True})
    assert (whole["id"], whole["text"]) == (cut["id"], ANSWER)
    assert len(api("GET", f"/conversations/{chat}")["messages"]) == 2


def test_a_question_that_does_not_fit_is_refused_with_the_figures(api: Api) -> None:
    chat = api.chat()
    long = "word " * 6000
    counted = api("POST", "/count", {"text": long})
    assert not counted["fits"]
    response = api.client.post(
        f"/api/conversations/{chat}/answers", json={"parent": api.say(chat, long)["id"]}
    )
    assert response.status_code == 400
    assert f"{counted['context']}" in response.json()["error"]["message"].replace(",", "")


def test_counting_says_what_the_prompt_takes(api: Api) -> None:
    chat = api.chat(system="Be brief.")
    text = "How many hills?"
    counted = api("POST", "/count", {"conversation": chat, "text": text})
    done = api.answer(chat, api.say(chat, text)["id"])
    assert counted["prompt_tokens"] == done["usage"]["prompt_tokens"]
    assert counted["left"] == counted["context"] - counted["prompt_tokens"]


# --- finding


@pytest.mark.parametrize(
    ("said", "looked_for", "shown"),
    [
        ("로마는 언제 세워졌습니까? 일곱 언덕에 대해", "언덕", ["언덕"]),
        ("로마는 언제 세워졌습니까? 일곱 언덕에 대해", "세워졌습니까", ["세워졌습니까"]),
        ("罗马有七座山丘,历史悠久", "山丘", ["山丘"]),
        ("罗马有七座山丘,历史悠久", "七座山丘", ["七座山丘"]),
        ("The Palatine hill, and 50% of it", "PALATINE hill", ["Palatine", "hill"]),
        ("The Palatine hill, and 50% of it", "50%", ["50%"]),
        ('He said "seven hills" 😀 twice', '"said" twice', ["said", "twice"]),
    ],
)
def test_words_are_found_in_every_script(
    api: Api, said: str, looked_for: str, shown: list[str]
) -> None:
    chat, other = api.chat(title="x"), api.chat(title="y")
    message = api.say(chat, said)
    api.say(other, "nothing of the kind")
    (hit,) = api("GET", "/search", params={"q": looked_for})["items"]
    assert (hit["conversation"], hit["message"]) == (chat, message["id"])
    wide = hit["snippet"].encode("utf-16-le")
    found = [wide[2 * a : 2 * b].decode("utf-16-le") for a, b in hit["ranges"]]
    assert found == shown
    listed = api("GET", "/conversations", params={"q": looked_for})["items"]
    assert [item["id"] for item in listed] == [chat]


def test_titles_are_found_first_and_what_is_gone_is_not(api: Api) -> None:
    named, said = api.chat(title="The aqueduct"), api.chat(title="Water")
    api.say(said, "How long was the aqueduct?")
    hits = api("GET", "/search", params={"q": "aqueduct"})["items"]
    assert [(h["conversation"], h["message"] is None) for h in hits] == [
        (named, True),
        (said, False),
    ]
    api("DELETE", f"/conversations/{said}")
    hits = api("GET", "/search", params={"q": "aqueduct"})["items"]
    assert [h["conversation"] for h in hits] == [named]


def test_a_list_in_pages_has_every_chat_once_pinned_ones_first(api: Api) -> None:
    chats = [api.chat(title=f"chat {i}") for i in range(7)]
    for chat in (chats[1], chats[4]):
        api("PATCH", f"/conversations/{chat}", {"pinned": True})
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        asked = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = api("GET", "/conversations", params=asked)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert seen == [chats[i] for i in (4, 1, 6, 5, 3, 2, 0)]


def test_folders_and_tags_narrow_the_list(api: Api) -> None:
    first = api.chat(folder="ancient", tags=["rome", "hills"])
    second = api.chat(folder="modern", tags=["rome"])

    def listed(**asked: str) -> set[str]:
        return {item["id"] for item in api("GET", "/conversations", params=asked)["items"]}

    assert listed(folder="ancient") == {first}
    assert listed(tag="rome") == {first, second}
    assert listed(tag="hills", folder="modern") == set()


# --- out and in again


def whole(api: Api, chat: str) -> Any:
    """A conversation without what is new after an import: ids, and when it was moved."""
    exported = api("GET", f"/conversations/{chat}/export", params={"format": "json"})
    (found,) = exported["conversations"]
    place = {m["id"]: i for i, m in enumerate(found["messages"])}
    for message in found["messages"]:
        message["parent"] = place.get(message["parent"])
        message["files"] = [{**f, "id": 0, "created": 0} for f in message["files"]]
        for name in ("id", "response_id"):
            message.pop(name)
    return {**found, "id": 0, "head": place.get(found["head"])}


def imported(api: Api, name: str, content: bytes) -> Any:
    return api("POST", "/import", files={"file": (name, content)})


def test_an_export_that_is_imported_is_the_same_again(api: Api) -> None:
    chat = api.chat(
        title="로마", system="Be kind.", folder="a", tags=["x", "y"], settings={"thinking": "on"}
    )
    file = api("POST", "/files", files={"file": ("note.md", b"# Hills\n\nSeven.")})
    first = api.say(chat, "What does it say? 罗马", files=[file["id"]])
    api.answer(chat, first["id"])
    api.answer(chat, first["id"])
    api.say(chat, "another way")
    before = whole(api, chat)
    everything = json.dumps(api("GET", "/export")).encode()
    api("DELETE", "/conversations")
    done = imported(api, "mull.json", everything)
    assert (done["conversations"], done["messages"], done["skipped"]) == (1, 4, [])
    (item,) = api("GET", "/conversations")["items"]
    assert whole(api, item["id"]) == before
    (hit,) = api("GET", "/search", params={"q": "罗马"})["items"]
    assert hit["conversation"] == item["id"]
    again = imported(api, "mull.json", everything)
    assert again["conversations"] == 0
    assert "already" in again["skipped"][0]["reason"]


def test_all_that_was_exported_can_be_imported_whole_or_zipped(api: Api) -> None:
    asked = api.say(api.chat(title="long"), "word " * 10)
    document = api("GET", "/export")
    (message,) = document["conversations"][0]["messages"]
    assert message["text"] == asked["text"]
    documents = [document]
    for number in range(9):  # beyond what a single file or request may have
        more = json.loads(json.dumps(document))
        more["conversations"][0]["id"] = f"other{number}"
        more["conversations"][0]["messages"][0]["text"] = "hill " * 800_000
        documents.append(more)
    whole = {
        **document,
        "conversations": [chat for each in documents for chat in each["conversations"]],
    }
    everything = json.dumps(whole).encode()
    assert len(everything) > 33 * 2**20
    api("DELETE", "/conversations")
    assert imported(api, "mull.json", everything)["conversations"] == 10
    api("DELETE", "/conversations")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("backup/mull.json", json.dumps(document))
        archive.writestr("backup/notes.txt", "not of it")
    assert imported(api, "mull.zip", zipped.getvalue())["conversations"] == 1


def test_markdown_has_the_branch_that_is_shown(api: Api) -> None:
    chat = api.chat(title="Hills")
    api.answer(chat, api.say(chat, "the first way")["id"])
    api.answer(chat, api.say(chat, "the second way")["id"])
    text = api.client.get(f"/api/conversations/{chat}/export").text
    assert text.startswith("# Hills\n")
    assert "the second way" in text
    assert "the first way" not in text
    assert THINKING in text
    assert ANSWER in text


CHATGPT = [
    {
        "title": "Hills of Rome",
        "create_time": 1700000000.5,
        "update_time": 1700000100.0,
        "conversation_id": "c-1",
        "current_node": "a2",
        "default_model_slug": "gpt-x",
        "mapping": {
            "root": {"id": "root", "message": None, "parent": None, "children": ["s"]},
            "s": {
                "id": "s",
                "parent": "root",
                "message": {
                    "author": {"role": "system"},
                    "content": {"content_type": "text", "parts": [""]},
                },
            },
            "u": {
                "id": "u",
                "parent": "s",
                "message": {
                    "author": {"role": "user"},
                    "create_time": 1700000001.0,
                    "content": {"content_type": "text", "parts": ["How many?"]},
                },
            },
            "t": {
                "id": "t",
                "parent": "u",
                "message": {
                    "author": {"role": "assistant"},
                    "content": {
                        "content_type": "thoughts",
                        "thoughts": [{"summary": "Counting", "content": "One, two."}],
                    },
                },
            },
            "a": {
                "id": "a",
                "parent": "t",
                "message": {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "text", "parts": ["Seven."]},
                    "metadata": {"model_slug": "gpt-x"},
                },
            },
            "a2": {
                "id": "a2",
                "parent": "u",
                "message": {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "text", "parts": ["Seven hills."]},
                },
            },
        },
    },
    {"title": "broken", "mapping": {"x": 3}},
]
DEEPSEEK = [
    {
        "id": "d-1",
        "title": "山丘",
        "inserted_at": "2025-02-01T10:00:00.000000+08:00",
        "updated_at": "2025-02-01T10:01:00.000000+08:00",
        "mapping": {
            "root": {"id": "root", "parent": None, "children": ["1"], "message": None},
            "1": {
                "id": "1",
                "parent": "root",
                "message": {"inserted_at": "2025-02-01T10:00:00+08:00", "content": "罗马有几座山?"},
            },
            "2": {
                "id": "2",
                "parent": "1",
                "message": {
                    "model": "deepseek-reasoner",
                    "inserted_at": "2025-02-01T10:00:30+08:00",
                    "reasoning_content": "数一数。",
                    "content": "七座。",
                },
            },
        },
    }
]


def test_chatgpts_export_is_read(api: Api) -> None:
    done = imported(api, "conversations.json", json.dumps(CHATGPT).encode())
    assert (done["conversations"], len(done["skipped"])) == (1, 1)
    (item,) = api("GET", "/conversations")["items"]
    found = api("GET", f"/conversations/{item['id']}")
    assert found["title"] == "Hills of Rome"
    assert found["created"].startswith("2023-11-14T22:13:20")
    said = [(m["role"], m["text"], m["thinking"]) for m in found["messages"]]
    assert said == [
        ("user", "How many?", ""),
        ("assistant", "Seven.", "Counting\n\nOne, two."),
        ("assistant", "Seven hills.", ""),
    ]
    assert found["head"] == found["messages"][2]["id"]


def test_deepseeks_export_is_read_out_of_its_zip(api: Api, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "deepseek.zip", "w") as archive:
        archive.writestr("user.json", "{}")
        archive.writestr("conversations.json", json.dumps(DEEPSEEK))
    done = imported(api, "deepseek.zip", (tmp_path / "deepseek.zip").read_bytes())
    assert (done["conversations"], done["messages"]) == (1, 2)
    (hit,) = api("GET", "/search", params={"q": "七座"})["items"]
    asked, said = api("GET", f"/conversations/{hit['conversation']}")["messages"]
    assert (asked["role"], said["role"], said["thinking"]) == ("user", "assistant", "数一数。")
    assert said["created"].startswith("2025-02-01T02:00:30")


def test_settings_of_an_imported_chat_cannot_reach_past_the_sampler(api: Api) -> None:
    wished = {"sampling": {"namespace": "somebody", "raw": True, "temperature": 0.5}, "thinking": 7}
    message = {"id": "1", "role": "user", "text": "hi"}
    raw = {"conversations": [{"title": "t", "settings": wished, "messages": [message]}]}
    imported(api, "mull.json", json.dumps(raw).encode())
    (item,) = api("GET", "/conversations")["items"]
    found = api("GET", f"/conversations/{item['id']}")
    assert found["settings"] == {}
    assert api.answer(item["id"], found["messages"][0]["id"])["text"] == ANSWER


def test_what_is_no_export_is_refused_and_adds_nothing(api: Api) -> None:
    for content in (b"", b"[", b'{"a": 1}', b"PK\x03\x04rubbish", b"[" * 100_000, os.urandom(999)):
        assert api.status("POST", "/import", files={"file": ("x.json", content)}) == 400
    circle = {"id": "1", "role": "user", "parent": "2"}
    raw = {"conversations": [{"messages": [circle, {"id": "2", "role": "user", "parent": "1"}]}]}
    done = imported(api, "mull.json", json.dumps(raw).encode())
    assert (done["conversations"], len(done["skipped"])) == (0, 1)
    assert api("GET", "/conversations")["items"] == []


# --- files, presets, settings


def test_a_file_is_read_by_the_model_and_goes_with_its_chat(api: Api) -> None:
    text = "Seven hills, one river. " * 20
    file = api("POST", "/files", files={"file": ("hills.txt", text.encode())})
    assert (file["kind"], file["characters"]) == ("text", len(text))
    chat = api.chat()
    asked = api.say(chat, "What is this?", files=[file["id"]])
    assert asked["files"][0]["name"] == "hills.txt"
    with_file = api.answer(chat, asked["id"])["usage"]["prompt_tokens"]
    alone = api("POST", "/count", {"text": "What is this?"})["prompt_tokens"]
    assert with_file > alone + 100
    assert api.status("DELETE", f"/files/{file['id']}") == 409
    api("DELETE", f"/conversations/{chat}")
    assert api.status("GET", f"/files/{file['id']}") == 404


def test_presets_and_settings_are_kept(api: Api) -> None:
    api("PUT", "/settings", {"language": "ko"})
    assert api("GET", "/settings") == {"language": "ko"}
    changed = api("PATCH", "/settings", {"theme": "dark", "language": None})
    assert changed == api("GET", "/settings") == {"theme": "dark"}
    for method in ("PUT", "PATCH"):
        assert api.status(method, "/settings", {"x": "y" * 40_000}) == 413
    assert api("GET", "/settings") == {"theme": "dark"}
    made = api("POST", "/presets", {"name": "calm", "sampling": {"temperature": 0.2}})
    changed = api("PATCH", f"/presets/{made['id']}", {"thinking": "off"})
    assert (changed["name"], changed["thinking"]) == ("calm", "off")
    api("DELETE", f"/presets/{made['id']}")
    assert api("GET", "/presets")["items"] == []
    api("PUT", "/settings", {})


@pytest.mark.parametrize("kind", KINDS)
def test_chats_silent_for_longer_than_they_are_kept_are_deleted(
    kind: str, model: Path, tmp_path: Path
) -> None:
    with database(kind, tmp_path) as database_url:
        with running_server(model, database_url=database_url) as url:
            api = Api(url)
            old, new = api.chat(title="old"), api.chat(title="new")
            api.say(old, "long ago")
        with Database(database_url) as stored, stored.write() as db:
            two_days = now() - 2 * 86_400_000_000
            db.execute(
                conversations.update().where(conversations.c.id == old).values(updated=two_days)
            )
        with running_server(model, database_url=database_url, retention_days=1) as url:
            assert [item["id"] for item in Api(url)("GET", "/conversations")["items"]] == [new]


def test_a_retention_longer_than_all_time_is_one(tmp_path: Path) -> None:
    with database("sqlite", tmp_path) as database_url:
        store = Store(Database(database_url), retention_days=1e300)
        store.do_chores()
        store.close()

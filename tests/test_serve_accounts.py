"""Accounts: keys kept as hashes, owners apart on every route, limits, budgets, logins."""

from __future__ import annotations

import datetime
import hmac
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from wire_server import Api, endless_model, running_server, thinking_model

from mull.cli import main
from mull.serve.accounts import keys
from mull.serve.accounts.limits import Guesses, RateLimits
from mull.serve.errors import ApiError
from mull.serve.store.database import Database

ASK = {"messages": [{"role": "user", "content": "Tell me of Rome."}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_model(tmp_path_factory.mktemp("accounts")).parent


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with running_server(home / "thinker", accounts=True) as url:
        yield url


@pytest.fixture(scope="module")
def database(home: Path, url: str) -> Iterator[Database]:
    with Database(f"sqlite:///{home / 'chats.db'}") as database:
        yield database


def new_key(database: Database, name: str, **limits: Any) -> str:
    with database.write() as db:
        return keys.add(db, name, **limits)


def ask(url: str, key: str | None, **more: Any) -> httpx2.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.post(
        f"{url}/v1/chat/completions", json={**ASK, **more}, headers=headers, timeout=60
    )


# --- keys


def test_the_database_has_hashes_alone(home: Path, database: Database, url: str) -> None:
    secret = new_key(database, "minji")
    login = httpx2.post(f"{url}/api/login", json={"key": secret})
    cookie = login.cookies["mull_session"]
    stored = b"".join(path.read_bytes() for path in home.glob("chats.db*"))
    assert secret.encode() not in stored
    assert cookie.encode() not in stored
    assert keys.hash_of(secret).encode() in stored


def test_a_key_opens_and_anything_else_does_not(database: Database, url: str) -> None:
    secret = new_key(database, "minji")
    assert ask(url, secret).status_code == 200
    claude = {"x-api-key": secret}
    body = {**ASK, "max_tokens": 9}
    assert httpx2.post(f"{url}/v1/messages", json=body, headers=claude).status_code == 200
    refused = ask(url, None)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"


def test_a_large_body_is_read_only_from_who_has_a_key(database: Database, url: str) -> None:
    host = httpx2.URL(url)

    def answer_to(key: str, sent: int) -> bytes:
        head = f"POST /api/files HTTP/1.1\r\nHost: {host.netloc.decode()}\r\n{key}"
        head += "Content-Type: text/plain\r\nContent-Length: 200000\r\n\r\n"
        with socket.create_connection((host.host, host.port), timeout=60) as connection:
            connection.sendall(head.encode() + b"x" * sent)
            return connection.recv(100)

    for key in ("", "x-api-key: mull-wrong\r\n", "Cookie: mull_session=wrong\r\n"):
        assert b" 401 " in answer_to(key, 100_000)  # though half of it is not there yet
    secret = new_key(database, "large")
    assert b" 401 " not in answer_to(f"x-api-key: {secret}\r\n", 200_000)


def test_an_expired_key_is_refused(database: Database, url: str) -> None:
    secret = new_key(database, "late", days=-1 / 24)
    refused = ask(url, secret)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "expired_api_key")


def test_keys_are_compared_in_constant_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    really = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return really(one, other)

    secret = new_key(database, "minji")
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    with database.read() as db:
        assert keys.find(db, secret) is not None
    # What is looked up is a hash, so even the index's own time tells nothing of the key.
    assert compared == [(keys.hash_of(secret), keys.hash_of(secret))]


# --- owners


def objects_of(api: Api) -> dict[str, str]:
    """One thing of every kind that belongs to an owner, by the path parameter's place."""
    chat = api.chat(title="mine")
    asked = api.say(chat, "a secret question")
    begun = api.begin(chat, asked["id"])
    api.end_of(begun["response_id"])
    file = api("POST", "/files", files={"file": ("mine.txt", b"text")})
    preset = api("POST", "/presets", {"name": "mine"})
    kept = api.client.post("/v1/chat/completions", json={**ASK, "store": True}).json()
    response = api.client.post("/v1/responses", json={"input": "One?"}).json()
    return {
        "/api/conversations/": chat,
        "/api/answers/": begun["response_id"],
        "/api/files/": file["id"],
        "/api/presets/": preset["id"],
        "/v1/chat/completions/": kept["id"],
        "/v1/responses/": response["id"],
    }


# What belongs to the machine, not to an owner; and what only says that there is a server.
SHARED = ("/api/models", "/api/runs", "/v1/models")
BODIES: dict[str, Any] = {
    "/api/conversations/{id}": {"title": "theirs"},
    "/api/conversations/{id}/messages": {"text": "x"},
    "/api/conversations/{id}/answers": {"parent": "x"},
    "/api/presets/{id}": {"name": "theirs"},
}


def test_nobody_gets_at_anothers_objects_on_any_route(database: Database, url: str) -> None:
    mine = Api(url, new_key(database, "minji"))
    theirs = Api(url, new_key(database, "boris"))
    owned = objects_of(mine)
    described = theirs.client.get("/docs/openapi.json").json()["paths"]
    tried = set()
    for path, operations in described.items():
        if "{" not in path or path.startswith(SHARED):
            continue
        place = next((place for place in owned if path.startswith(place)), None)
        assert place is not None, f"{path} has an id: what does it belong to?"
        address = re.sub(r"\{\w+\}", owned[place], path)
        for method in operations:
            refused = theirs.client.request(method, address, json=BODIES.get(path))
            assert refused.status_code == 404, (method, path, refused.text[:200])
            tried.add(place)
    assert tried == set(owned)
    chat = mine("GET", f"/conversations/{owned['/api/conversations/']}")
    assert (chat["title"], len(chat["messages"])) == ("mine", 2)


def test_lists_searches_and_exports_hold_ones_own_alone(database: Database, url: str) -> None:
    mine = Api(url, new_key(database, "minji"))
    theirs = Api(url, new_key(database, "zora"))
    mine.say(mine.chat(title="secretive"), "a secretive question")
    assert theirs("GET", "/conversations")["items"] == []
    assert theirs("GET", "/search", params={"q": "secretive"})["items"] == []
    assert "secretive" not in theirs.client.get("/api/export").text
    assert len(mine("GET", "/search", params={"q": "secretive"})["items"]) == 2


def test_anothers_ids_in_a_body_are_refused(database: Database, url: str) -> None:
    mine = Api(url, new_key(database, "minji"))
    theirs = Api(url, new_key(database, "boris"))
    file = mine("POST", "/files", files={"file": ("mine.txt", b"text")})["id"]
    asked = mine.say(mine.chat(), "one")
    chat = theirs.chat()
    own = theirs.say(chat, "two")
    messages = f"/conversations/{chat}/messages"
    for method, path, body in (
        ("POST", messages, {"text": "x", "files": [file]}),
        ("POST", messages, {"text": "x", "parent": asked["id"]}),
        ("POST", f"/conversations/{chat}/answers", {"parent": asked["id"]}),
        ("POST", f"/conversations/{chat}/answers", {"parent": own["id"], "beside": asked["id"]}),
        ("PATCH", f"/conversations/{chat}", {"head": asked["id"]}),
        ("POST", "/count", {"text": "x", "files": [file]}),
        ("POST", "/count", {"conversation": chat, "parent": asked["id"]}),
    ):
        assert theirs.status(method, path, body) == 404, (method, path, body)


def test_every_route_but_a_few_needs_a_key(url: str) -> None:
    described = httpx2.get(f"{url}/docs/openapi.json").json()["paths"]
    open_to_all = set()
    for path, operations in described.items():
        for method in operations:
            address = url + re.sub(r"\{\w+\}", "x", path)
            status = httpx2.request(method, address, json={}, timeout=30).status_code
            if status != 401:
                open_to_all.add((method, path))
    login = {("get", "/api/session"), ("post", "/api/login"), ("post", "/api/logout")}
    assert open_to_all == {("get", "/health"), *login}


def test_what_concerns_everybody_needs_an_admins_key(database: Database, url: str) -> None:
    plain = Api(url, new_key(database, "minji"))
    admin = Api(url, new_key(database, "root", is_admin=True))
    for method, path in (
        ("POST", "/models/smollm2-135m/pull"),
        ("POST", "/models/thinker/unload"),
        ("DELETE", "/models/thinker"),
    ):
        assert plain.status(method, path) == 403
    assert plain.client.get("/metrics").status_code == 403
    assert admin.client.get("/metrics").status_code == 200


# --- limits


def test_a_key_may_ask_so_often_and_is_told_when_again(database: Database, url: str) -> None:
    secret = new_key(database, "hasty", rate_per_minute=2)
    models = f"{url}/v1/models"
    headers = {"Authorization": f"Bearer {secret}"}
    answers = [httpx2.get(models, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30


def test_the_buckets_of_rates_fill_evenly() -> None:
    moment = [0.0]
    limits = RateLimits(lambda: moment[0])
    for _ in range(6):
        limits.take("k", 6)
    with pytest.raises(ApiError) as refused:
        limits.take("k", 6)
    assert refused.value.retry_after == 10
    limits.take("other", 6)
    moment[0] = 10.0
    limits.take("k", 6)


def test_a_spent_budget_is_402_and_counts_what_runs(
    database: Database, url: str, tmp_path: Path
) -> None:
    secret = new_key(database, "frugal", budget_tokens=60)
    done = ask(url, secret).json()["usage"]["total_tokens"]
    assert done < 60
    while (answer := ask(url, secret)).status_code == 200:
        done += answer.json()["usage"]["total_tokens"]
    assert (answer.status_code, done >= 60) == (402, True)
    assert answer.json()["error"]["code"] == "insufficient_balance"
    # An answer is booked behind its last byte; until then it counts as one under way.
    deadline = time.monotonic() + 20
    while (spent := spent_by(database, "frugal")) != done and time.monotonic() < deadline:
        time.sleep(0.05)
    assert spent == done


def spent_by(database: Database, owner: str) -> int:
    with database.read() as db:
        return {key.owner: key.spent_tokens for key in keys.listed(db)}[owner]


def test_answers_under_way_count_against_a_budget(tmp_path: Path) -> None:
    with running_server(endless_model(tmp_path), accounts=True) as url:
        with Database(f"sqlite:///{tmp_path / 'chats.db'}") as database:
            secret = new_key(database, "greedy", budget_tokens=50)
        headers = {"Authorization": f"Bearer {secret}"}
        body = {**ASK, "stream": True, "max_tokens": 2000}
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as running:
            lines = running.iter_lines()
            for _ in range(200):
                next(lines)
            assert ask(url, secret).status_code == 402


def test_wrong_keys_make_their_sender_wait_longer_and_longer(url: str, database: Database) -> None:
    moment = [0.0]
    guesses = Guesses(lambda: moment[0])
    guesses.was_right("there", "known")
    waits = []
    for number in range(12):
        guesses.was_wrong("there")
        if number < 4:
            guesses.check("there", "new")
            continue
        with pytest.raises(ApiError) as refused:
            guesses.check("there", "new")
        waits.append(refused.value.retry_after)
        moment[0] += refused.value.retry_after or 0
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128]
    guesses.check("there", "known")
    guesses.check("elsewhere", "new")


def test_guessing_keys_ends_in_429(home: Path) -> None:
    def statuses(guess: Callable[[int], httpx2.Response]) -> list[int]:
        """Of guesses until one is not heard: waits double, so any machine gets there."""
        said: list[int] = []
        while 429 not in said and len(said) < 30:
            said.append(guess(len(said)).status_code)
        return said

    with running_server(home / "thinker", accounts=True) as url:
        by_header = statuses(lambda i: ask(url, f"mull-guess{i}"))
        assert set(by_header[:5]) == {401}
        assert by_header[-1] == 429
        by_login = statuses(lambda i: httpx2.post(f"{url}/api/login", json={"key": f"mull-{i}"}))
        assert by_login[-1] == 429
        assert len(by_login) < len(by_header)


# --- logins


def test_the_login_cookie_is_out_of_reach_of_scripts_and_sites(
    database: Database, url: str
) -> None:
    secret = new_key(database, "minji")
    login = httpx2.post(f"{url}/api/login", json={"key": secret})
    flags = {part.strip().lower() for part in login.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    assert not any(flag.startswith("domain") for flag in flags)
    assert secret not in login.headers["set-cookie"]
    cookies = {"mull_session": login.cookies["mull_session"]}
    assert httpx2.get(f"{url}/api/session", cookies=cookies).json()["owner"] == "minji"
    host = httpx2.URL(url).netloc.decode()
    behind = {"Origin": f"https://{host}", "Sec-Fetch-Site": "same-origin"}
    secure = httpx2.post(f"{url}/api/login", json={"key": secret}, headers=behind)
    assert "secure" in secure.headers["set-cookie"].lower()


def test_a_login_ends_with_logout_and_with_its_key(database: Database, url: str) -> None:
    def logged_in() -> httpx2.Client:
        client = httpx2.Client(base_url=url)
        assert client.post("/api/login", json={"key": secret}).status_code == 200
        return client

    secret = new_key(database, "leaver")
    first, second = logged_in(), logged_in()
    cookie = first.cookies["mull_session"]
    first.post("/api/logout")
    stolen = httpx2.get(f"{url}/api/conversations", cookies={"mull_session": cookie})
    assert stolen.status_code == 401
    assert second.get("/api/conversations").status_code == 200
    with database.write() as db:
        keys.remove(db, "leaver")
    assert second.get("/api/conversations").status_code == 401


# --- the command


def test_keys_are_made_listed_and_removed_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULL_HOME", str(tmp_path))
    limits = ["--budget", "1000", "--rate", "30/min", "--expires", "30d"]
    assert main(["keys", "add", "minji", *limits]) == 0
    secret = capfd.readouterr().out.strip()
    assert re.fullmatch(r"mull-[\w-]{43}", secret)
    assert main(["keys", "list"]) == 0
    listed = capfd.readouterr().out
    assert secret[-4:] in listed
    assert secret not in listed
    day = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    assert f"{day:%Y-%m-%d}" in listed
    assert main(["keys", "rm", "minji", "--data"]) == 0
    capfd.readouterr()
    assert main(["keys", "add", "minji", "--expires", "soon"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "limit", [("--expires", "999999w"), ("--expires", "36501d"), ("--budget", "9" * 20)]
)
def test_a_limit_that_no_database_or_calendar_holds_makes_no_key(
    limit: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MULL_HOME", str(tmp_path))
    assert main(["keys", "add", "anna", *limit]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert main(["keys", "add", "boris", "--expires", "36500d", "--budget", str(10**15)]) == 0
    capfd.readouterr()
    assert main(["keys", "list"]) == 0
    listed = capfd.readouterr().out
    assert "boris" in listed
    assert "anna" not in listed

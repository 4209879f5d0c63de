"""A model behind an OpenAI-compatible server, with as much of `LLM` as `ask` and `chat` use.

No torch here: asking a server starts at once. What the server sends is as untrusted as a file: its
lines and errors are bounded, and the terminal's printers make it harmless.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from mull.errors import MullError, RequestError

if TYPE_CHECKING:
    import httpx2

UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Ask this OpenAI-compatible server instead."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="For --url; default MULL_API_KEY or OPENAI_API_KEY of the environment.",
        show_default=False,
    ),
]
_KEYS = ("MULL_API_KEY", "OPENAI_API_KEY")
_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 600.0  # a queue may be long, and not every server keeps its streams alive
_MOST_LINE_BYTES = 4 << 20
_MOST_BODY_BYTES = 4 << 20
_NAMES = {"thinking": ("reasoning_content", "reasoning"), "answer": ("content",)}
_SENT = ("role", "content")
_SAMPLING = ("max_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class RemoteAnswer:
    """As mull.llm.Answer. token_ids: a server tells text only."""

    text: str
    thinking: str
    finish_reason: str
    usage: dict[str, int]
    timing: dict[str, float | None]
    finish_details: dict[str, Any] = field(default_factory=dict)
    token_ids: None = None


@dataclass(frozen=True)
class RemoteEvent:
    """As mull.llm.Event."""

    kind: str
    text: str = ""
    answer: RemoteAnswer | None = None


class RemoteModel:
    """One model of one server. Raises RequestError for what the caller can mend (address, key,
    model, values), MullError for what the server or the network did.

    thinks and context: None where the server does not say (mull's does).
    """

    def __init__(self, url: str, model: str | None, key: str | None) -> None:
        self.url = api_url(url)
        self.key = key
        self.name = self._known_as(model)
        told = self._details()
        self.thinks: bool | None = told.get("thinks") if _is(told, "thinks", bool) else None
        self.context: int | None = told.get("context") if _is(told, "context", int) else None

    def switched_to(self, model: str) -> RemoteModel:
        return RemoteModel(self.url, model, self.key)

    def close(self) -> None:
        """Nothing is held between requests."""

    def generate(self, prompt: str, **options: Any) -> RemoteAnswer:
        *_, last = self.stream(prompt, **options)
        assert last.answer is not None
        return last.answer

    def stream(
        self, prompt: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> Iterator[RemoteEvent]:
        """Who stops iterating leaves, which ends the answer on the server."""
        body = _body(self.name, prompt, options)
        heard = _Heard(time.perf_counter())
        with self._request("POST", "/chat/completions", json=body) as response:
            self._check(response)
            for chunk in _chunks(response):
                yield from heard.take(chunk)
        yield RemoteEvent("end", answer=heard.answer())

    def _known_as(self, model: str | None) -> str:
        """The model's name there; the server's first where nobody chose one."""
        with self._request("GET", "/models") as response:
            lists_none = response.status_code in (404, 405, 501)
            if not lists_none:
                self._check(response)
            listed = None if lists_none else _json(_bounded(response))
        rows = listed.get("data") if isinstance(listed, dict) else None
        names = [row["id"] for row in rows or () if isinstance(row, dict) and _is(row, "id", str)]
        if model is None and not names:
            raise RequestError(f"{self.url} does not say which models it has: choose one with -m")
        if model is None:
            return str(names[0])
        if names and model not in names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise RequestError(f"no model {model!r} at {self.url}: it has {shown}")
        return model

    def _details(self) -> dict[str, Any]:
        with self._request("GET", f"/models/{quote(self.name)}") as response:
            told = _json(_bounded(response)) if response.status_code == 200 else None
        return told if isinstance(told, dict) else {}

    @contextmanager
    def _request(self, method: str, path: str, **content: Any) -> Iterator[httpx2.Response]:
        """What the network says is raised as one line."""
        import httpx2

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=not _is_here(self.url),  # a proxy knows nothing of this machine
        )
        try:
            with client, client.stream(method, f"{self.url}{path}", **content) as response:
                yield response
        except httpx2.ConnectError:
            hint = ": is it running? `mull up` starts one" if _is_here(self.url) else ""
            raise MullError(f"nobody answers at {self.url}{hint}") from None
        except httpx2.TimeoutException:
            raise MullError(f"{self.url} does not answer: try again later") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise MullError(f"the connection to {self.url} was lost ({error})") from None

    def _check(self, response: httpx2.Response) -> None:
        """An error of the server as ours, with the server's own words where it has some."""
        status = response.status_code
        if status == 200:
            return
        said = _message(_bounded(response))
        if status in (401, 403):
            mend = "the key is not accepted" if self.key else "it asks for a key"
            raise RequestError(
                f"{self.url}: {mend} ({said}): give --api-key KEY, or set MULL_API_KEY"
            )
        if status == 429:
            after = response.headers.get("retry-after", "")
            when = f"in {after} s" if after.isdecimal() else "later"
            raise MullError(f"{self.url} takes no more just now ({said}): try again {when}")
        if status == 404:
            raise RequestError(f"{self.url}: {said}")
        kind = RequestError if 400 <= status < 500 else MullError
        raise kind(f"{self.url} answers {status}: {said}")


def connect(url: str, model: str | None, key: str | None) -> RemoteModel:
    """The model at this address; key: None takes the environment's."""
    found = key or next((value for name in _KEYS if (value := os.environ.get(name))), None)
    return RemoteModel(url, model, found)


def api_url(url: str) -> str:
    """The address as given, without a slash at its end; /v1 where it has no path of its own."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment:
        raise RequestError(f"--url {url[:100]!r}: write it as http://127.0.0.1:8642/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass
class _Heard:
    """What a stream has brought so far."""

    began: float
    first: float | None = None
    last: float | None = None
    finish: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=lambda: {"thinking": [], "answer": []})

    def take(self, chunk: dict[str, Any]) -> Iterator[RemoteEvent]:
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            return
        if _is(choice, "finish_reason", str):
            self.finish = choice["finish_reason"]
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        # Servers differ in how they call the thinking.
        for kind, names in _NAMES.items():
            text = next((delta[name] for name in names if _is(delta, name, str)), "")
            if text:
                self.last = time.perf_counter()
                self.first = self.first or self.last
                self.texts[kind].append(text)
                yield RemoteEvent(kind, text)

    def answer(self) -> RemoteAnswer:
        details = self.usage.get("completion_tokens_details")
        reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else 0
        completion = _count(self.usage.get("completion_tokens"))
        rate = None
        if self.first is not None and self.last is not None and self.last > self.first:
            rate = (completion - 1) / (self.last - self.first) if completion > 1 else None
        return RemoteAnswer(
            text="".join(self.texts["answer"]),
            thinking="".join(self.texts["thinking"]),
            finish_reason=self.finish,
            usage={
                "prompt_tokens": _count(self.usage.get("prompt_tokens")),
                "reasoning_tokens": _count(reasoning),
                "completion_tokens": completion,
            },
            timing={
                "ttft_s": None if self.first is None else self.first - self.began,
                "tokens_per_s": rate,
            },
        )


def _body(
    model: str, prompt: str | Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> dict[str, Any]:
    """Only what was asked for is sent: a server may refuse fields it does not know."""
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    system = options.get("system")
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{name: message[name] for name in _SENT} for message in said]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    body["stream_options"] = {"include_usage": True}
    body |= {name: options[name] for name in _SAMPLING if options.get(name) is not None}
    thinking = options.get("thinking", "auto")
    if thinking != "auto":
        is_on = thinking == "on"
        body["thinking"] = {"type": "enabled" if is_on else "disabled"}
        body["chat_template_kwargs"] = {"enable_thinking": is_on}  # for vLLM and llama.cpp
    if options.get("think_budget") is not None:
        body["thinking_budget"] = options["think_budget"]
    return body


def _chunks(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream, up to its [DONE]; an error in it is raised."""
    for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        chunk = _json(data)
        if not isinstance(chunk, dict):
            raise MullError(f"{response.url} does not speak as OpenAI's API does")
        if "error" in chunk:
            raise MullError(f"the server broke off: {_message(data)}")
        yield chunk


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _MOST_LINE_BYTES:
            raise MullError(f"{response.url} sends lines without end")
    yield rest


def _bounded(response: httpx2.Response) -> bytes:
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > _MOST_BODY_BYTES:
            break
    return body


def _message(body: bytes) -> str:
    """The server's words about an error, in whatever form it has them."""
    told = _json(body)
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and name in told:
            told = told[name]
    if isinstance(told, dict) and _is(told, "message", str):
        told = told["message"]
    return told[:500] if isinstance(told, str) and told else "no reason given"


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _is(table: Mapping[str, Any], name: str, kind: type) -> bool:
    return isinstance(table.get(name), kind)


def _count(value: Any) -> int:
    return value if type(value) is int else 0


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The log: one line a request and one an answer, JSON unless a terminal reads it; never a prompt.

Of an error that nobody expected it tells the class and the places in the code, not its message,
which may quote what somebody wrote.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import json
import logging
import re
import secrets
import sys
import time
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.harmless import one_line
from mull.serve.errors import as_api_error, error_response
from mull.serve.metrics import Metrics

if TYPE_CHECKING:
    from mull.serve.answers import RunningAnswer

log = logging.getLogger("mull.serve")
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_GIVEN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Asked for by machines every few seconds.
_QUIET = ("/health", "/metrics", "/api/status")


def set_up(form: str) -> None:
    """Write the log of `mull` to stderr. form: one of settings.LOG_FORMS."""
    root = logging.getLogger("mull")
    root.setLevel(logging.INFO)
    root.propagate = False
    root.handlers.clear()
    if form == "off":
        root.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler(sys.stderr)
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(_TextLines() if as_text else _JsonLines())
    root.addHandler(handler)
    # uvicorn's own words: its warnings only.
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.handlers = [handler]
    uvicorn.setLevel(logging.WARNING)
    uvicorn.propagate = False


def note(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """One line of the log."""
    log.log(level, event, extra={"facts": facts})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        return json.dumps(line, ensure_ascii=True, default=str)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created)
        facts = " ".join(f"{k}={v}" for k, v in getattr(record, "facts", {}).items())
        return one_line(f"{moment:%H:%M:%S} {record.getMessage()} {facts}".rstrip())


class RequestLog:
    """The outermost layer: gives every request an id, and answers for what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _GIVEN_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        token = request_id.set(identity)
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identity
                headers["Request-Id"] = identity  # as Anthropic's clients look for it
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            note("failure", level=logging.ERROR, **failure_facts(error))
            if not status:
                refused = as_api_error(error)
                await error_response(scope["path"], refused)(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - began
            self._note(scope, status, seconds)
            request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _pattern(scope)
        self.metrics.count_request(route, scope["method"], status, seconds)
        if scope["path"] not in _QUIET or status >= 400:
            note("request", method=scope["method"], route=route, status=status, s=round(seconds, 4))


def _pattern(scope: Scope) -> str:
    """The route that answered: a path itself may hold ids, and a query what somebody looked for.

    FastAPI tells a route's path without the prefix of its router, which the address has.
    """
    path: str = getattr(scope.get("route"), "path", "")
    filled = path.replace(":path}", "}")
    for name, value in scope.get("path_params", {}).items():
        filled = filled.replace(f"{{{name}}}", str(value))
    if not path or not scope["path"].endswith(filled):
        return path or "(none)"
    return scope["path"].removesuffix(filled) + path


def failure_facts(error: BaseException) -> dict[str, Any]:
    """The class of an error and the way to it."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    way = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    facts: dict[str, Any] = {"error": type(error).__name__, "at": way}
    if isinstance(error.__cause__, Exception):
        facts["because"] = failure_facts(error.__cause__)
    return facts


def note_loose_failure(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a task that nobody waits for: asyncio's exception handler."""
    error = context.get("exception")
    facts = {} if error is None else failure_facts(error)
    note("failure beside requests", level=logging.ERROR, **facts)


def note_answer(answer: RunningAnswer) -> None:
    """A line for an answer that has ended: how it went, not what it said."""
    if answer.error is not None:
        cause = answer.error.__cause__
        why = {} if cause is None else failure_facts(cause)
        note("answer failed", level=logging.ERROR, id=answer.id, code=answer.error.code, **why)
        return
    output = answer.output
    facts: dict[str, Any] = {"id": answer.id, "model": answer.model, "owner": answer.owner.name}
    if output is not None:
        facts |= asdict(output.usage) | {"finish": answer.stopped_by or output.finish_reason}
        facts |= {name: _rounded(value) for name, value in asdict(output.timing).items()}
    note("answer", **facts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

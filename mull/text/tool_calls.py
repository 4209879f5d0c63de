"""How families of models write tool calls, and how a written call is read.

A call that cannot be read (broken JSON, no name) is no call: its reader returns nothing, and what
was written goes on as text.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TextError
from .messages import to_json

MAX_CALL_CHARS = 1_000_000

Calls = list[tuple[str, str]]  # (name, arguments as JSON text)


@dataclass(frozen=True)
class CallForm:
    """How calls are written: `before`, then begin NAME middle ARGUMENTS end for each of them, with
    `between` two, and `after`. `quotes_name`: the name stands in a JSON string."""

    begin: str
    middle: str
    end: str
    between: str = ""
    before: str = ""
    after: str = ""
    quotes_name: bool = False

    def name(self, name: str) -> str:
        return to_json(name)[1:-1] if self.quotes_name else name


@dataclass(frozen=True)
class ToolSyntax:
    """The form and the tags of one way to write calls, and the reader of what stands between them.

    `opening` tags begin a call, `ending` ones complete it, `closing` ones leave the list of calls
    (empty where every call stands alone). `bare_objects`: a lone JSON object may be a call.
    """

    form: CallForm
    opening: tuple[str, ...]
    ending: tuple[str, ...]
    closing: tuple[str, ...]
    inner: tuple[str, ...]
    read: Callable[[str], Calls]
    bare_objects: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return self.opening + self.ending + self.closing + self.inner

    def tag_of(self, written: str) -> str:
        """The opening tag that `written` begins with, if any."""
        return next((tag for tag in self.opening if written.startswith(tag)), "")


def tool_syntax(name: str | None) -> ToolSyntax | None:
    """The syntax a template calls `name`; None where a model writes no calls."""
    return _SYNTAXES.get(name) if name else None


def _call_in(value: object) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        return name, to_json(arguments)
    except TextError:
        return None  # nested as deep as can be read, but not written again


def _object(text: str) -> object:
    """The JSON value `text` is, or None."""
    if len(text) > MAX_CALL_CHARS:
        return None
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _read_hermes(written: str) -> Calls:
    inner = written.removeprefix("<tool_call>").removesuffix("</tool_call>")
    call = _call_in(_object(inner.strip()))
    return [call] if call else []


_FENCE = re.compile(r"\s*([^\s`]+)\s*```(?:json)?(.*)", re.DOTALL)


def _read_deepseek(written: str) -> Calls:
    """R1: `function SEP name, fenced JSON`; V3.1: `name SEP JSON`."""
    inner = written.rpartition("<｜tool▁call▁begin｜>")[2].removesuffix("<｜tool▁call▁end｜>")
    before, sep, after = inner.partition("<｜tool▁sep｜>")
    if not sep:
        return []
    fenced = _FENCE.fullmatch(after)
    name, arguments = fenced.groups() if fenced else (before.strip(), after)
    arguments = arguments.strip().removesuffix("```" if fenced else "").strip()
    call = _call_in({"name": name, "arguments": arguments})
    return [call] if call else []


def _read_llama(written: str) -> Calls:
    calls: Calls = []
    rest = written.removeprefix("<|python_tag|>").strip()
    while rest:
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        call = _call_in(value)
        if call is None:
            return []
        calls.append(call)
        rest = rest[end:].lstrip(" \n;,")
    return calls


_HERMES = CallForm(
    begin='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    end="}\n</tool_call>",
    between="\n",
    quotes_name=True,
)
_LLAMA3 = CallForm(
    begin='{"name": "', middle='", "parameters": ', end="}", between="; ", quotes_name=True
)
_R1 = CallForm(
    before="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    end="\n```<｜tool▁call▁end｜>",
    between="\n",
    after="<｜tool▁calls▁end｜>",
)
_V31 = CallForm(
    before="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜>",
    after="<｜tool▁calls▁end｜>",
)


def _deepseek(form: CallForm) -> ToolSyntax:
    return ToolSyntax(
        form,
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        ("<｜tool▁call▁end｜>",),
        ("<｜tool▁calls▁end｜>",),
        ("<｜tool▁sep｜>",),
        _read_deepseek,
    )


_SYNTAXES = {
    "hermes": ToolSyntax(_HERMES, ("<tool_call>",), ("</tool_call>",), (), (), _read_hermes),
    "deepseek": _deepseek(_R1),
    "deepseek-v3.1": _deepseek(_V31),
    "llama3": ToolSyntax(_LLAMA3, ("<|python_tag|>",), (), (), (), _read_llama, bare_objects=True),
}


class BareObjects:
    """Finds calls written as JSON objects where an answer begins, with nothing around them.

    `push` and `finish` return text to show and, as lists, calls with their text.
    """

    def __init__(self) -> None:
        self._held = ""
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._watching = True

    def push(self, text: str) -> list[tuple[str, Calls]]:
        """(text, calls) pairs in order; calls is empty for text that is none."""
        self._held += text
        out: list[tuple[str, Calls]] = []
        while self._watching and self._held:
            start = len(self._held) - len(self._held.lstrip(" \n;,"))
            if start == len(self._held):
                return out
            if self._held[start] != "{" or len(self._held) > MAX_CALL_CHARS:
                self._watching = False
                break
            end = self._object_end(start)
            if end is None:
                return out
            calls = _read_llama(self._held[start:end])
            if not calls:
                self._watching = False
                break
            out.append((self._held[:end], calls))
            self._held, self._scanned = self._held[end:], 0
        if self._held:
            out.append((self._held, []))
            self._held = ""
        return out

    def finish(self) -> list[tuple[str, Calls]]:
        """What is still held back, as text; nothing is looked for any more."""
        self._watching = False
        return self.push("")

    def _object_end(self, start: int) -> int | None:
        for index in range(max(start, self._scanned), len(self._held)):
            char = self._held[index]
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if self._depth == 0:
                    return index + 1
        self._scanned = len(self._held)
        return None

"""The items of a Responses request as the messages that templates take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_ITEMS = 4096
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class ItemError(ValueError):
    """One line about the item that is none."""


def conversation(
    given: str | list[dict[str, Any]], find: Callable[[str], Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Messages; what an assistant thought, said and called becomes one of them. `find` knows the
    items of earlier responses by id."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    said: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        where = f"input[{i}]"
        if item.get("type") == "item_reference":
            found = find(str(item.get("id")))
            if found is None:
                raise ItemError(f"{where}: no item {str(item.get('id'))[:80]!r} is known")
            item = dict(found)
        _add(said, item, where)
    return said


def _add(said: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        _add_message(said, item, where)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        _assistant(said)["reasoning_content"] = _text(parts, where)
    elif kind == "function_call":
        name, arguments = item.get("name"), item.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise ItemError(f"{where}: a function_call needs a name and arguments (JSON text)")
        call = {"id": item.get("call_id"), "function": {"name": name, "arguments": arguments}}
        _assistant(said).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        text = _text(item.get("output") or "", where)
        said.append({"role": "tool", "content": text, "tool_call_id": item.get("call_id")})
    else:
        raise ItemError(
            f"{where}.type is {str(kind)[:40]!r}: use message, reasoning, function_call, "
            "function_call_output or item_reference"
        )


def _add_message(said: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise ItemError(f"{where}.role is {str(role)[:40]!r}: use user, assistant or developer")
    text = _text(item.get("content") or "", where)
    if role != "assistant":
        said.append({"role": role, "content": text})
        return
    message = _assistant(said)
    message["content"] = message.get("content", "") + text


def _assistant(said: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message under way."""
    if not said or said[-1]["role"] != "assistant":
        said.append({"role": "assistant", "content": ""})
    return said[-1]


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ItemError(f"{where} must hold a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise ItemError(f"{where} holds a part {str(kind)[:40]!r}: this model reads text only")
        texts.append(text)
    return "".join(texts)

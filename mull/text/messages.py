"""What a conversation may look like: roles, contents, tools; checked once, then plain data.

Everything here is untrusted: it comes from API clients. Complaints are TextErrors that name the
message. Old thinking is left out here, so that every template treats it alike: thinking survives
only after the last question, where a tool-call loop is still running and the model needs it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import TextError
from .tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
_ALIASES = {"developer": "system", "function": "tool"}


@dataclass(frozen=True)
class ToolCall:
    """One call the assistant made; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One checked message.

    `token_ids` are the ids that were sampled for it, if known. `in_progress`: it comes after the
    last question, so its thinking still counts.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] | None = None
    name: str = ""
    tool_call_id: str = ""
    in_progress: bool = False


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `declared` is the declaration as the client wrote it."""

    name: str
    description: str
    parameters: Any
    declared: Mapping[str, Any] = field(repr=False)


def check(
    messages: object, tokenizer: Tokenizer, *, think_open: str, think_close: str
) -> list[Message]:
    """The conversation with old thinking left out; TextError when it is not a conversation.

    Messages that only carry sampled ids get their text by decoding them.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise TextError("messages must be a list of at least one {'role', 'content'}")
    checked = [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]
    checked = [_with_text(m, tokenizer, f"messages[{i}]") for i, m in enumerate(checked)]
    checked = [_split_thinking(m, think_open, think_close) for m in checked]
    last_question = max((i for i, m in enumerate(checked) if m.role == "user"), default=-1)
    return [
        replace(m, in_progress=True) if i > last_question else replace(m, reasoning="")
        for i, m in enumerate(checked)
    ]


def check_tools(tools: object) -> list[Tool]:
    """The declared tools (OpenAI's form, or the bare function); TextError when malformed."""
    if tools is None:
        return []
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise TextError("tools must be a list of function declarations")
    return [_tool(t, f"tools[{i}]") for i, t in enumerate(tools)]


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON as the models were trained on: keys in order, text not escaped to ASCII."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise TextError(f"tools and arguments must be JSON values: {error}") from error


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise TextError(f"{where} is {type(message).__name__}, expected an object with a role")
    role = message.get("role")
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise TextError(f"{where}.role is {str(role)[:40]!r}; expected one of {', '.join(ROLES)}")
    calls = message.get("tool_calls") or ()
    if calls and role != "assistant":
        raise TextError(f"{where}.tool_calls: only assistant messages can call tools")
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise TextError(f"{where}.tool_calls must be a list")
    tool_calls = tuple(_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls))
    optional = bool(tool_calls) or message.get("token_ids") is not None
    reasoning = message.get("reasoning_content")
    return Message(
        role=role,
        content=_content(message.get("content"), where, optional or bool(reasoning)),
        reasoning=_optional_text(reasoning, f"{where}.reasoning_content"),
        tool_calls=tool_calls,
        token_ids=_token_ids(message.get("token_ids"), where) if role == "assistant" else None,
        name=_optional_text(message.get("name"), f"{where}.name"),
        tool_call_id=_optional_text(message.get("tool_call_id"), f"{where}.tool_call_id"),
    )


def _content(content: object, where: str, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if isinstance(content, Sequence):
        return "".join(_part(p, f"{where}.content[{i}]") for i, p in enumerate(content))
    raise TextError(f"{where}.content is {type(content).__name__}, expected text")


def _part(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text"):
        return _optional_text(part.get("text"), f"{where}.text")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise TextError(f"{where} is {str(kind)[:40]!r}: this model reads text only")


def _optional_text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TextError(f"{where} is {type(value).__name__}, expected text")
    return value


def _token_ids(ids: object, where: str) -> tuple[int, ...] | None:
    if ids is None:
        return None
    if not isinstance(ids, Sequence) or not all(type(i) is int and i >= 0 for i in ids):
        raise TextError(f"{where}.token_ids must be a list of token ids")
    return tuple(ids)


def _with_text(message: Message, tokenizer: Tokenizer, where: str) -> Message:
    ids = message.token_ids
    if ids is None:
        return message
    if max(ids, default=0) >= tokenizer.vocab_size:
        raise TextError(f"{where}.token_ids: {max(ids)} is beyond the vocabulary of this model")
    if message.content or message.tool_calls:
        return message
    return replace(message, content=tokenizer.decode(ids, skip_special=True))


def _call(call: object, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TextError(f"{where} needs a function with a name and arguments")
    arguments = function.get("arguments", function.get("parameters"))
    text = arguments if isinstance(arguments, str) else to_json(arguments or {})
    call_id = call.get("id") if isinstance(call, Mapping) else None
    return ToolCall(function["name"], text, call_id if isinstance(call_id, str) else "")


def _tool(tool: object, where: str) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TextError(f"{where} needs a function with a name")
    to_json(tool)  # refuses what no template could write
    declared = tool if isinstance(tool, Mapping) and "function" in tool else None
    return Tool(
        name=function["name"],
        description=_optional_text(function.get("description"), f"{where}.description"),
        parameters=function.get("parameters", {}),
        declared=declared or {"type": "function", "function": function},
    )


def _split_thinking(message: Message, think_open: str, think_close: str) -> Message:
    """Thinking that a client left inside the text goes where it belongs."""
    if message.role != "assistant" or think_close not in message.content:
        return message
    thinking, _, answer = message.content.rpartition(think_close)
    thinking = thinking.rpartition(think_open)[2] if think_open in thinking else thinking
    return replace(
        message,
        content=answer.lstrip("\n"),
        reasoning=message.reasoning or thinking.strip("\n"),
    )

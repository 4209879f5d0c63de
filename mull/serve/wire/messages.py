"""POST /v1/messages: Anthropic's form of a conversation, and how many tokens one takes."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from mull.serve import sse
from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.answers import new_id
from mull.serve.errors import ApiError, anthropic_body
from mull.serve.serving import Serving, serving
from mull.serve.wire.common import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Count,
    Name,
    Thinking,
    Wire,
    stream_response,
    thinking_options,
    whole_response,
)
from mull.serve.wire.messages_answer import message_answer, message_stream

router = APIRouter()

MAX_BLOCKS = 1024
_TEXT = ("text",)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessageTurn(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[dict[str, Any]], Field(max_length=MAX_BLOCKS)]


class MessageTool(Wire):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None
    type: str | None = None


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False


class OutputConfig(Wire):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class Conversation(Wire):
    """What the prompt is made of: all that counting its tokens needs."""

    model: Name | None = None
    messages: Annotated[list[MessageTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Annotated[list[dict[str, Any]], Field(max_length=MAX_BLOCKS)] | None = None
    thinking: Thinking | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(Conversation):
    max_tokens: Count
    stream: bool = False
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
        | None
    ) = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


@router.post("/messages")
async def messages(
    request: Request,
    asked: MessagesRequest,
    owner: Annotated[Owner, Depends(current_owner)],
    parts: Annotated[Serving, Depends(serving)],
) -> Response:
    """The assistant's next message, whole or as a stream of content blocks."""
    sampling = {
        "max_tokens": asked.max_tokens,
        "stop": asked.stop_sequences,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
    }
    starting = parts.answers.start(
        owner,
        asked.model,
        conversation(asked),
        {**prompt_options(asked), **sampling},
        id=new_id("msg"),
        keep=False,
    )
    if not asked.stream:
        return await whole_response(request, starting, message_answer)
    keep_alive = parts.settings.keep_alive_seconds
    return await stream_response(
        starting,
        lambda answer: message_stream(answer, keep_alive=keep_alive),
        keep_alive=keep_alive,
        failed=lambda error: sse.event(anthropic_body(error), name="error"),
    )


@router.post("/messages/count_tokens")
async def count_tokens(
    asked: Conversation,
    owner: Annotated[Owner, Depends(current_owner)],
    parts: Annotated[Serving, Depends(serving)],
) -> dict[str, int]:
    """How many tokens the prompt of such a message has."""
    async with parts.pool.lease(asked.model) as llm:
        made = await asyncio.to_thread(
            llm.request, conversation(asked), namespace=owner.name, **prompt_options(asked)
        )
    return {"input_tokens": len(made.prompt_ids)}


def prompt_options(asked: Conversation) -> dict[str, Any]:
    """What of the request LLM.request needs beside the messages."""
    output, choice = asked.output_config or OutputConfig(), asked.tool_choice
    options = thinking_options(
        asked.model, thinking=asked.thinking, effort=output.effort, budget=None
    )
    if choice is not None:
        options["tool_choice"] = (
            {"name": choice.name} if choice.type == "tool" else _CHOICES[choice.type]
        )
        options["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if output.format is not None:
        if output.format.get("type") != "json_schema":
            raise ApiError(400, "output_config.format.type must be json_schema")
        options["response_format"] = {"type": "json_schema", "json_schema": output.format}
    options["tools"] = [_declared(tool, i) for i, tool in enumerate(asked.tools or [])] or None
    options["continue_last"] = asked.messages[-1].role == "assistant"
    return options


def conversation(asked: Conversation) -> list[dict[str, Any]]:
    """The messages in the form that templates take."""
    said: list[dict[str, Any]] = []
    if asked.system:
        blocks = _blocks(asked.system, "system", _TEXT)
        said.append({"role": "system", "content": "\n\n".join(b["text"] for b in blocks)})
    for i, turn in enumerate(asked.messages):
        where = f"messages.{i}.content"
        if turn.role == "assistant":
            said.append(_assistant(turn, where))
        elif turn.role == "system":
            said.append({"role": "system", "content": _text(turn.content, where)})
        else:
            said += _user(turn, where)
    return said


def _user(turn: MessageTurn, where: str) -> list[dict[str, Any]]:
    """Results of tools come before what is said about them."""
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in _blocks(turn.content, where, ("text", "tool_result", "document")):
        if block["type"] == "tool_result":
            text = _text(block.get("content") or "", f"{where}.content")
            if block.get("is_error"):
                text = f"Error: {text}"
            call_id = block.get("tool_use_id")
            results.append({"role": "tool", "content": text, "tool_call_id": call_id})
        elif block["type"] == "document":
            texts.append(_document(block, where))
        else:
            texts.append(block["text"])
    if not texts and results:
        return results
    return [*results, {"role": "user", "content": "\n\n".join(texts)}]


def _assistant(turn: MessageTurn, where: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    kinds = ("text", "thinking", "redacted_thinking", "tool_use")
    for block in _blocks(turn.content, where, kinds):
        if block["type"] == "text":
            message["content"] += block["text"]
        elif block["type"] == "thinking":
            text = _string(block, "thinking", where)
            message["reasoning_content"] = message.get("reasoning_content", "") + text
        elif block["type"] == "tool_use":
            if not isinstance(block.get("input"), dict):
                raise ApiError(400, f"{where}: a tool_use block needs an input that is an object")
            name, text = _string(block, "name", where), json.dumps(block["input"])
            call = {"id": block.get("id"), "function": {"name": name, "arguments": text}}
            message.setdefault("tool_calls", []).append(call)
    return message


def _document(block: dict[str, Any], where: str) -> str:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "text":
        raise ApiError(400, f"{where}: only documents of plain text can be read")
    title = block.get("title")
    text = _string(source, "data", where)
    return f"{title}\n\n{text}" if isinstance(title, str) and title else text


def _text(content: Any, where: str) -> str:
    return "".join(block["text"] for block in _blocks(content, where, _TEXT))


def _blocks(content: Any, where: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """The content as blocks of these kinds; ApiError 400 for any other."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be a text or a list of blocks")
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            raise ApiError(400, f"{where} holds {str(kind)[:40]!r}: expected {', '.join(kinds)}")
        if kind == "text":
            _string(block, "text", where)
    return content


def _string(block: dict[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{where}: {name} must be a text")
    return value


def _declared(tool: MessageTool, number: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise ApiError(400, f"tools.{number}: {tool.type[:60]!r} runs elsewhere; only own tools do")
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}

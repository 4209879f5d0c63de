"""POST /v1/responses and its kin: OpenAI's newer form of a conversation, whose state we keep."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from mull.serve import sse
from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.answers import RunningAnswer, new_id
from mull.serve.errors import ApiError
from mull.serve.serving import Serving, serving
from mull.serve.wire.common import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Count,
    Effort,
    Name,
    Wire,
    stream_response,
    thinking_options,
    whole_response,
)
from mull.serve.wire.responses_answer import response_answer, response_stream
from mull.serve.wire.responses_items import MAX_ITEMS, ItemError, conversation
from mull.serve.wire.responses_kept import Kept, KeptResponses

router = APIRouter()


class Reasoning(Wire):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Wire):
    format: dict[str, Any] | None = None
    verbosity: Name | None = None


class ResponseRequest(Wire):
    model: Name | None = None
    input: str | Annotated[list[dict[str, Any]], Field(max_length=MAX_ITEMS)] | None = None
    instructions: str | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Name], Field(max_length=16)] | None = None
    stream: bool | None = False
    store: bool | None = True
    background: bool | None = False
    previous_response_id: Name | None = None
    metadata: Annotated[dict[Name, str], Field(max_length=16)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Name | None = None


Asking = Annotated[Owner, Depends(current_owner)]
Parts = Annotated[Serving, Depends(serving)]


def kept(request: Request, parts: Parts) -> KeptResponses:
    """The responses of this server that can still be asked for."""
    state = request.app.state
    if not hasattr(state, "kept_responses"):
        state.kept_responses = KeptResponses(parts.settings.keep_minutes * 60)
    found: KeptResponses = state.kept_responses
    return found


KeptOnes = Annotated[KeptResponses, Depends(kept)]


@router.post("/responses")
async def create_response(
    request: Request, asked: ResponseRequest, owner: Asking, parts: Parts, responses: KeptOnes
) -> Response:
    """The next items of the conversation, whole or as a stream of events."""
    before = responses.messages(owner, asked.previous_response_id, parts.pool.find(asked.model))
    messages = _said(asked, owner, responses)
    if len(before) + len(messages) > MAX_MESSAGES:
        raise ApiError(400, f"the conversation has more than {MAX_MESSAGES} messages")
    if asked.background and asked.store is False:
        raise ApiError(400, "a response in the background must be stored", param="store")
    form = asked.model_dump(exclude={"input", "stream"})
    new = Kept(new_id("resp"), owner, [*before, *messages], messages, form)
    if asked.store is not False:
        responses.add(new)
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []

    async def start() -> RunningAnswer:
        try:
            new.answer = await parts.answers.start(
                owner,
                asked.model,
                [*system, *new.messages],
                _options(asked),
                id=new.id,
                keep=bool(asked.background),
                form=form,
                on_end=new.remember,
            )
        except BaseException:
            responses.forget(new.id)
            raise
        return new.answer

    if asked.background and not asked.stream:
        return JSONResponse(response_answer(await start()))
    if not asked.stream:
        return await whole_response(request, start(), response_answer)
    keep_alive = parts.settings.keep_alive_seconds
    return await stream_response(
        start(),
        lambda answer: response_stream(answer, keep_alive=keep_alive),
        keep_alive=keep_alive,
        failed=_failed,
    )


@router.get("/responses/{response_id}")
async def get_response(
    response_id: str,
    owner: Asking,
    parts: Parts,
    responses: KeptOnes,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=0, le=2**31 - 1)] | None = None,
) -> Response:
    """A response as it is by now; with `stream` its events, from any number on."""
    found = responses.get(owner, response_id)
    if not stream:
        return JSONResponse(found.shown)
    body = response_stream(
        found.running, after=starting_after, keep_alive=parts.settings.keep_alive_seconds
    )
    return sse.StreamedResponse(body)


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, owner: Asking, responses: KeptOnes) -> dict[str, Any]:
    """Forget a response; one that still runs is ended."""
    found = responses.get(owner, response_id)
    if found.answer is not None:
        found.answer.stop()
    responses.forget(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/responses/{response_id}/cancel")
async def cancel_response(response_id: str, owner: Asking, responses: KeptOnes) -> Response:
    """End a running response with what there is."""
    found = responses.get(owner, response_id)
    if not found.is_finished:
        found.running.stop()
        await found.running.finished()
    return JSONResponse(found.shown)


@router.get("/responses/{response_id}/input_items")
async def input_items(response_id: str, owner: Asking, responses: KeptOnes) -> dict[str, Any]:
    """What the response was asked with."""
    found = responses.get(owner, response_id)
    items = [
        {
            "id": f"msg_{found.id.partition('-')[2]}_in_{i}",
            "type": "message",
            "role": message["role"],
            "content": [{"type": "input_text", "text": message.get("content") or ""}],
            "status": "completed",
        }
        for i, message in enumerate(found.input)
    ]
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": items, "has_more": False, **ends}


@router.post("/responses/input_tokens")
async def input_tokens(
    asked: ResponseRequest, owner: Asking, parts: Parts, responses: KeptOnes
) -> dict[str, Any]:
    """How many tokens the prompt of such a response has."""
    before = responses.messages(owner, asked.previous_response_id, parts.pool.find(asked.model))
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    messages = [*system, *before, *_said(asked, owner, responses)]
    async with parts.pool.lease(asked.model) as llm:
        made = await asyncio.to_thread(
            llm.request, messages, namespace=owner.name, **_options(asked)
        )
    return {"object": "response.input_tokens", "input_tokens": len(made.prompt_ids)}


def _said(asked: ResponseRequest, owner: Owner, responses: KeptResponses) -> list[dict[str, Any]]:
    if not asked.input:
        raise ApiError(400, "input must be a text or a list of items", param="input")
    try:
        return conversation(asked.input, lambda id: responses.item(owner, id))
    except ItemError as error:
        raise ApiError(400, str(error), param="input") from None


def _options(asked: ResponseRequest) -> dict[str, Any]:
    reasoning, text = asked.reasoning or Reasoning(), asked.text or TextOptions()
    options = thinking_options(
        asked.model, thinking=None, effort=reasoning.effort, budget=asked.thinking_budget
    )
    wants_logprobs = "message.output_text.logprobs" in (asked.include or [])
    return options | {
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "logprobs": (asked.top_logprobs or 0) if wants_logprobs or asked.top_logprobs else None,
        "tools": [_declared(tool, i) for i, tool in enumerate(asked.tools or [])] or None,
        "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "response_format": _format(text.format),
    }


def _declared(tool: dict[str, Any], number: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:40]
        raise ApiError(400, f"tools[{number}].type is {kind!r}: only functions can be called")
    names = ("name", "description", "parameters", "strict")
    return {
        "type": "function",
        "function": {name: tool[name] for name in names if tool.get(name) is not None},
    }


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """text.format has the schema beside its type, where chat has it one level down."""
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": given}


def _failed(error: ApiError) -> bytes:
    told = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return sse.event({**told, "sequence_number": 0}, name="error")

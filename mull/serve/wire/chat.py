"""POST /v1/chat/completions: DeepSeek's and OpenAI's form of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from mull.serve import sse
from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.answers import RunningAnswer, new_id
from mull.serve.errors import ApiError
from mull.serve.serving import Serving, serving
from mull.serve.wire.chat_answer import ChatForm, chat_answer, chat_stream, error_chunk
from mull.serve.wire.common import (
    MAX_MESSAGES,
    MAX_SAMPLES,
    MAX_TOOLS,
    Count,
    Effort,
    Name,
    Thinking,
    Wire,
    stream_response,
    thinking_options,
    whole_response,
)

router = APIRouter()


class ChatMessage(Wire):
    """Checked further by text/messages.py; ids of tokens are never taken from a client."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: Name | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Name | None = None
    prefix: bool = False


class StreamOptions(Wire):
    include_usage: bool = False
    resumable: bool = False


class Sampling(Wire):
    """How tokens are drawn: the fields that chat and plain completions share."""

    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: (
        Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    stop: (
        str
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    ignore_eos: bool | None = None  # as vLLM and SGLang have it, for those who measure

    def sampling(self) -> dict[str, Any]:
        """As SamplingParams takes them."""
        names = (
            "max_tokens temperature top_p top_k min_p presence_penalty frequency_penalty "
            "repetition_penalty logit_bias stop seed n ignore_eos"
        )
        return {name: getattr(self, name) for name in names.split()}


class ChatRequest(Sampling):
    model: Name | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    store: bool | None = False
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True


Asking = Annotated[Owner, Depends(current_owner)]
Parts = Annotated[Serving, Depends(serving)]


@router.post("/chat/completions")
async def chat_completions(
    request: Request, asked: ChatRequest, owner: Asking, parts: Parts
) -> Response:
    """The assistant's next message, whole or as a stream of chunks."""
    options = asked.stream_options or StreamOptions()
    form = ChatForm(include_usage=options.include_usage, logprobs=bool(asked.logprobs))
    _check_messages(asked.messages, is_strict=parts.settings.strict_reasoning)
    starting = parts.answers.start(
        owner,
        asked.model,
        [message.model_dump(exclude_none=True, exclude={"prefix"}) for message in asked.messages],
        _options(asked),
        id=new_id("chatcmpl"),
        keep=bool(asked.store) or options.resumable,
        form=form,
    )
    if not asked.stream:
        return await whole_response(request, starting, chat_answer)
    keep_alive = parts.settings.keep_alive_seconds
    return await stream_response(
        starting,
        lambda answer: chat_stream(answer, keep_alive=keep_alive),
        keep_alive=keep_alive,
        failed=error_chunk,
    )


@router.get("/chat/completions/{id}")
async def get_chat_completion(
    request: Request,
    id: str,
    owner: Asking,
    parts: Parts,
    stream: bool = False,
    after: sse.AfterNumber = None,
    last_event_id: sse.LastEventId = None,
) -> Response:
    """A kept answer (`store`, or `stream_options.resumable`): whole, once it is; with `stream` the
    chunks whose `id:` is above `after` or Last-Event-ID, and those that come."""
    answer = _kept(parts, owner, id)
    if stream:
        number = sse.first_number(after, last_event_id)
        keep_alive = parts.settings.keep_alive_seconds
        return sse.StreamedResponse(chat_stream(answer, number, keep_alive=keep_alive))

    async def found() -> RunningAnswer:
        return answer

    return await whole_response(request, found(), chat_answer)


@router.delete("/chat/completions/{id}")
async def delete_chat_completion(id: str, owner: Asking, parts: Parts) -> dict[str, Any]:
    """Forget a kept answer; one that still runs is ended."""
    parts.answers.forget([_kept(parts, owner, id).id])
    return {"id": id, "object": "chat.completion.deleted", "deleted": True}


def _kept(parts: Serving, owner: Owner, id: str) -> RunningAnswer:
    answer = parts.answers.get(owner, id)
    if not isinstance(answer.form, ChatForm):
        raise ApiError(404, f"{id[:80]!r} is no chat completion")
    return answer


def _check_messages(messages: list[ChatMessage], *, is_strict: bool) -> None:
    """What only this format knows of: `prefix`, and the first deepseek-reasoner's strictness."""
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if message.prefix and (message.role != "assistant" or message is not messages[-1]):
            raise ApiError(
                400, f"{where}.prefix: only the last message, an assistant's, can be gone on from"
            )
        if is_strict and message.reasoning_content is not None:
            raise ApiError(
                400,
                f"{where}.reasoning_content: thinking must not be sent back to this server",
                param=f"{where}.reasoning_content",
            )


def _options(asked: ChatRequest) -> dict[str, Any]:
    options = asked.sampling()
    if asked.max_completion_tokens is not None:
        options["max_tokens"] = asked.max_completion_tokens
    if asked.logprobs:
        options["logprobs"] = asked.top_logprobs or 0
    options |= thinking_options(
        asked.model,
        thinking=asked.thinking,
        effort=asked.reasoning_effort,
        budget=asked.thinking_budget,
    )
    options |= {
        "tools": asked.tools,
        "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "response_format": asked.response_format,
        "continue_last": asked.messages[-1].prefix,
    }
    return options

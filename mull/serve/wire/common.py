"""What every wire format shares: bounded fields, thinking wishes, usage, and how answers go out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from mull.engine import Output
from mull.serve import sse
from mull.serve.answers import RunningAnswer
from mull.serve.errors import ApiError, as_api_error

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_SAMPLES = 16
MAX_TOKENS = 2**31 - 1

Found = TypeVar("Found")

Name = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS, strict=True)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Tokens of thinking; None leaves it to the model.
EFFORT_BUDGETS: dict[str, int | None] = {
    "none": None,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": None,
    "xhigh": None,
    "max": None,
}


class Wire(BaseModel):
    """Fields a client may send; those nobody knows are ignored, as its own server would."""

    model_config = ConfigDict(extra="ignore")


class Thinking(Wire):
    """DeepSeek's switch, and Anthropic's."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None


def thinking_options(
    model: str | None,
    *,
    thinking: Thinking | None,
    effort: str | None,
    budget: int | None,
) -> dict[str, Any]:
    """`thinking` and `think_budget` of LLM.request. A budget given outright beats an effort's; a
    switch beats an effort, and an effort beats what the model's name asks for."""
    mode = "auto"
    if model is not None and model.endswith("-reasoner"):
        mode = "on"
    elif model is not None and model.endswith("-chat"):
        mode = "off"
    if effort is not None:
        mode = "off" if effort == "none" else "auto"
    if thinking is not None:
        mode = {"enabled": "on", "disabled": "off", "adaptive": "auto"}[thinking.type]
    wanted = budget
    if wanted is None and thinking is not None:
        wanted = thinking.budget_tokens
    if wanted is None and effort is not None:
        wanted = EFFORT_BUDGETS[effort]
    return {"thinking": mode, "think_budget": None if mode == "off" else wanted}


def usage(outputs: list[Output]) -> dict[str, Any]:
    """True counts, by token id; the prompt of several samples is counted once."""
    first = outputs[0].usage
    completion = sum(output.usage.completion_tokens for output in outputs)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "prompt_cache_hit_tokens": first.cached_tokens,
        "prompt_cache_miss_tokens": first.prompt_tokens - first.cached_tokens,
        "completion_tokens_details": {
            "reasoning_tokens": sum(output.usage.reasoning_tokens for output in outputs)
        },
    }


def finish_reason(answer: RunningAnswer, output: Output) -> str:
    """In OpenAI's and DeepSeek's words."""
    if output.finish_reason == "cancelled":
        return "insufficient_system_resource" if answer.stopped_by == "shutdown" else "stop"
    if output.tool_calls and output.finish_reason == "stop":
        return "tool_calls"
    return output.finish_reason


async def stream_response(
    starting: Awaitable[RunningAnswer],
    write: Callable[[RunningAnswer], AsyncIterator[bytes]],
    *,
    keep_alive: float,
    failed: Callable[[ApiError], bytes],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer as a stream of events. Errors before anything was sent have their own status;
    where starting takes long (a model is being loaded) the stream begins with keep-alives."""
    task = asyncio.ensure_future(starting)
    await asyncio.wait({task}, timeout=keep_alive)
    if task.done():
        task.result()  # raises what went wrong

    async def body() -> AsyncIterator[bytes]:
        try:
            while not task.done():
                yield sse.KEEP_ALIVE
                await asyncio.wait({task}, timeout=keep_alive)
            answer = task.result()
        except ApiError as error:
            yield failed(error)
            return
        except Exception as error:
            yield failed(as_api_error(error))
            return
        finally:
            if not task.done():
                task.cancel()
        async with aclosing(write(answer)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    return sse.StreamedResponse(body(), headers=headers)


async def whole_response(
    request: Request,
    starting: Awaitable[RunningAnswer],
    write: Callable[[RunningAnswer], dict[str, Any]],
) -> Response:
    """The answer in one piece; a client that leaves before ends it."""

    async def finished() -> RunningAnswer:
        answer = await starting
        await answer.finished()
        return answer

    answer = await while_heard(request, finished())
    if answer is None:
        return Response(status_code=499)  # nobody reads it
    if answer.error is not None:
        raise answer.error
    return JSONResponse(write(answer))


async def while_heard(request: Request, work: Coroutine[Any, Any, Found]) -> Found | None:
    """What comes of the work; it is cancelled, and None, when the client leaves before."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(sse.until_disconnect(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        leaving.cancel()
        task.cancel()

"""POST /v1/completions: text that goes on from a text, with no conversation around it.

With `echo` and `logprobs` it tells how likely the prompt itself is: evaluation harnesses score
answers by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from mull.engine import Event, TokenLogprob
from mull.serve import sse
from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.answers import RunningAnswer, new_id
from mull.serve.errors import ApiError
from mull.serve.serving import Serving, serving
from mull.serve.wire.chat import Sampling, StreamOptions
from mull.serve.wire.chat_answer import FINGERPRINT, error_chunk, finite
from mull.serve.wire.common import (
    Name,
    finish_reason,
    stream_response,
    usage,
    while_heard,
)
from mull.text import StreamDecoder, Tokenizer

router = APIRouter()

MAX_PROMPTS = 128
DEFAULT_TOKENS = 16

Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class CompletionRequest(Sampling):
    model: Name | None = None
    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = DEFAULT_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    suffix: str | None = None

    def prompts(self) -> list[Any]:
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else list(self.prompt)


@router.post("/completions")
async def completions(
    request: Request,
    asked: CompletionRequest,
    owner: Annotated[Owner, Depends(current_owner)],
    parts: Annotated[Serving, Depends(serving)],
) -> Response:
    """What follows each prompt, whole or as a stream of chunks."""
    if asked.suffix:
        raise ApiError(400, "suffix: no model here fills gaps", param="suffix")
    prompts = asked.prompts()

    async def start(prompt: Any) -> RunningAnswer:
        return await parts.answers.start(
            owner, asked.model, prompt, _options(asked), id=new_id("cmpl"), keep=False, form=asked
        )

    if asked.stream:
        if len(prompts) > 1:
            raise ApiError(400, "stream: one prompt at a time can be streamed", param="prompt")
        keep_alive = parts.settings.keep_alive_seconds
        return await stream_response(
            start(prompts[0]),
            lambda answer: _chunks(answer, keep_alive=keep_alive),
            keep_alive=keep_alive,
            failed=error_chunk,
        )

    async def whole(prompt: Any) -> RunningAnswer:
        answer = await start(prompt)
        await answer.finished()
        return answer

    async def all_of_them() -> list[RunningAnswer]:
        try:
            async with asyncio.TaskGroup() as group:  # where one fails the others end as well
                tasks = [group.create_task(whole(prompt)) for prompt in prompts]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    answers = await while_heard(request, all_of_them())
    if answers is None:
        return Response(status_code=499)  # nobody reads it
    failed = next((answer.error for answer in answers if answer.error is not None), None)
    if failed is not None:
        raise failed
    return JSONResponse(_completion(answers))


def _options(asked: CompletionRequest) -> dict[str, Any]:
    options = asked.sampling()
    # The engine always says something; nothing of it is shown where nothing was asked for.
    options["max_tokens"] = max(1, DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens)
    options["logprobs"] = asked.logprobs
    if asked.echo and asked.logprobs is not None:
        options["prompt_logprobs"] = asked.logprobs
    return options | {"raw": True, "detect_loops": False}


def _completion(answers: list[RunningAnswer]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for answer in answers:
        choices += [
            _choice(answer, index, len(choices) + index) for index in sorted(answer.outputs)
        ]
    counted = [usage([a.outputs[i] for i in sorted(a.outputs)]) for a in answers]
    return {**_head(answers[0]), "choices": choices, "usage": _sums(counted)}


def _sums(counted: list[dict[str, Any]]) -> dict[str, Any]:
    """Number by number, those within numbers' groups as well."""
    first = counted[0]
    return {
        name: _sums([each[name] for each in counted])
        if isinstance(value, dict)
        else sum(each[name] for each in counted)
        for name, value in first.items()
    }


def _choice(answer: RunningAnswer, index: int, number: int) -> dict[str, Any]:
    asked: CompletionRequest = answer.form
    output, tokenizer = answer.outputs[index], answer.tokenizer
    said = [p.event for p in answer.pieces if p.event is not None and p.event.index == index]
    text = "" if asked.max_tokens == 0 else "".join(map(_text, said))
    listed = [] if asked.max_tokens == 0 else list(output.logprobs or [])
    if asked.echo:
        text = tokenizer.decode(answer.prompt_ids, skip_special=True) + text
        listed = [*(output.prompt_logprobs or []), *listed]
    return {
        "index": number,
        "text": text,
        "logprobs": None
        if asked.logprobs is None
        else _logprobs(listed, tokenizer, goes_on=not asked.echo),
        "finish_reason": finish_reason(answer, output),
    }


async def _chunks(answer: RunningAnswer, *, keep_alive: float) -> AsyncIterator[bytes]:
    asked: CompletionRequest = answer.form
    tokenizer = answer.tokenizer
    begun: set[int] = set()
    async with aclosing(answer.events(keep_alive=keep_alive)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            if piece is None:
                yield sse.KEEP_ALIVE
                continue
            if piece.error is not None:
                yield error_chunk(piece.error)
                return
            if piece.event is not None:
                event = piece.event
                text = "" if asked.max_tokens == 0 else _text(event)
                if asked.echo and event.index not in begun:
                    text = tokenizer.decode(answer.prompt_ids, skip_special=True) + text
                begun.add(event.index)
                listed = _logprobs(list(event.logprobs), tokenizer, goes_on=True)
                choice = {
                    "index": event.index,
                    "text": text,
                    "logprobs": None if asked.logprobs is None else listed,
                    "finish_reason": event.output and finish_reason(answer, event.output),
                }
                yield sse.event({**_head(answer), "choices": [choice]})
            if piece.last:
                if asked.stream_options is not None and asked.stream_options.include_usage:
                    outputs = [answer.outputs[i] for i in sorted(answer.outputs)]
                    yield sse.event({**_head(answer), "choices": [], "usage": usage(outputs)})
                yield sse.DONE


def _text(event: Event) -> str:
    return event.text if event.kind in ("thinking", "answer") else ""


def _head(answer: RunningAnswer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": "text_completion",
        "created": int(answer.created),
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
    }


def _logprobs(listed: list[TokenLogprob], tokenizer: Tokenizer, *, goes_on: bool) -> dict[str, Any]:
    """Four lists, one entry a token; the text's offsets count characters that are whole."""
    decoder = StreamDecoder(tokenizer, goes_on=goes_on)
    offsets: list[int] = []
    length = 0
    for known in listed:
        offsets.append(length)
        length += len(decoder.push(known.token_id))
    return {
        "tokens": [_name(known.token_id, tokenizer) for known in listed],
        "token_logprobs": [_shown(known.logprob) for known in listed],
        "top_logprobs": [
            None
            if known.logprob is None
            else {_name(token, tokenizer): _shown(value) for token, value in known.top}
            for known in listed
        ],
        "text_offset": offsets,
    }


def _shown(logprob: float | None) -> float | None:
    return None if logprob is None else finite(logprob)


def _name(token: int, tokenizer: Tokenizer) -> str:
    """Its text; bytes that are no text by themselves are spelled, so that no two tokens are one."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

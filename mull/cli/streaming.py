"""From the events of an answer to what the user sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mull.cli.terminal import AnswerPrinter, note

if TYPE_CHECKING:
    from mull.cli.remote import RemoteAnswer, RemoteEvent
    from mull.llm import Answer, Event

    AnAnswer = Answer | RemoteAnswer


def show_answer(events: Iterator[Event | RemoteEvent], printer: AnswerPrinter) -> AnAnswer:
    """Print an answer while it comes; returns it whole. The line is ended even when interrupted."""
    answer: AnAnswer | None = None
    try:
        for event in events:
            if event.kind == "end":
                answer = event.answer
            else:
                printer.write(event.kind, event.text)
    finally:
        printer.end_line()
    assert answer is not None  # a stream that raises nothing ends with its answer
    printer.finish()
    return answer


def tell_how_it_ended(answer: AnAnswer) -> None:
    """Say on stderr why an answer may be incomplete; silent when the model was done."""
    loop = answer.finish_details.get("loop")
    if loop and loop["in"] == "answer":
        note("(stopped: the answer was repeating itself)")
    elif answer.finish_details.get("context_full"):
        note("(stopped: the context is full)")
    elif answer.finish_reason == "length":
        note("(stopped at the token limit: --max-tokens raises it)")


def answer_json(model: str, answer: AnAnswer) -> dict[str, Any]:
    """The object that `mull ask --json` promises."""
    usage, timing = answer.usage, answer.timing
    return {
        "model": model,
        "thinking": answer.thinking,
        "answer": answer.text,
        "usage": {
            name: usage[name] for name in ("prompt_tokens", "reasoning_tokens", "completion_tokens")
        },
        "timing": {name: _rounded(timing[name]) for name in ("ttft_s", "tokens_per_s")},
        "finish_reason": answer.finish_reason,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

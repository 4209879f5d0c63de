"""`mull ask`: one question, one answer, and exit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli.options import (
    DEFAULT_MODEL,
    AnyModelOption,
    CacheOption,
    ContextOption,
    DeviceOption,
    JsonOption,
    LoadOptions,
    MaxTokensOption,
    NoThinkOption,
    PrecisionOption,
    SeedOption,
    SpeculationOption,
    SystemOption,
    TemperatureOption,
    ThinkBudgetOption,
    ThreadsOption,
    TopPOption,
    check_sampling,
    load,
    make_repeatable,
)
from mull.cli.remote import ApiKeyOption, RemoteModel, UrlOption, connect
from mull.cli.streaming import answer_json, show_answer, tell_how_it_ended
from mull.cli.terminal import AnswerPrinter, print_json
from mull.errors import RequestError

if TYPE_CHECKING:
    from mull.llm import LLM


def ask(
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="The question; `-` stands for standard input."),
    ] = None,
    model: AnyModelOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    context: ContextOption = None,
    cache: CacheOption = "auto",
    speculation: SpeculationOption = "auto",
    no_think: NoThinkOption = False,
    think_budget: ThinkBudgetOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    system: SystemOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer one question and exit.

    The answer goes to stdout; the thinking, dimmed, to stderr when that is a terminal.
    """
    prompt = _prompt(question or ["-"])
    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "think_budget": think_budget,
    }
    llm: LLM | RemoteModel
    if url is not None:
        llm = connect(url, model, api_key)
    else:
        check_sampling(**sampling)
        llm = load(
            model or DEFAULT_MODEL,
            LoadOptions(precision, device, threads, context, cache, speculation),
        )
    make_repeatable(sampling, thinks=llm.thinks)
    sampling |= {"thinking": "off" if no_think else "auto", "system": system}
    try:
        if as_json:
            print_json(answer_json(llm.name, llm.generate(prompt, **sampling)))
        else:
            tell_how_it_ended(show_answer(llm.stream(prompt, **sampling), AnswerPrinter()))
    finally:
        llm.close()


def _prompt(words: list[str]) -> str:
    if "-" in words and sys.stdin.isatty():
        raise RequestError(
            'nothing to answer: give a question, as in mull ask "Why is the sky blue?"'
        )
    prompt = " ".join(sys.stdin.read() if word == "-" else word for word in words).strip()
    if not prompt:
        raise RequestError('the question is empty: give one, as in mull ask "Why is the sky blue?"')
    return prompt

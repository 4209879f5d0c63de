"""`mull chat`: a conversation in the terminal, or an answer to each line of a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mull.cli.conversation import Conversation
from mull.cli.options import (
    DEFAULT_MODEL,
    AnyModelOption,
    CacheOption,
    ContextOption,
    DeviceOption,
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
    collect_garbage,
    load,
    make_repeatable,
)
from mull.cli.reader import piped_lines, terminal_lines
from mull.cli.remote import ApiKeyOption, RemoteModel, UrlOption, connect
from mull.cli.slash import QuitChat, run_command
from mull.cli.streaming import tell_how_it_ended
from mull.cli.terminal import AnswerPrinter, note, one_line
from mull.errors import MullError

if TYPE_CHECKING:
    from mull.llm import LLM


def chat(
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
) -> int:
    """Talk with a model.

    With no terminal on stdin, answers each line of it and exits.
    """
    options = LoadOptions(precision, device, threads, context, cache, speculation)
    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    llm: LLM | RemoteModel
    if url is not None:
        llm = connect(url, model, api_key)
    else:
        check_sampling(think_budget=think_budget, **sampling)
        llm = load(model or DEFAULT_MODEL, options)
    conversation = Conversation(
        llm,
        sampling=sampling,
        system=system,
        thinking="off" if no_think else "auto",
        think_budget=think_budget,
    )
    del llm  # the conversation alone holds it, and lets it go for another
    session = Chat(conversation, options, model or DEFAULT_MODEL)
    try:
        return session.run_terminal() if sys.stdin.isatty() else session.run_pipe()
    finally:
        if (in_use := session.conversation.llm) is not None:
            in_use.close()


@dataclass
class Chat:
    """The loop around a conversation: reads lines, runs commands, shows answers."""

    conversation: Conversation
    options: LoadOptions
    model: str  # as the user named it: a path has no other name to load it by

    def run_terminal(self) -> int:
        note(f"{self.conversation.model_line()} · /help for help")
        for line in terminal_lines():
            try:
                self.handle(line, verbose=True)
            except QuitChat:
                break
            except MullError as error:
                note(f"mull: {one_line(str(error))}")
            except KeyboardInterrupt:
                note("(stopped)")
        return 0

    def run_pipe(self) -> int:
        """Answer every line; a line that cannot be answered makes the exit code 2, not the rest."""
        code = 0
        make_repeatable(self.conversation.sampling, thinks=self.loaded().thinks)
        for line in piped_lines():
            try:
                self.handle(line, verbose=False)
            except QuitChat:
                break
            except MullError as error:
                print(f"mull: {one_line(str(error))}", file=sys.stderr)
                code = 2
        return code

    def handle(self, line: str, *, verbose: bool) -> None:
        """Answer one line, or run it when it is a command."""
        question: str | None = line
        if line.startswith("/"):
            question = run_command(self, line)
        if question is None:
            return
        self.loaded()
        answer = self.conversation.ask(question, AnswerPrinter())
        if answer is None:
            if not verbose:
                raise KeyboardInterrupt
            note("(stopped)")
            return
        tell_how_it_ended(answer)
        if verbose:
            self._show_figures(answer.timing["tokens_per_s"], answer.usage["completion_tokens"])

    def _show_figures(self, tokens_per_s: float | None, tokens: int) -> None:
        rate = "" if tokens_per_s is None else f" · {tokens_per_s:.1f} tokens/s"
        used, llm = self.conversation.context_used, self.loaded()
        context = "" if llm.context is None else f" of {llm.context:,}"
        note(f"[{tokens:,} tokens{rate} · context {used:,}{context}]")

    def loaded(self) -> LLM | RemoteModel:
        """The model in use, loaded anew after a switch that failed."""
        if self.conversation.llm is None:
            self.conversation.llm = load(self.model, self.options)
        return self.conversation.llm

    def switch_model(self, name: str) -> None:
        """Go on with another model; the one in use is given up only for a model that exists.

        If that cannot be loaded, or Ctrl-C stops it, the next question loads the old one again.
        """
        if isinstance(llm := self.conversation.llm, RemoteModel):
            self.conversation.continue_with(llm.switched_to(name))
            return
        from mull import weights

        weights.load_config(weights.resolve(name))
        self.conversation.llm = None
        if llm is not None:
            llm.close()
        del llm  # its memory too: two models at once may not fit
        collect_garbage()
        self.conversation.continue_with(load(name, self.options))
        self.model = name

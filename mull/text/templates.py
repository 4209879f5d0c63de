"""Chat templates: from messages to token ids, the way each family of models was trained.

Families we know are written out in code (`template_*.py`), so that structure is trusted and text
is not; every other model's own Jinja source renders in a sandbox (`template_jinja.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import TextError
from . import messages as conversations
from .messages import Message, Tool
from .prompt import PromptBuilder, RenderedPrompt, sampled_answer
from .tokenizer import Tokenizer
from .tool_calls import tool_syntax


@dataclass(frozen=True)
class RecommendedSampling:
    """What the makers of a model say it samples best with."""

    temperature: float
    top_p: float


class ChatTemplate(ABC):
    """Renders conversations for one tokenizer.

    `thinks`: a model that thinks unless told not to. `tool_format` names how the model writes
    tool calls (deepseek, deepseek-v3.1, hermes, llama3) or is None; the stream parser reads it.
    `opens_thinking`: one that was trained to think in a form that has no thinking of its own, so
    its prompts open it (see opening.py). `source`: the form in Jinja, for a model without any.
    """

    name: str
    thinks: bool
    tool_format: str | None
    opens_thinking = False
    think_open = "<think>"
    think_close = "</think>"
    before_think_open: ClassVar[str] = ""
    after_think_open: ClassVar[str] = "\n"
    source: str
    recommended = RecommendedSampling(temperature=0.6, top_p=0.95)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @staticmethod
    def for_tokenizer(tokenizer: Tokenizer, jinja_source: str | None = None) -> "ChatTemplate":
        """The built-in family this vocabulary and template belong to, else the template itself.

        Without `jinja_source` the template that came with the tokenizer is looked at. A model
        with neither a known vocabulary nor a template is given ChatML's form as plain text.
        """
        from .families import recognise

        return recognise(tokenizer, jinja_source or tokenizer.chat_template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
    ) -> RenderedPrompt:
        """The prompt of a conversation.

        `thinking`: None leaves it to the model, False closes the thinking at once (where the prompt
        is what opens it: opens none), True opens it even in models that were not trained to think.
        `continue_last`: the last message is the beginning of the answer. An assistant message may
        carry `token_ids`, the ids sampled for it; built-in families use them as they are, so they
        must never come from a client.
        Raises TextError for anything that is no conversation.
        """
        checked = conversations.check(
            messages, self.tokenizer, think_open=self.think_open, think_close=self.think_close
        )
        if continue_last and checked[-1].role != "assistant":
            raise TextError("continue_last needs an assistant message at the end to continue")
        if thinking is None and self.opens_thinking:
            thinking = True
        return self._render(
            checked,
            conversations.check_tools(tools),
            thinking,
            add_generation_prompt,
            continue_last,
        )

    def set_to_open_thinking(self) -> None:
        """Prompts open the thinking unless told not to."""
        self.thinks = self.opens_thinking = True

    @property
    def thinking_opening(self) -> str:
        """What opens a thinking at the end of a prompt."""
        return self.before_think_open + self.think_open + self.after_think_open

    def thinking_close_ids(self, *, is_mid_line: bool = True) -> list[int]:
        """What ends a thinking that must stop now: newline, closing tag, blank line."""
        text = ("\n" if is_mid_line else "") + f"{self.think_close}\n\n"
        return self.tokenizer.encode(text, allow_special=True, continues=True)

    @abstractmethod
    def _render(
        self,
        messages: list[Message],
        tools: list[Tool],
        thinking: bool | None,
        add_generation_prompt: bool,
        continue_last: bool,
    ) -> RenderedPrompt: ...


class BuiltinTemplate(ChatTemplate):
    """A family in code: the conversation, then the beginning of the answer."""

    def _render(
        self,
        messages: list[Message],
        tools: list[Tool],
        thinking: bool | None,
        add_generation_prompt: bool,
        continue_last: bool,
    ) -> RenderedPrompt:
        prompt = PromptBuilder(self.tokenizer)
        started = messages[-1] if continue_last else None
        history = messages[:-1] if continue_last else messages
        self._conversation(prompt, history, tools)
        if started is not None:
            self._open_turn(prompt, history)
            return RenderedPrompt(*self._continue(prompt, started))
        starts_in_thinking = False
        if add_generation_prompt:
            self._open_turn(prompt, history)
            starts_in_thinking = self._open_thinking(prompt, history, thinking)
        return RenderedPrompt(prompt.build(), starts_in_thinking)

    @abstractmethod
    def _conversation(
        self, prompt: PromptBuilder, messages: list[Message], tools: list[Tool]
    ) -> None:
        """Everything up to the answer that is asked for."""

    @abstractmethod
    def _open_turn(self, prompt: PromptBuilder, messages: list[Message]) -> None:
        """The marker after which the assistant speaks."""

    def _open_thinking(
        self, prompt: PromptBuilder, messages: list[Message], thinking: bool | None
    ) -> bool:
        """Opens or closes the thinking; returns whether the model continues inside it."""
        if thinking:
            prompt.trusted(self.thinking_opening)
        return bool(thinking)

    def _continue(self, prompt: PromptBuilder, started: Message) -> tuple[list[int], bool]:
        """The beginning of an answer, left open; thinking goes on where no text follows it."""
        reasoning, content = started.reasoning, started.content
        if content.startswith(self.think_open) and not reasoning:
            reasoning, content = content.removeprefix(self.think_open).lstrip("\n"), ""
        inside = bool(reasoning) and not content
        ids = None if reasoning else started.token_ids
        if self.opens_thinking and ids is not None and self._prompt_opened_thinking(list(ids)):
            prompt.trusted(self.thinking_opening)
        elif reasoning or (self.thinks and not self.opens_thinking):
            self._thought(prompt, reasoning, closed=not inside)
        if ids is not None:
            prompt.ids(ids)
        else:
            prompt.untrusted(content)
        return prompt.build(), inside

    def _thought(self, prompt: PromptBuilder, reasoning: str, *, closed: bool) -> None:
        prompt.trusted(self.think_open + "\n")
        prompt.untrusted(reasoning)
        if closed:
            prompt.trusted(f"\n{self.think_close}\n\n")

    def _answer(self, prompt: PromptBuilder, message: Message) -> bool:
        """What an assistant said; True when sampled ids were used, tool calls and all."""
        if message.token_ids is not None:
            ids = sampled_answer(
                self.tokenizer,
                message.token_ids,
                self.think_close,
                keep_thinking=message.in_progress,
            )
            if ids is not None:
                if message.in_progress and self._prompt_opened_thinking(ids):
                    prompt.trusted(self.think_open + self.after_think_open)
                prompt.ids(ids)
                return True
        if message.reasoning:
            self._thought(prompt, message.reasoning, closed=True)
        prompt.untrusted(message.content)
        return False

    def _calls(self, prompt: PromptBuilder, message: Message) -> None:
        """The calls an assistant made, as the model writes them."""
        syntax = tool_syntax(self.tool_format)
        if syntax is None or not message.tool_calls:
            return
        form = syntax.form
        prompt.trusted(form.before)
        for index, call in enumerate(message.tool_calls):
            prompt.trusted((form.between if index else "") + form.begin)
            prompt.untrusted(form.name(call.name))
            prompt.trusted(form.middle)
            prompt.untrusted(call.arguments)
            prompt.trusted(form.end)
        prompt.trusted(form.after)

    def _prompt_opened_thinking(self, ids: list[int]) -> bool:
        before, closed, _ = self.tokenizer.decode(ids).partition(self.think_close)
        return bool(closed) and self.think_open not in before

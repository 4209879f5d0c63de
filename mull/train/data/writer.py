"""From what is said to token ids: exactly those that the engine sees and samples at rollout time.

The prompt is the chat template's own. What the assistant says is encoded stretch by stretch, with
the closing of the thinking as the engine itself writes it when a budget is spent: where the engine
closes a thinking, the model finds itself in a place it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mull.errors import TextError
from mull.text import ChatTemplate, Tokenizer
from mull.text import messages as conversations
from mull.text.template_deepseek import DeepSeekR1Template
from mull.text.vocabulary import END_NAMES
from mull.train.batch import Example
from mull.train.data.traces import Mark, Trace

# What separates documents where the vocabulary has it; chats end with their own token.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>")


class TraceWriter:
    """Writes for one model. `turn_end`: the token that ends an answer; `document_end`: a text."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.tokenizer: Tokenizer = template.tokenizer
        self.turn_end = _turn_end(template)
        ids = self.tokenizer.special_ids
        ends = [ids[name] for name in _DOCUMENT_ENDS if name in ids]
        self.document_end = ends[0] if ends else self.turn_end
        self._bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        self._newline = self._continued("\n")
        self._marks = {
            Mark.CLOSE: template.thinking_close_ids(),
            Mark.CLOSE_EMPTY: template.thinking_close_ids(is_mid_line=False),
            Mark.BLANK_LINE: self._continued("\n\n"),
        }
        # Between tokens of structure nothing merges with the question: its prompt need not be
        # rendered anew each time.
        self._around = _around(template) if isinstance(template, DeepSeekR1Template) else None

    def trace(self, trace: Trace) -> Example:
        """Learnt is what is said, and the token that ends it."""
        if trace.prompt == "plain":
            prompt = [*self._bos, *self.tokenizer.encode(trace.question), *self._newline]
            end = self.document_end
        else:
            prompt = self.prompt(trace.question, thinking=trace.prompt == "open")
            end = self.turn_end
        return _example(prompt, [*self.said(trace.said), end])

    def prompt(self, question: str, *, thinking: bool) -> list[int]:
        """What the engine is given for this question alone, thinking on or off."""
        if self._around is not None:
            before, after = self._around[thinking]
            return [*before, *self._continued(question), *after]
        return self._rendered([{"role": "user", "content": question}], thinking)

    def said(self, said: Sequence[str | Mark]) -> list[int]:
        ids: list[int] = []
        for part in said:
            ids += self._continued(part) if isinstance(part, str) else self._marks[part]
        return ids

    def answer(self, thinking: str, answer: str) -> list[int]:
        """The ids of an answer that follows an open thinking, its end included."""
        close: tuple[str | Mark, ...] = (thinking, Mark.CLOSE) if thinking else (Mark.CLOSE_EMPTY,)
        return [*self.said([*close, answer]), self.turn_end]

    def document(self, text: str) -> list[int]:
        """A plain text between the tokens that begin and end one; every token is learnt."""
        return [*self._bos, *self.tokenizer.encode(text), self.document_end]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[Example]:
        """A conversation, learnt where the assistant speaks, each turn after what the engine would
        show it.

        Turns go into one example as long as the next prompt goes on where the last answer ended.
        Templates that forget old thinking make it differ there: then an example begins anew.
        Raises TextError for what is no conversation, or has nothing to learn.
        """
        examples: list[Example] = []
        ids: list[int] = []
        learn: list[bool] = []
        for index in _turns(messages):
            prompt, said = self._turn(messages, index)
            if prompt[: len(ids)] != ids:
                examples.append(Example(ids, learn))
                ids, learn = [], []
            learn = learn + [False] * (len(prompt) - len(ids)) + [True] * len(said)
            ids = prompt + said
        if not ids:
            raise TextError("there is no assistant message, so nothing to learn")
        return [*examples, Example(ids, learn)]

    def has_thinking(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether `chat` learns a thinking from it."""
        return any(self._checked(messages, index).reasoning for index in _turns(messages))

    def _checked(self, messages: Sequence[Mapping[str, Any]], index: int) -> conversations.Message:
        """The message at that index as the last one, so that its thinking counts."""
        return conversations.check(
            messages[: index + 1],
            self.tokenizer,
            think_open=self.template.think_open,
            think_close=self.template.think_close,
        )[-1]

    def _turn(
        self, messages: Sequence[Mapping[str, Any]], index: int
    ) -> tuple[list[int], list[int]]:
        """Prompt and answer of the assistant's message at that index."""
        if index == 0:
            raise TextError("messages[0] is the assistant's; it needs a question to answer")
        template = self.template
        message = self._checked(messages, index)
        if message.tool_calls:
            raise TextError(f"messages[{index}].tool_calls: tool calls cannot be learnt yet")
        if message.reasoning:
            prompt = self._rendered(messages[:index], True)
            return prompt, self.answer(message.reasoning, message.content)
        prompt = self._rendered(messages[:index], False if template.thinks else None)
        return prompt, [*self._continued(message.content), self.turn_end]

    def _continued(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, continues=True)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], thinking: bool | None) -> list[int]:
        return self.template.render(messages, thinking=thinking).ids


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where the assistant speaks."""
    return [
        index
        for index, message in enumerate(messages)
        if isinstance(message, Mapping) and message.get("role") == "assistant"
    ]


def _example(prompt: list[int], said: list[int]) -> Example:
    return Example([*prompt, *said], [False] * len(prompt) + [True] * len(said))


def _turn_end(template: ChatTemplate) -> int:
    """The end token that the template itself writes after an answer."""
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    ids = template.render(turn, add_generation_prompt=False).ids
    ends = [token for token in ids if token in template.tokenizer.eos_ids]
    if not ends:
        named = ", ".join(END_NAMES[:3])
        raise TextError(
            f"the chat template {template.name} ends an answer with no token that the tokenizer "
            f"knows as an end ({named}, ...): name it as eos_token in tokenizer_config.json"
        )
    return ends[-1]


def _around(template: ChatTemplate) -> dict[bool, tuple[list[int], list[int]]]:
    """By thinking on or off: the ids before and after a question."""
    question = template.tokenizer.encode("x", continues=True)
    assert len(question) == 1, "a letter is one token"
    around = {}
    for thinking in (True, False):
        ids = template.render([{"role": "user", "content": "x"}], thinking=thinking).ids
        at = ids.index(template.tokenizer.special_ids["<｜User｜>"]) + 1
        around[thinking] = (ids[:at], ids[at + 1 :])
    return around

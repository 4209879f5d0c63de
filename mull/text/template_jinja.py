"""Chat templates we do not know: the model's own Jinja source, rendered in a sandbox.

Rendering mixes structure and text into one string, so whatever in a text could pass for a token of
structure is broken up with a marker character beforehand; once the structure has been found in the
rendered string, the markers are taken out again and what is left is encoded as plain text.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import TextError
from .jinja_sandbox import JinjaSandbox
from .messages import Message, Tool
from .prompt import PromptBuilder, RenderedPrompt
from .templates import ChatTemplate
from .tokenizer import Tokenizer

# Noncharacters and private use: legal in strings, meaningless in text.
_MARKERS = [chr(c) for c in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")


class JinjaTemplate(ChatTemplate):
    """Renders `source` for `tokenizer`. `seconds` is what one rendering may take."""

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, source: str, *, seconds: float = 10.0) -> None:
        super().__init__(tokenizer)
        self._sandbox = JinjaSandbox(source, seconds=seconds)
        self.source = source
        vocabulary = tokenizer.vocabulary
        self._named_tokens = {
            f"{name}_token": vocabulary.texts[token] for name, token in vocabulary.named.items()
        }
        self._look_alikes = LookAlikes(tokenizer.special_ids)
        self.thinks = "<think>" in source or "enable_thinking" in source
        self.tool_format = _tool_format(source)
        # some templates write the arguments of a call as JSON themselves, others take them written
        self._wants_objects = re.search(r"arguments\s*\|\s*tojson", source) is not None

    def _render(
        self,
        messages: list[Message],
        tools: list[Tool],
        thinking: bool | None,
        add_generation_prompt: bool,
        continue_last: bool,
    ) -> RenderedPrompt:
        started = messages[-1] if continue_last else None
        history = messages[:-1] if continue_last else messages
        plain = [_as_dict(m, self._wants_objects) for m in history]
        declared = [dict(t.declared) for t in tools]
        marker = _unused_marker(plain, declared, self.source)
        text = self._sandbox.render(
            {
                "messages": self._look_alikes.broken(plain, marker),
                "tools": self._look_alikes.broken(declared, marker) if tools else None,
                "add_generation_prompt": add_generation_prompt or continue_last,
                "bos_token": "",
                "eos_token": "",
                **self._named_tokens,
                **({} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}),
            }
        )
        prompt = PromptBuilder(self.tokenizer)
        for part in self.tokenizer.split(text, allow_special=True):
            if isinstance(part, int):
                prompt.ids([part])
            else:
                prompt.untrusted(part.replace(marker, "").replace(_escaped(marker), ""))
        opened = self._is_open(text)
        if started is not None:
            return self._continue(prompt, started, text)
        is_foreign = self.opens_thinking or not self.thinks
        if add_generation_prompt and thinking and not opened and is_foreign:
            prompt.trusted(self.thinking_opening)
            opened = True
        elif opened and thinking is False:
            self._close(prompt, text)
            opened = False
        return RenderedPrompt(prompt.build(), opened and add_generation_prompt)

    def _continue(self, prompt: PromptBuilder, started: Message, text: str) -> RenderedPrompt:
        opened = self._is_open(text)
        inside = bool(started.reasoning) and not started.content
        if started.reasoning and not opened:
            prompt.trusted(self.think_open + "\n")
        prompt.untrusted(started.reasoning)
        if (started.reasoning or opened) and not inside:
            self._close(prompt, started.reasoning or text)
        prompt.untrusted(started.content)
        return RenderedPrompt(prompt.build(), inside)

    def _close(self, prompt: PromptBuilder, text: str) -> None:
        """Ends a thinking after `text`; an empty one gets an empty line of its own."""
        empty_line = "\n" if text.endswith(self.think_open) else ""
        prompt.trusted(f"{empty_line}\n{self.think_close}\n\n")

    def _is_open(self, rendered: str) -> bool:
        """Whether the rendered prompt ends inside a thinking that it opened."""
        return rendered.rstrip().endswith(self.think_open)


class LookAlikes:
    """Breaks whatever in a text could become, or become part of, a structural token.

    The marker goes around every character a structural token begins with, so that no filter of
    the template (`replace`, `lower`, `reverse`) can make one out of the text; and to the ends of a
    text that the template's own characters might complete.
    """

    def __init__(self, structural: Iterable[str]) -> None:
        tokens = [t for t in structural if len(t) > 1]
        firsts = {t[0] for t in tokens if not t[0].isalnum()}
        wordy = {t for t in tokens if t[0].isalnum()}
        # a word-like token is broken as a whole: its first letter is everywhere
        starts = [re.escape(f) for f in firsts] + [f"{t[0]}(?={re.escape(t[1:])})" for t in wordy]
        self._starts = re.compile("|".join(starts) or "(?!)", re.IGNORECASE)
        # folded, not lower: what a part becomes does not depend on what stands around it
        folded = {t.casefold() for t in tokens}
        self._beginnings = _Beginnings(folded)
        self._endings = _Beginnings({t[::-1] for t in folded})
        self._longest = max(map(len, folded), default=0)

    def broken(self, value: Any, marker: str, *, key: str = "") -> Any:
        """`value` (JSON) with every text in it broken.

        Templates compare roles and types with words, so these get no markers at their ends.
        """
        if isinstance(value, str):
            inside = self._inside(value, marker)
            return inside if key in ("role", "type") else self._ends(value, inside, marker)
        if isinstance(value, Mapping):
            return {
                self._inside(k, marker): self.broken(v, marker, key=k) for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.broken(v, marker) for v in value]
        return value

    def _inside(self, text: str, marker: str) -> str:
        return self._starts.sub(lambda found: marker + found.group() + marker, text)

    def _ends(self, text: str, inside: str, marker: str) -> str:
        start, end = text[: self._longest].casefold(), text[-self._longest :].casefold()
        before = self._endings.ends(start[::-1])
        after = self._beginnings.ends(end)
        within = 0 < len(text) < self._longest and any(start in t for t in self._beginnings.tokens)
        return marker * (before or within) + inside + marker * (after or within)


class _Beginnings:
    """The beginnings of tokens; kept as the tokens themselves, in order, for there may be many."""

    def __init__(self, tokens: set[str]) -> None:
        self.tokens = sorted(tokens)
        self._firsts = {t[0] for t in tokens}

    def ends(self, text: str) -> bool:
        """Whether `text` ends with a beginning of a token, which is not the whole token."""
        return any(
            char in self._firsts and self._begin(text[index:]) for index, char in enumerate(text)
        )

    def _begin(self, text: str) -> bool:
        next_one = bisect_right(self.tokens, text)
        return next_one < len(self.tokens) and self.tokens[next_one].startswith(text)


def _as_dict(message: Message, wants_objects: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        plain["reasoning_content"] = message.reasoning
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": c.id,
                "type": "function",
                "function": {
                    "name": c.name,
                    "arguments": _value(c.arguments) if wants_objects else c.arguments,
                },
            }
            for c in message.tool_calls
        ]
    for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if value:
            plain[key] = value
    return plain


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _unused_marker(*values: Any) -> str:
    """A marker character that occurs nowhere in `values`, nor as JSON may escape it."""
    used: set[str] = set()
    for text in _texts(values):
        used |= {*text, *_ESCAPE.findall(text)}
    for marker in _MARKERS:
        if not used & {marker, _escaped(marker)}:
            return marker
    raise TextError("the messages use every private character there is; remove some")


def _escaped(marker: str) -> str:
    return json.dumps(marker)[1:-1]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _tool_format(source: str) -> str | None:
    for mark, form in (
        ("<tool_call>", "hermes"),
        ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<|python_tag|>", "llama3"),
    ):
        if mark in source:
            return form
    return None

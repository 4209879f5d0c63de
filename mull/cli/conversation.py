"""One conversation: its messages, how it samples, and writing it to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.cli.remote import RemoteAnswer, RemoteModel
from mull.cli.terminal import AnswerPrinter
from mull.errors import RequestError

if TYPE_CHECKING:
    from mull.llm import LLM, Answer


@dataclass
class Conversation:
    """Messages as the chat template takes them, plus what the user set for the coming answers.

    An assistant's message keeps its thinking for `/save`; the template decides what of it the model
    sees again.
    """

    llm: LLM | RemoteModel | None  # None between two models
    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    thinking: str = "auto"
    think_budget: int | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    last_question: str | None = None
    context_used: int = 0
    name: str = field(init=False)  # of the model that answers

    def __post_init__(self) -> None:
        assert self.llm is not None
        self.name = self.llm.name

    def ask(self, question: str, printer: AnswerPrinter) -> Answer | RemoteAnswer | None:
        """Stream the answer to one more question; None when the user stopped it with Ctrl-C.

        What had been answered by then stays in the conversation; a question that was refused or
        got no word of answer does not.
        """
        self.last_question = question
        prompt = [*self.messages, {"role": "user", "content": question}]
        heard: dict[str, list[str]] = {"thinking": [], "answer": [], "tool_call": []}
        answer: Answer | RemoteAnswer | None = None
        with self._stream(prompt) as events:
            try:
                for event in events:
                    if event.kind == "end":
                        answer = event.answer
                    else:
                        heard[event.kind].append(event.text)
                        printer.write(event.kind, event.text)
            except KeyboardInterrupt:
                pass  # stops the answer, not the chat
            finally:
                printer.end_line()
        if answer is not None:
            printer.finish()
            usage = answer.usage
            self.context_used = usage["prompt_tokens"] + usage["completion_tokens"]
            reply = _reply(answer.text, answer.thinking)
            # Sampled ids, never tokenised again: what is in the cache stays valid.
            if answer.token_ids is not None:
                reply["token_ids"] = answer.token_ids
            self.messages = [*prompt, reply]
        elif text := "".join(heard["answer"]).strip():
            self.messages = [*prompt, _reply(text, "".join(heard["thinking"]))]
        return answer

    @contextmanager
    def _stream(self, prompt: list[dict[str, Any]]) -> Iterator[Iterator[Any]]:
        assert self.llm is not None
        events = self.llm.stream(
            prompt,
            system=self.system,
            thinking=self.thinking,
            think_budget=self.think_budget,
            **self.sampling,
        )
        try:
            yield events
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()  # cancels the request, so its cache blocks are free at once

    def model_line(self) -> str:
        if self.llm is None:
            return f"{self.name} · loaded again for the next question"
        if isinstance(self.llm, RemoteModel):
            return f"{self.llm.name} at {self.llm.url}"
        return f"{self.llm.name} · {self.llm.precision} · context {self.llm.context:,} tokens"

    def continue_with(self, llm: LLM | RemoteModel) -> None:
        """Go on with another model, to which the old one's token ids mean nothing."""
        self.messages = self._without_ids()
        self.llm, self.name = llm, llm.name

    def _without_ids(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in message.items() if key != "token_ids"}
            for message in self.messages
        ]

    def retract(self) -> str:
        """Take back the last exchange; returns its question, to be asked again."""
        if self.last_question is None:
            raise RequestError("there is no question to ask again yet")
        question = {"role": "user", "content": self.last_question}
        if len(self.messages) >= 2 and self.messages[-2] == question:
            self.messages = self.messages[:-2]
        return self.last_question

    def clear(self) -> None:
        self.messages, self.last_question, self.context_used = [], None, 0

    def save(self, path: Path) -> None:
        """Write the conversation, as JSON for a name in .json and as Markdown for any other."""
        if path.exists():
            raise RequestError(f"{path} exists already: choose another name")
        write = self._as_json if path.suffix == ".json" else self._as_markdown
        temporary = path.with_name(f".{path.name}.part")
        try:
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(write())
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RequestError(f"cannot write {path}: {error.strerror}") from error

    def _as_json(self) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        value = {"model": self.name, "messages": [*system, *self._without_ids()]}
        return json.dumps(value, ensure_ascii=False, indent=2) + "\n"

    def _as_markdown(self) -> str:
        parts = [f"# Conversation with {self.name}"]
        if self.system:
            parts.append(f"**System:** {self.system}")
        for message in self.messages:
            parts.append("## You" if message["role"] == "user" else f"## {self.name}")
            if "reasoning_content" in message:
                thinking = message["reasoning_content"].strip()
                parts.append(f"<details><summary>Thinking</summary>\n\n{thinking}\n\n</details>")
            parts.append(message["content"].strip())
        return "\n\n".join(parts) + "\n"


def _reply(text: str, thinking: str) -> dict[str, Any]:
    reply = {"role": "assistant", "content": text}
    return reply | {"reasoning_content": thinking} if thinking else reply

"""From stored messages to what a model is asked: texts, files, and the ids it sampled itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from mull.serve.store import attachments
from mull.text import Tokenizer


@dataclass(frozen=True)
class Told:
    """One message as it is said to the model; files are rows with name and text."""

    role: str
    text: str
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] | None = None
    model: str | None = None
    files: Sequence[Row[Any]] = ()


def tell(db: Connection, rows: Sequence[Row[Any]]) -> list[Told]:
    return [
        Told(
            row.role,
            row.text,
            row.thinking,
            row.tool_calls,
            row.token_ids,
            row.model,
            attachments.texts_of(db, row.id) if row.role == "user" else (),
        )
        for row in rows
    ]


def as_prompt(
    told: Sequence[Told], tokenizer: Tokenizer, model: str, *, is_continued: bool = False
) -> list[dict[str, Any]]:
    """Messages as LLM.request takes them.

    What this very model has sampled goes back as it was sampled, so that the cache is found again;
    of another's answers only the text. Old thinking is left out by the template.
    """
    prompt: list[dict[str, Any]] = []
    for index, message in enumerate(told):
        if message.role == "user":
            prompt.append({"role": "user", "content": with_files(message.text, message.files)})
            continue
        is_last = is_continued and index == len(told) - 1
        said: dict[str, Any] = {"role": "assistant", "content": message.text}
        if message.tool_calls:
            said["tool_calls"] = message.tool_calls
        if message.thinking and is_last:
            said["reasoning_content"] = message.thinking
        elif (ids := _usable_ids(message, tokenizer, model)) is not None:
            while is_last and ids and ids[-1] in tokenizer.eos_ids:
                ids = ids[:-1]
            said["token_ids"] = ids
        prompt.append(said)
    return prompt


def with_files(text: str, files: Sequence[Row[Any]]) -> str:
    """In the form DeepSeek gives files to its models."""
    parts = [
        f"[file name]: {file.name}\n[file content begin]\n{file.text}\n[file content end]\n"
        for file in files
    ]
    return "".join(parts) + text


def _usable_ids(message: Told, tokenizer: Tokenizer, model: str) -> list[int] | None:
    """The sampled ids, where they are this model's and still say what the message says."""
    ids = message.token_ids
    if not ids or message.model != model or max(ids) >= tokenizer.vocab_size:
        return None
    if message.thinking and not message.text:
        return None  # cut off while thinking: without its end it cannot be told from an answer
    is_same = message.text.strip() in tokenizer.decode(ids, skip_special=True)
    return ids if is_same else None

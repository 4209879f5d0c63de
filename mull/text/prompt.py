"""Builds a prompt out of trusted structure and untrusted text without mixing the two.

Structure becomes tokens by name; untrusted text is encoded with special tokens off. Neighbouring
stretches of text are encoded together, so the ids are those of the whole rendered string.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .tokenizer import Tokenizer


@dataclass(frozen=True)
class RenderedPrompt:
    """Token ids of a prompt, and whether what is generated next is thinking already."""

    ids: list[int]
    starts_in_thinking: bool


class PromptBuilder:
    """Collects the parts of one prompt in order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts: list[str | list[int]] = []

    def trusted(self, text: str) -> None:
        """Text of a template: names of structural tokens in it become those tokens."""
        for part in self._tokenizer.split(text, allow_special=True):
            self._append(part if isinstance(part, str) else [part])

    def untrusted(self, text: str) -> None:
        """Text somebody typed: never a structural token, whatever it says."""
        self._append(text)

    def ids(self, ids: Iterable[int]) -> None:
        """Ids that were sampled by a model of this vocabulary."""
        self._append(list(ids))

    def bos(self) -> None:
        """The beginning-of-text token, where the vocabulary has one."""
        if self._tokenizer.bos_id is not None:
            self._append([self._tokenizer.bos_id])

    def build(self) -> list[int]:
        ids: list[int] = []
        for part in self._parts:
            if isinstance(part, str):
                ids += self._tokenizer.encode(part, continues=bool(ids))
            else:
                ids += part
        return ids

    def _append(self, part: str | list[int]) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(part, str) and isinstance(last, str):
            self._parts[-1] = last + part
        elif isinstance(part, list) and isinstance(last, list):
            last.extend(part)
        elif part:
            self._parts.append(part)


def sampled_answer(
    tokenizer: Tokenizer, ids: Sequence[int], think_close: str, *, keep_thinking: bool
) -> list[int] | None:
    """The part of an answer's sampled ids that belongs into the history.

    End-of-turn tokens are left out, and so is the thinking unless `keep_thinking`. None where the
    ids cannot be cut (the closing tag ends inside a token): the text has to be encoded again.
    """
    kept = list(ids)
    while kept and kept[-1] in tokenizer.eos_ids:
        kept.pop()
    if keep_thinking:
        return kept
    start = _after_tag(tokenizer, kept, think_close)
    if start is None:
        return None
    while start and start < len(kept) and not tokenizer.token_bytes(kept[start]).strip(b"\n"):
        start += 1
    return kept[start:]


def _after_tag(tokenizer: Tokenizer, ids: list[int], tag: str) -> int | None:
    """Index after the last `tag`; 0 without one; None when it ends inside a token."""
    tag_id = tokenizer.special_ids.get(tag)
    if tag_id is not None:
        return len(ids) - ids[::-1].index(tag_id) if tag_id in ids else 0
    raw = tokenizer.decode_bytes(ids)
    found = raw.rfind(tag.encode())
    if found < 0:
        return 0
    end, position = (
        found + len(tag.encode()),
        len(raw) - sum(len(tokenizer.token_bytes(i)) for i in ids),
    )
    for index, token in enumerate(ids):
        if position == end:
            return index
        position += len(tokenizer.token_bytes(token))
    return len(ids) if position == end else None

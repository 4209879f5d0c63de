"""What a tokenizer knows about its tokens: texts, kinds, and which of them end an answer.

Both sources (Hugging Face folder, GGUF metadata) are read into this one form, so that everything
above asks the same questions. Kinds follow GGUF: normal, control, user-defined, byte, unused.
"""

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from ..errors import TextError

MAX_TOKENS = 4_000_000
MAX_TOKEN_CHARS = 65_536


class Kind(enum.IntEnum):
    """GGUF's token types (ggml-org/ggml, docs/gguf.md)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Tokens that end an answer in one family or another, whatever the file calls its end token.
END_NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "<|EOT|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
)

SURROGATE = re.compile("[\ud800-\udfff]")
_BRACKET_TAG = re.compile(r"\[/?[A-Z][A-Z0-9_ ]*\]")


def is_tag(text: str) -> bool:
    """Whether a token that is not marked as control still carries structure (`<think>`, ...).

    Such tokens must not be formed by user text either: the parser trusts them by id.
    """
    return (
        (len(text) > 2 and text[0] == "<" and text[1] not in " =<")
        or "｜" in text
        or _BRACKET_TAG.fullmatch(text) is not None
    )


@dataclass
class Vocabulary:
    """Tokens by id. `texts[i]` is the token as the file writes it (byte-level alphabet or text)."""

    texts: list[str]
    kinds: dict[int, Kind] = field(default_factory=dict)  # ids that are not NORMAL
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    named: dict[str, int] = field(default_factory=dict)  # bos, eos, unk, pad -> id, of the files
    structural: dict[str, int] = field(init=False)  # text -> id, what user text may never form
    user_defined: dict[str, int] = field(init=False)  # text -> id, plain text matched whole

    def __post_init__(self) -> None:
        self.structural, self.user_defined = {}, {}
        for token, kind in self.kinds.items():
            text = self.texts[token]
            if not text:
                continue
            if kind in (Kind.CONTROL, Kind.UNKNOWN):
                self.structural[text] = token
            elif kind is Kind.USER_DEFINED:
                (self.structural if is_tag(text) else self.user_defined)[text] = token

    def kind(self, token: int) -> Kind:
        return self.kinds.get(token, Kind.NORMAL)

    def end_ids(self, named: Iterable[int]) -> frozenset[int]:
        """The ids that end an answer: those the file names, and those whose name says so."""
        by_name = (self.structural[n] for n in END_NAMES if n in self.structural)
        return frozenset(i for i in (*named, *by_name) if 0 <= i < len(self.texts))


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone half of a surrogate pair, which no encoding can write."""
    return text.isascii() or not SURROGATE.search(text)


def checked_texts(tokens: object, where: str) -> list[str]:
    """A token list out of an untrusted file, or a TextError naming what is wrong with it."""
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise TextError(f"{where} is not a list of tokens; the file is damaged or not a model")
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise TextError(f"{where} holds {len(tokens)} tokens; expected 1 to {MAX_TOKENS}")
    if _has_no_fault(tokens):
        return list(cast(Sequence[str], tokens))
    seen: dict[str, int] = {}
    texts: list[str] = []
    for index, token in enumerate(tokens):
        text = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
        if not isinstance(text, str):
            raise TextError(f"{where}[{index}] is {type(token).__name__}, expected text")
        if not is_unicode(text):
            raise TextError(f"{where}[{index}] is no Unicode text; the file is damaged")
        if len(text) > MAX_TOKEN_CHARS:
            raise TextError(f"{where}[{index}] is {len(text)} characters long; refused")
        text = text or f"[EMPTY_{index}]"
        if seen.setdefault(text, index) != index:
            raise TextError(f"{where} holds {text[:40]!r} twice ({seen[text]} and {index})")
        texts.append(text)
    return texts


def _has_no_fault(tokens: Sequence[object]) -> bool:
    """What `checked_texts` checks, of the whole list at once: a third of the time, no message."""
    if set(map(type, tokens)) != {str}:
        return False
    texts = cast(Sequence[str], tokens)
    return (
        all(texts)
        and len(set(texts)) == len(texts)
        and max(map(len, texts)) <= MAX_TOKEN_CHARS
        and is_unicode("".join(texts))
    )


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stay, the others move up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    moved = [b for b in range(256) if b not in printable]
    return table | {chr(0x100 + n): b for n, b in enumerate(moved)}


BYTE_OF_CHAR = _byte_level_alphabet()

"""Text <-> token ids, for models in Hugging Face folders and in GGUF files.

One promise above all: text somebody typed never becomes a token that carries structure (role
markers, end of turn, `<think>`), unless the caller asks for it with `allow_special=True`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from ..errors import TextError
from . import gguf_vocabulary, hf_vocabulary, pretokenizers
from .sentencepiece import SentencePieces, byte_value
from .vocabulary import BYTE_OF_CHAR, SURROGATE, Kind, Vocabulary, is_unicode


class Tokenizer:
    """Encodes and decodes with one vocabulary; safe to share between threads.

    `special_ids` maps the text of every structural token to its id; `eos_ids` are those that end
    an answer; `chat_template` is the Jinja source that came with the tokenizer, if any.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        bpe: BackendTokenizer | None = None,
        pieces: SentencePieces | None = None,
        chat_template: str | None = None,
        leftmost: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.chat_template = chat_template
        self.vocab_size = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.add_bos = vocabulary.add_bos
        self.eos_ids = vocabulary.eos_ids
        self.special_ids: dict[str, int] = dict(vocabulary.structural)
        self._bpe = bpe
        self._pieces = pieces
        self._leftmost = leftmost
        self._byte_level = pieces is None and not _writes_spaces_as_blocks(bpe)
        self._strips_leading_space = pieces.space_prefix if pieces else self._puts_space_first()
        self._lacks_bytes = bpe is not None and bpe.get_vocab_size() > self.vocab_size
        self._bytes_of: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Out of a Hugging Face folder (tokenizer.json and its companions); else TextError."""
        vocabulary, plain, template = hf_vocabulary.read(Path(path))
        return cls(vocabulary, bpe=plain, chat_template=template, leftmost=True)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Out of a GGUF file's metadata (keys as in the file); ids as llama.cpp gives them."""
        read = gguf_vocabulary.read(metadata)
        template = metadata.get("tokenizer.chat_template")
        return cls(
            read.vocabulary,
            bpe=read.bpe,
            pieces=read.pieces,
            chat_template=template if isinstance(template, str) else None,
        )

    @classmethod
    def from_source(cls, source: Path | Mapping[str, Any]) -> "Tokenizer":
        """Either of the two, as `weights.tokenizer_source` returns it."""
        return cls.from_gguf(source) if isinstance(source, Mapping) else cls.from_folder(source)

    def encode(
        self,
        text: str,
        *,
        allow_special: bool = False,
        add_bos: bool = False,
        continues: bool = False,
    ) -> list[int]:
        """Token ids of `text`.

        With `allow_special`, the texts of structural tokens become those tokens: only for text
        from a trusted source. `add_bos` puts the beginning-of-text token first if there is one.
        `continues` says that tokens of the same prompt come before: some vocabularies put a space
        before the text that begins a prompt, and before no other.
        """
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        after_token, begins = True, not continues
        for part in self.split(text, allow_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_plain(part, after_token, begins)
            after_token, begins = isinstance(part, int), False
        return ids

    def split(self, text: str, allow_special: bool) -> list[str | int]:
        """`text` as plain stretches and ids of tokens that are matched whole."""
        text = _without_surrogates(text)
        if self._leftmost:
            if not allow_special:
                return [text] if text else []
            return list(_split_leftmost(text, self._special_pattern, self.special_ids))
        wanted = self._matched_whole if allow_special else self._user_defined
        return _split_longest_first(text, wanted)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes `ids` stand for. `skip_special` leaves out tokens of kind control."""
        tokens = list(ids)
        raw = b"".join(
            b"" if skip_special and self.is_control(token) else self.token_bytes(token)
            for token in tokens
        )
        return raw.removeprefix(b" ") if self.strips_leading_space else raw

    @property
    def strips_leading_space(self) -> bool:
        """Whether encoding puts a space before a text, which decoding takes away again."""
        return self._strips_leading_space

    def is_control(self, token: int) -> bool:
        """Whether a token has no text of its own (end of turn, role markers)."""
        return self.vocabulary.kind(token) in (Kind.CONTROL, Kind.UNKNOWN)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for an id the vocabulary does not have.

        Models pad their vocabulary, so an id beyond ours can be sampled.
        """
        found = self._bytes_of.get(token)
        if found is None:
            found = self._bytes_of[token] = self._token_bytes(token)
        return found

    def _token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            return b""
        text, kind = self.vocabulary.texts[token], self.vocabulary.kind(token)
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
            return text.encode("utf-8", "replace")
        if kind is Kind.BYTE and (value := byte_value(text)) is not None:
            return bytes([value])
        if not self._byte_level:
            return text.replace("▁", " ").encode("utf-8", "replace")
        if any(c not in BYTE_OF_CHAR for c in text):
            return text.encode("utf-8", "replace")
        return bytes(BYTE_OF_CHAR[c] for c in text)

    def _encode_plain(self, text: str, after_token: bool, begins: bool) -> list[int]:
        if self._pieces is not None:
            prefix = " " if self._pieces.space_prefix and after_token else ""
            return self._pieces.encode(prefix + text)
        bpe = self._bpe if begins else self._continuing
        if bpe is None:
            raise TextError("this tokenizer can only decode")
        with hf_vocabulary.package_faults("this tokenizer cannot encode"):
            ids: list[int] = bpe.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i < self.vocab_size] if self._lacks_bytes else ids

    def _puts_space_first(self) -> bool:
        if self._bpe is None or self._byte_level:
            return False
        tokens: list[str] = self._bpe.encode("a", add_special_tokens=False).tokens
        return bool(tokens) and tokens[0].startswith("▁")

    @cached_property
    def _continuing(self) -> BackendTokenizer | None:
        """The encoder of a text that begins no prompt."""
        if self._bpe is None or "prepend_scheme=first" not in repr(self._bpe.pre_tokenizer):
            return self._bpe
        written = self._bpe.to_str()
        return BackendTokenizer.from_str(
            written.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        )

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _user_defined(self) -> list[tuple[str, int]]:
        return _longest_first(self.vocabulary.user_defined)

    @cached_property
    def _matched_whole(self) -> list[tuple[str, int]]:
        return _longest_first({**self.vocabulary.user_defined, **self.special_ids})


def _longest_first(tokens: dict[str, int]) -> list[tuple[str, int]]:
    """By length in bytes, longest first, as llama.cpp orders them."""
    return sorted(tokens.items(), key=lambda item: -len(item[0].encode("utf-8", "replace")))


def _split_longest_first(text: str, tokens: list[tuple[str, int]]) -> list[str | int]:
    """llama.cpp's order: every occurrence of the longest token first, then of the next."""
    parts: list[str | int] = [text] if text else []
    for token_text, token in tokens:
        if token_text not in text:
            continue
        cut: list[str | int] = []
        for part in parts:
            if isinstance(part, int) or token_text not in part:
                cut.append(part)
                continue
            for index, stretch in enumerate(part.split(token_text)):
                cut += ([token] if index else []) + ([stretch] if stretch else [])
        parts = cut
    return parts


def _split_leftmost(
    text: str, pattern: re.Pattern[str], ids: dict[str, int]
) -> Iterator[str | int]:
    """The `tokenizers` package's order: the leftmost match, the longest among those."""
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        yield ids[match.group()]
        end = match.end()
    if end < len(text):
        yield text[end:]


def _without_surrogates(text: str) -> str:
    """A lone half of a surrogate pair is no text: it becomes U+FFFD, as on the way back."""
    return text if is_unicode(text) else SURROGATE.sub("\ufffd", text)


def _writes_spaces_as_blocks(bpe: BackendTokenizer | None) -> bool:
    """Whether tokens are text with U+2581 for the space, not the byte-level alphabet."""
    return bpe is None or not pretokenizers.is_byte_level(bpe)

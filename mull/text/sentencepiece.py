"""SentencePiece vocabularies of GGUF files (`tokenizer.ggml.model` = llama): merging by score.

Neighbouring symbols whose concatenation is a token are joined, best score first and leftmost
first among equals, until nothing joins; what is no token falls apart into byte tokens. The
`tokenizers` package cannot express this exactly (its merges need tokens on both sides and have
no ties), so it is done here. A text is first cut wherever no token spans two neighbouring
characters: no merge can cross such a place, and the pieces repeat, so they are remembered.
"""

import heapq
import itertools

from ..errors import TextError
from .vocabulary import Kind, Vocabulary

_SPACE = "▁"
_MAX_REMEMBERED = 65_536
_MAX_REMEMBERED_CHARS = 64


class SentencePieces:
    """Encoder for one vocabulary. `texts` are tokens with U+2581 in place of the space."""

    def __init__(self, vocabulary: Vocabulary, scores: list[float], space_prefix: bool) -> None:
        self.space_prefix = space_prefix
        self._scores = scores
        hidden = set(vocabulary.structural.values())
        self._ids = {t: i for i, t in enumerate(vocabulary.texts) if i not in hidden}
        self._bytes = byte_tokens(vocabulary)
        self._unknown = next((i for i, k in vocabulary.kinds.items() if k is Kind.UNKNOWN), None)
        if len(self._bytes) != 256 and self._unknown is None:
            raise TextError("this tokenizer has neither 256 byte tokens nor an unknown token")
        self._joined = {pair for t in self._ids for pair in itertools.pairwise(t)}
        self._remembered: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, in which every space has yet to be replaced."""
        text = text.replace(" ", _SPACE)
        ids: list[int] = []
        start = 0
        for end in range(1, len(text) + 1):
            if end == len(text) or (text[end - 1], text[end]) not in self._joined:
                ids += self._encode_piece(text[start:end])
                start = end
        return ids

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        found = self._remembered.get(piece)
        if found is None:
            found = tuple(i for symbol in self._merge(piece) for i in self._symbol_ids(symbol))
            if len(piece) <= _MAX_REMEMBERED_CHARS and len(self._remembered) < _MAX_REMEMBERED:
                self._remembered[piece] = found
        return found

    def _symbol_ids(self, symbol: str) -> list[int]:
        found = self._ids.get(symbol)
        if found is not None:
            return [found]
        raw = symbol.encode("utf-8", "surrogatepass")
        known = [self._bytes.get(b, self._unknown) for b in raw]
        return [i for i in known if i is not None]

    def _merge(self, piece: str) -> list[str]:
        symbols = list(piece)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            token = self._ids.get(symbols[left] + symbols[right])
            if token is not None:
                entry = (-self._scores[token], left, right, symbols[left] + symbols[right])
                heapq.heappush(queue, entry)

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            # one of the two has been merged away since this pair was offered
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
                continue
            symbols[left], symbols[right] = merged, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [s for s in symbols if s]


def byte_tokens(vocabulary: Vocabulary) -> dict[int, int]:
    """Byte value -> id of its token (`<0x0A>`)."""
    found: dict[int, int] = {}
    for token, kind in vocabulary.kinds.items():
        if kind is Kind.BYTE:
            value = byte_value(vocabulary.texts[token])
            if value is not None:
                found.setdefault(value, token)
    return found


def byte_value(text: str) -> int | None:
    """The byte that a token written `<0xHH>` stands for."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            return None
    return None

"""Reads a tokenizer out of GGUF metadata, as llama.cpp reads it.

The metadata comes from a file nobody vouches for: every length, index and type is checked before
it is used, and every complaint is one TextError line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models

from ..errors import TextError
from . import pretokenizers
from .sentencepiece import SentencePieces
from .vocabulary import BYTE_OF_CHAR, MAX_TOKENS, Kind, Vocabulary, checked_texts

_PREFIX = "tokenizer.ggml."
# what a GGUF file calls a token, and what a Hugging Face folder calls it
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_MAX_MERGES = 4 * MAX_TOKENS
_FIRST_PRIVATE = 0xF0000  # plane 15, private use: no byte-level word can contain it


@dataclass
class GgufTokenizer:
    """A vocabulary and the one of the two encoders that fits it."""

    vocabulary: Vocabulary
    bpe: BackendTokenizer | None
    pieces: SentencePieces | None


def read(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer in `metadata` (keys as in the file); TextError when absent or unusable."""
    model = metadata.get(_PREFIX + "model")
    if model is None or (_PREFIX + "tokens") not in metadata:
        raise TextError(
            "this GGUF file has no tokenizer (tokenizer.ggml.model and .tokens are missing); "
            "use a file that was converted with its tokenizer"
        )
    if model not in ("gpt2", "llama"):
        raise TextError(
            f"tokenizer.ggml.model {str(model)[:40]!r} is not supported; known are gpt2 and llama"
        )
    texts = checked_texts(_plain(metadata[_PREFIX + "tokens"]), _PREFIX + "tokens")
    kinds = _kinds(metadata, len(texts))
    vocabulary = Vocabulary(texts, kinds, bos_id=_token_id(metadata, "bos_token_id", len(texts)))
    named = [_token_id(metadata, f"{n}_token_id", len(texts)) for n in ("eos", "eot", "eom")]
    # a file that marks its end token as ordinary text is mended, as llama.cpp does
    for token in vocabulary.end_ids(i for i in named if i is not None):
        kinds[token] = Kind.CONTROL
    vocabulary = Vocabulary(texts, kinds, bos_id=vocabulary.bos_id)
    vocabulary.eos_ids = vocabulary.end_ids(i for i in named if i is not None)
    for key, name in _NAMES.items():
        found = _token_id(metadata, f"{key}_token_id", len(texts))
        vocabulary.named |= {} if found is None else {name: found}
    if model == "llama":
        vocabulary.add_bos = _flag(metadata, "add_bos_token", True)
        prefix = _flag(metadata, "add_space_prefix", True)
        scores = _scores(metadata, len(texts))
        return GgufTokenizer(vocabulary, None, SentencePieces(vocabulary, scores, prefix))
    pre = pretokenizers.pre_tokenizer(_text(metadata, "pre", "default"))
    vocabulary.add_bos = _flag(metadata, "add_bos_token", pre.add_bos)
    return GgufTokenizer(vocabulary, _byte_level_bpe(vocabulary, metadata, pre), None)


def _byte_level_bpe(
    vocabulary: Vocabulary, metadata: Mapping[str, Any], pre: pretokenizers.PreTokenizer
) -> BackendTokenizer:
    """Byte-level BPE over everything user text may become: structural tokens are out of reach."""
    hidden = set(vocabulary.structural.values())
    vocab = {
        chr(_FIRST_PRIVATE) + str(index) if index in hidden else text: index
        for index, text in enumerate(vocabulary.texts)
    }
    merges = _pairs(_merges(metadata), vocab, vocabulary.structural)
    # Bytes the vocabulary lacks get ids beyond its end, which encoding leaves out: the package
    # would drop them before merging, and join what stood to the left and right of them.
    for char in BYTE_OF_CHAR:
        vocab.setdefault(char, len(vocab))
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges)
    backend = BackendTokenizer(model)
    backend.pre_tokenizer = pretokenizers.build(pre)
    return backend


def _pairs(
    merges: Sequence[str], vocab: Mapping[str, int], structural: Mapping[str, int]
) -> list[tuple[str, str]]:
    """The two parts of every merge, without those that would form a structural token."""
    cut = [tuple(merge.split(" ")) for merge in merges]
    if set(map(len, cut)) == {2}:
        lefts, rights = zip(*cut, strict=True)
        parts = (lefts, rights, map(str.__add__, lefts, rights))
        if all(all(map(vocab.__contains__, part)) for part in parts):
            return list(dict.fromkeys(cut))  # type: ignore[arg-type]  # each has two parts
    return _checked_pairs(merges, vocab, structural)


def _checked_pairs(
    merges: Sequence[str], vocab: Mapping[str, int], structural: Mapping[str, int]
) -> list[tuple[str, str]]:
    """The same one by one: some are left out, or one is at fault and is named."""
    pairs: dict[tuple[str, str], None] = {}
    for index, merge in enumerate(merges):
        cut = merge.find(" ", 1)  # the first part is never empty, so a space may be the first part
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 1 or not right:
            raise TextError(f"tokenizer.ggml.merges[{index}] is {merge[:40]!r}: not two parts")
        if left + right in structural:
            continue
        for part in (left, right, left + right):
            if part not in vocab:
                raise TextError(
                    f"tokenizer.ggml.merges[{index}] needs {part[:40]!r}, which is no token; "
                    "the file is damaged"
                )
        pairs.setdefault((left, right))  # llama.cpp keeps the first of two equal merges
    return list(pairs)


def _plain(value: Any) -> Any:
    """A list where the reader handed over an array with `tolist`."""
    return value.tolist() if hasattr(value, "tolist") else value


def _merges(metadata: Mapping[str, Any]) -> Sequence[str]:
    merges = _plain(metadata.get(_PREFIX + "merges"))
    if isinstance(merges, str) or not isinstance(merges, Sequence):
        raise TextError("tokenizer.ggml.merges is missing or no list: this tokenizer needs it")
    if len(merges) > _MAX_MERGES:
        raise TextError(f"tokenizer.ggml.merges holds {len(merges)} merges; refused")
    for index, merge in enumerate(merges):
        if not isinstance(merge, str):
            raise TextError(f"tokenizer.ggml.merges[{index}] is {type(merge).__name__}, not text")
    return merges


def _kinds(metadata: Mapping[str, Any], count: int) -> dict[int, Kind]:
    values = _numbers(metadata, "token_type", count)
    known = {int(k) for k in Kind}
    return {
        index: Kind(value)
        for index, value in enumerate(values)
        if value in known and value != Kind.NORMAL
    }


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores = [float(s) for s in _numbers(metadata, "scores", count)]
    if len(scores) != count or any(s != s for s in scores):
        raise TextError("tokenizer.ggml.scores is missing or damaged: this tokenizer needs it")
    return scores


def _numbers(metadata: Mapping[str, Any], name: str, count: int) -> list[Any]:
    values = _plain(metadata.get(_PREFIX + name, []))
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TextError(f"tokenizer.ggml.{name} is not a list; the file is damaged")
    if values and len(values) < count:
        raise TextError(f"tokenizer.ggml.{name} has {len(values)} entries for {count} tokens")
    checked = list(values[:count])
    if not all(isinstance(v, int | float) for v in checked):
        raise TextError(f"tokenizer.ggml.{name} holds something that is no number")
    return checked


def _token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(_PREFIX + name)
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    return int(value) if 0 <= int(value) < count else None


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + name)
    return default if value is None else bool(value)


def _text(metadata: Mapping[str, Any], name: str, default: str) -> str:
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, str):
        raise TextError(f"tokenizer.ggml.{name} is {type(value).__name__}, expected text")
    return value

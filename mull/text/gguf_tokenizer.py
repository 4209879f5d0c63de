"""A tokenizer as GGUF metadata, so that llama.cpp gives the ids that the model was trained with.

The way back of `gguf_vocabulary`. A Hugging Face folder is translated; what came out of a GGUF file
is passed on as it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from ..errors import TextError
from . import hf_vocabulary, pretokenizers
from .vocabulary import Kind, Vocabulary

_PREFIX = "tokenizer.ggml."
_NO_MERGE_MAKES_IT = -1e6  # below the score of every token that a merge makes


def gguf_tokenizer(
    source: Path | Mapping[str, Any],
    vocab_size: int,
    *,
    bos_id: int | None = None,
    eos_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """`tokenizer.*` metadata of a folder, or of a GGUF file's metadata.

    vocab_size: rows of the embedding; a smaller vocabulary is filled up. bos_id, eos_ids: what the
    model's configuration says, for what the tokenizer's files leave open. Raises TextError where
    llama.cpp could not tokenise as the folder does.
    """
    if isinstance(source, Mapping):
        return {key: value for key, value in source.items() if key.startswith("tokenizer.")}
    vocabulary, plain, template = hf_vocabulary.read(source)
    data = hf_vocabulary.read_json(source / "tokenizer.json")
    model = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise _cannot(source, f"is of type {str(model.get('type'))[:40]}")
    if pretokenizers.is_byte_level(plain):
        values = _byte_level(source, plain, model)
    else:
        values = _sentencepiece(source, plain, model, vocabulary)
    values |= _tokens(source, vocabulary, vocab_size)
    values |= _special_ids(source, vocabulary, bos_id, eos_ids)
    values |= {"add_bos_token": vocabulary.add_bos, "add_eos_token": False}
    metadata = {_PREFIX + key: value for key, value in values.items()}
    return metadata | ({} if template is None else {"tokenizer.chat_template": template})


def _cannot(folder: Path, what: str) -> TextError:
    return TextError(
        f"{folder / 'tokenizer.json'}: {what}, which llama.cpp cannot do; "
        "export the model with --format hf"
    )


def _byte_level(folder: Path, plain: BackendTokenizer, model: dict[str, Any]) -> dict[str, Any]:
    name = pretokenizers.name_of(plain, ignore_merges=bool(model.get("ignore_merges")))
    if name is None:
        raise _cannot(folder, "cuts text into words by rules of its own")
    merges = _merges(folder, model)
    if not merges:
        raise _cannot(folder, "merges nothing")
    return {"model": "gpt2", "pre": name, "merges": merges}


def _merges(folder: Path, model: dict[str, Any]) -> list[str]:
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    if any(merge.count(" ") != 1 for merge in merges):
        raise _cannot(folder, "has merges of tokens with a space in them")
    return merges


def _sentencepiece(
    folder: Path, plain: BackendTokenizer, model: dict[str, Any], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Merges become scores: SentencePiece joins the pair whose product scores best."""
    if not model.get("byte_fallback"):
        raise _cannot(folder, "has neither the byte-level alphabet nor byte tokens")
    words = pretokenizers.words(plain, "a  b")
    if words not in (["▁a▁▁b"], ["a▁▁b"]):
        raise _cannot(folder, "changes text, or cuts it into words, before merging")
    scores = [_NO_MERGE_MAKES_IT] * len(vocabulary.texts)
    ids = {text: token for token, text in enumerate(vocabulary.texts)}
    for rank, merge in enumerate(_merges(folder, model)):
        product = ids.get(merge.replace(" ", "", 1))
        if product is not None:
            scores[product] = max(scores[product], -float(rank))
    unknown = ids.get(model.get("unk_token") or "")
    if unknown is not None:
        vocabulary.kinds[unknown] = Kind.UNKNOWN
    return {
        "model": "llama",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": words[0].startswith("▁"),
    }


def _tokens(folder: Path, vocabulary: Vocabulary, vocab_size: int) -> dict[str, Any]:
    texts = vocabulary.texts
    if len(texts) > vocab_size:
        raise TextError(
            f"{folder / 'tokenizer.json'}: has {len(texts):,} tokens, the model has room for"
            f" {vocab_size:,}; they belong to different models"
        )
    kinds = [vocabulary.kind(token) for token in range(vocab_size)]
    named = [*texts, *[""] * (vocab_size - len(texts))]
    for token, text in enumerate(named):
        if not text:  # llama.cpp wants a name for every row of the embedding
            named[token], kinds[token] = f"[PAD{token}]", Kind.UNUSED
    return {"tokens": named, "token_type": [int(kind) for kind in kinds]}


def _special_ids(
    folder: Path, vocabulary: Vocabulary, bos_id: int | None, eos_ids: Sequence[int]
) -> dict[str, int]:
    """The ends are called eos, eot and eom; llama.cpp stops at each of them."""
    names = hf_vocabulary.special_tokens(folder)
    ids = {text: token for token, text in enumerate(vocabulary.texts) if text}
    own_end = [ids[names["eos"]]] if names.get("eos") in ids else []
    ends = dict.fromkeys([*own_end, *eos_ids] or sorted(vocabulary.eos_ids))
    found: dict[str, int | None] = {
        "bos": bos_id if vocabulary.bos_id is None else vocabulary.bos_id,
        **dict(zip(("eos", "eot", "eom"), ends, strict=False)),
        "unknown": ids.get(names.get("unk", "")),
        "padding": ids.get(names.get("pad", "")),
    }
    return {f"{name}_token_id": token for name, token in found.items() if token is not None}

"""The tokenizer of a GGUF file as the files of a Hugging Face folder.

Byte-level vocabularies come out exactly. SentencePiece's become merges in the order of their
scores, as transformers converts them: the `tokenizers` package has no scores.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as BackendTokenizer

from . import gguf_vocabulary, pretokenizers
from .vocabulary import Kind, Vocabulary

_PREFIX = "tokenizer.ggml."


def hf_tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """File name -> content: tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Raises TextError for a tokenizer mull cannot read.
    """
    read = gguf_vocabulary.read(metadata)
    vocabulary = read.vocabulary
    if read.pieces is None:
        backend = _byte_level(vocabulary, metadata)
    else:
        backend = _sentencepiece(vocabulary, metadata, read.pieces.space_prefix)
    backend.add_tokens(list(_added(vocabulary)))
    if vocabulary.add_bos and vocabulary.bos_id is not None:
        backend.post_processor = _begins_with(vocabulary.texts[vocabulary.bos_id], vocabulary)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": vocabulary.texts[i] for name, i in vocabulary.named.items()},
    }
    files = {"tokenizer.json": backend.to_str()}
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        files["chat_template.jinja"] = config["chat_template"] = template
    return files | {"tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False)}


def _added(vocabulary: Vocabulary) -> Iterator[AddedToken]:
    """The tokens that are matched whole: structure, and text the vocabulary's makers added."""
    for token, text in enumerate(vocabulary.texts):
        kind = vocabulary.kind(token)
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
            yield AddedToken(text, special=kind is not Kind.USER_DEFINED, normalized=False)


def _byte_level(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> BackendTokenizer:
    pre = pretokenizers.pre_tokenizer(metadata.get(_PREFIX + "pre", "default"))
    vocab = {text: token for token, text in enumerate(vocabulary.texts)}
    merges = [_parts(merge) for merge in metadata[_PREFIX + "merges"]]
    backend = BackendTokenizer(
        models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), ignore_merges=pre.ignore_merges)
    )
    backend.pre_tokenizer = pretokenizers.build(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _parts(merge: str) -> tuple[str, str]:
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _sentencepiece(
    vocabulary: Vocabulary, metadata: Mapping[str, Any], space_prefix: bool
) -> BackendTokenizer:
    vocab = {text: token for token, text in enumerate(vocabulary.texts)}
    unknown = next(
        (vocabulary.texts[t] for t, k in vocabulary.kinds.items() if k is Kind.UNKNOWN), None
    )
    backend = BackendTokenizer(
        models.BPE(
            vocab=vocab,
            merges=list(_merges(vocabulary, metadata[_PREFIX + "scores"])),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    blocks = normalizers.Replace(" ", "▁")
    prefix = [normalizers.Prepend("▁")] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, blocks])
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    backend.decoder = decoders.Sequence([*spaces, *strip])
    return backend


def _merges(vocabulary: Vocabulary, scores: list[float]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens whose product is a token, the best product first."""
    normal = {
        text: token
        for token, text in enumerate(vocabulary.texts)
        if vocabulary.kind(token) is Kind.NORMAL
    }
    for text, _ in sorted(normal.items(), key=lambda item: -scores[item[1]]):
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [pair for pair in cuts if pair[0] in normal and pair[1] in normal]
        yield from sorted(pairs, key=lambda pair: (normal[pair[0]], normal[pair[1]]))


def _begins_with(bos: str, vocabulary: Vocabulary) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A $B",
        special_tokens=[(bos, vocabulary.bos_id)],
    )

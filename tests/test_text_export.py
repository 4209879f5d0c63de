"""Tokenizers on their way between Hugging Face folders and GGUF: the same ids before and after."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from text_oracles import (
    LlamaVocab,
    read_metadata,
    sentencepiece_metadata,
    strings,
    write_vocabulary,
)
from tokenizers import Regex, models, normalizers, pre_tokenizers

from mull.errors import TextError
from mull.text import Tokenizer, gguf_tokenizer, hf_tokenizer_files, pretokenizers
from mull.text.vocabulary import BYTE_OF_CHAR


def look_alikes(tokenizer: Tokenizer) -> list[str]:
    names = [t for t in tokenizer.special_ids if "place" not in t and "extra" not in t][:20]
    return [*names, *(name[:-1] for name in names), "<|im_start|><|im_end|>", "<｜User", "<|"]


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def smollm2_folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = hf_tokenizer_files(read_metadata(smollm2_gguf))
    return write_folder(tmp_path_factory.mktemp("hf") / "smollm2", files)


@pytest.fixture(scope="module")
def sentencepiece(smollm2_gguf: Path) -> dict[str, Any]:
    """A vocabulary of 4,000 pieces as SentencePiece trains it: all parts of a piece are pieces."""
    smollm2 = Tokenizer.from_gguf(read_metadata(smollm2_gguf))
    words = [smollm2.token_bytes(i).decode("utf-8", "ignore") for i in range(17, 4_000)]
    pieces = {w.replace(" ", "▁") for w in words if w and w != "\x00"}
    pieces |= {piece[:end] for piece in pieces for end in range(1, len(piece))} | {"한", "한국"}
    pieces |= {char for piece in pieces for char in piece}
    ordered = sorted(pieces, key=lambda piece: (len(piece), piece))
    return sentencepiece_metadata(ordered, ties=False)


def test_a_folder_becomes_metadata_that_gives_its_ids_in_llama_cpp(
    deepseek_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = Tokenizer.from_folder(deepseek_tokenizer_folder)
    metadata = gguf_tokenizer(deepseek_tokenizer_folder, 129_300, eos_ids=[1])
    assert metadata["tokenizer.ggml.pre"] == "deepseek-v3"
    assert metadata["tokenizer.ggml.bos_token_id"] == 0
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    assert len(metadata["tokenizer.ggml.tokens"]) == 129_300
    write_vocabulary(tmp_path / "v.gguf", metadata)
    oracle, read = LlamaVocab(tmp_path / "v.gguf"), Tokenizer.from_gguf(metadata)
    for text in strings(250, 4, look_alikes(folder)):
        assert read.encode(text, allow_special=True) == oracle.encode(text, parse_special=True)
        assert read.encode(text) == folder.encode(text), text
    for text in strings(250, 7):
        assert folder.encode(text) == oracle.encode(text, parse_special=False), text
    assert (read.eos_ids, read.bos_id) == (folder.eos_ids, folder.bos_id)
    assert read.special_ids == folder.special_ids
    oracle.close()


def test_smollm2_as_a_folder_gives_the_ids_of_its_gguf(
    smollm2_folder: Path, smollm2_gguf: Path
) -> None:
    gguf = Tokenizer.from_gguf(read_metadata(smollm2_gguf))
    folder = Tokenizer.from_folder(smollm2_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    for text in strings(250, 11, look_alikes(gguf)):
        ids = gguf.encode(text)
        assert folder.encode(text) == ids, text
        whole = gguf.encode(text, allow_special=True)
        assert theirs.encode(text, add_special_tokens=False) == whole, text
    assert theirs.decode(gguf.encode("naïve 한국어 🏳️‍🌈")) == "naïve 한국어 🏳️‍🌈"
    assert (folder.eos_ids, folder.bos_id) == (gguf.eos_ids, gguf.bos_id)
    assert folder.chat_template == gguf.chat_template == theirs.chat_template


def test_smollm2_comes_back_from_the_folder_as_it_was(
    smollm2_folder: Path, smollm2_gguf: Path
) -> None:
    metadata = {
        key: value
        for key, value in read_metadata(smollm2_gguf).items()
        if key.startswith("tokenizer.")
    }
    assert gguf_tokenizer(metadata, 49_152) == metadata
    again = gguf_tokenizer(smollm2_folder, 49_152)
    for name in ("ggml.model", "ggml.pre", "ggml.tokens", "ggml.merges", "ggml.bos_token_id"):
        assert again[f"tokenizer.{name}"] == metadata[f"tokenizer.{name}"]
    assert again["tokenizer.ggml.eos_token_id"] == metadata["tokenizer.ggml.eos_token_id"]
    assert again["tokenizer.chat_template"] == metadata["tokenizer.chat_template"]
    pairs = zip(
        again["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.token_type"], strict=True
    )
    assert all(new == old for new, old in pairs)


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_goes_to_a_folder_and_back_with_the_same_ids(
    sentencepiece: dict[str, Any], tmp_path: Path, prefix: bool
) -> None:
    metadata = {**sentencepiece, "tokenizer.ggml.add_space_prefix": prefix}
    first = Tokenizer.from_gguf(metadata)
    folder = write_folder(tmp_path / "hf", hf_tokenizer_files(metadata))
    hf = Tokenizer.from_folder(folder)
    back = gguf_tokenizer(folder, len(metadata["tokenizer.ggml.tokens"]))
    assert back["tokenizer.ggml.add_space_prefix"] == prefix
    assert back["tokenizer.ggml.token_type"] == metadata["tokenizer.ggml.token_type"]
    write_vocabulary(tmp_path / "v.gguf", back)
    oracle = LlamaVocab(tmp_path / "v.gguf")
    for text in strings(400, 12, ["<s>", "</s>", "<0x0A>"]):
        ids = first.encode(text)
        assert hf.encode(text) == ids, text
        assert oracle.encode(text, parse_special=False) == ids, text
        assert hf.decode(ids) == text
    assert (hf.eos_ids, hf.bos_id, hf.add_bos) == (first.eos_ids, first.bos_id, first.add_bos)
    oracle.close()


def cuts_of(pre: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre
    return backend


@pytest.mark.parametrize("name", pretokenizers._BY_NAME)
def test_every_rule_of_cutting_is_known_again_by_what_it_does(name: str) -> None:
    pre = pretokenizers.pre_tokenizer(name)
    found = name_of(pretokenizers.build(pre), ignore_merges=pre.ignore_merges)
    assert found is not None
    same = pretokenizers.pre_tokenizer(found)
    assert (same.patterns, same.ignore_merges) == (pre.patterns, pre.ignore_merges)


def byte_level(*patterns: str) -> Any:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=not cuts)])


def name_of(pre: Any, *, ignore_merges: bool = False) -> str | None:
    return pretokenizers.name_of(cuts_of(pre), ignore_merges=ignore_merges)


_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def test_the_same_rule_in_other_words_is_recognised() -> None:
    smollm = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    case_insensitive = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
    )
    assert name_of(smollm) == "smollm"
    assert name_of(byte_level()) == "gpt-2"
    assert name_of(byte_level(case_insensitive)) == "qwen2"


@pytest.mark.parametrize(
    "pattern",
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",  # no contractions
        rf"'[sS]|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,2}}|{_TAIL}",
        rf"'s|[^\r\n\p{{L}}\p{{N}}]?\p{{Lu}}*\p{{Ll}}+|\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",
        r"\S+|\s+",
    ],
)
def test_a_rule_of_its_own_is_not_taken_for_another(pattern: str) -> None:
    assert name_of(byte_level(pattern)) is None
    assert name_of(byte_level(pattern), ignore_merges=True) is None


def made(folder: Path, backend: tokenizers.Tokenizer, **config: object) -> Path:
    files = {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(config)}
    return write_folder(folder, files)


def tiny_bpe(merges: Sequence[str] = ("ab",)) -> tokenizers.Tokenizer:
    """Bytes and merges of two of them; the first merge has the id 256."""
    vocab = {text: i for i, text in enumerate([*BYTE_OF_CHAR, *merges])}
    pairs = [(merge[0], merge[1]) for merge in merges]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def folders_that_do_not_fit(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    lower = tiny_bpe()
    lower.normalizer = normalizers.Lowercase()
    yield made(tmp_path / "lower", lower), "rules of its own"
    spaced = tiny_bpe()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield made(tmp_path / "spaced", spaced), "rules of its own"
    unigram = tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], None, False))
    yield made(tmp_path / "unigram", unigram), "type Unigram"
    plain = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    yield made(tmp_path / "plain", plain), "byte-level alphabet"
    yield made(tmp_path / "merges nothing", tiny_bpe([])), "merges nothing"
    words = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[], byte_fallback=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    yield made(tmp_path / "words", words), "cuts it into words"


def test_what_llama_cpp_cannot_tokenise_alike_is_refused_in_one_line(tmp_path: Path) -> None:
    for folder, said in folders_that_do_not_fit(tmp_path):
        with pytest.raises(TextError, match=said) as caught:
            gguf_tokenizer(folder, 300)
        assert "\n" not in str(caught.value)
        assert "--format hf" in str(caught.value)


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="257 tokens, the model has room for 256"):
        gguf_tokenizer(made(tmp_path / "hf", tiny_bpe()), 256)


def test_end_tokens_of_files_and_configuration_are_all_named(tmp_path: Path) -> None:
    backend = tiny_bpe()
    backend.add_special_tokens(["<a>", "<b>", "<c>", "<d>"])
    folder = made(tmp_path / "hf", backend, eos_token="<b>", pad_token="<d>", unk_token="<c>")
    metadata = gguf_tokenizer(folder, 300, bos_id=5, eos_ids=[257, 258, 259])
    named = {
        key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): value
        for key, value in metadata.items()
        if key.endswith("_token_id")
    }
    assert named == {"bos": 5, "eos": 258, "eot": 257, "eom": 259, "padding": 260, "unknown": 259}
    assert metadata["tokenizer.ggml.tokens"][299] == "[PAD299]"
    assert metadata["tokenizer.ggml.token_type"][256:] == [1, 3, 3, 3, 3] + [5] * 39
    assert Tokenizer.from_gguf(metadata).eos_ids == {257, 258, 259}

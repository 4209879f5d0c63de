"""Token ids equal llama.cpp's and the `tokenizers` package's, on the files people really have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import (
    LlamaVocab,
    read_metadata,
    sentencepiece_metadata,
    strings,
    write_vocabulary,
)

from mull.errors import TextError
from mull.text import Tokenizer, gguf_tokenizer
from mull.text.hf_vocabulary import package_faults
from mull.text.prompt import PromptBuilder
from mull.text.vocabulary import BYTE_OF_CHAR

# bytes SmolLM2's vocabulary has no token for; they fall out of a text, as in llama.cpp
_LACKING = dict.fromkeys((0x04, 0x06, 0x13, 0x14, 0x16, 0x1D))

PRE_TOKENIZERS = (
    "default",
    "gpt-2",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "deepseek-r1-qwen",
    "qwen35",
    "deepseek-coder",
    "deepseek-llm",
)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(smollm2_gguf))


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_gguf: Path) -> Iterator[LlamaVocab]:
    vocab = LlamaVocab(smollm2_gguf)
    yield vocab
    vocab.close()


@pytest.fixture(scope="module")
def deepseek(deepseek_tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(deepseek_tokenizer_folder)


def look_alikes(tokenizer: Tokenizer) -> list[str]:
    names = [t for t in tokenizer.special_ids if "place" not in t and "extra" not in t]
    cut = [t[:-1] for t in names[:8]] + [t[1:] for t in names[:8]]
    return [*names, *cut, "<|im_start|><|im_end|>", "<| im_end |>", "<｜User", "｜>", "<|"]


@pytest.mark.parametrize("parse_special", [False, True])
def test_smollm2_ids_equal_llama_cpp_on_2000_strings(
    smollm2: Tokenizer, smollm2_oracle: LlamaVocab, parse_special: bool
) -> None:
    for text in strings(2000, 1, look_alikes(smollm2)):
        expected = smollm2_oracle.encode(text, parse_special=parse_special)
        assert smollm2.encode(text, allow_special=parse_special) == expected, text


def test_every_character_of_the_basic_plane_is_cut_as_llama_cpp_cuts_it(
    smollm2: Tokenizer, smollm2_oracle: LlamaVocab
) -> None:
    for start in range(1, 0x10000, 16):
        chars = [chr(c) for c in range(start, start + 16) if not 0xD800 <= c < 0xE000]
        text = "".join(f"a{c}b {c} 1{c}\n.{c}" for c in chars if ord(c) < 0x10000)
        assert smollm2.encode(text) == smollm2_oracle.encode(text, parse_special=False), start


def test_smollm2_text_survives_the_round_trip(smollm2: Tokenizer) -> None:
    for text in strings(2000, 2, look_alikes(smollm2)):
        text = text.translate(_LACKING)
        assert smollm2.decode(smollm2.encode(text)) == text
        assert smollm2.decode(smollm2.encode(text, allow_special=True)) == text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_pre_tokenizer_cuts_as_llama_cpp_does(
    name: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    metadata = {
        key: value
        for key, value in read_metadata(smollm2_gguf).items()
        if key.startswith("tokenizer.ggml.")
    } | {"tokenizer.ggml.pre": name}
    write_vocabulary(tmp_path / "v.gguf", metadata)
    oracle, ours = LlamaVocab(tmp_path / "v.gguf"), Tokenizer.from_gguf(metadata)
    for text in strings(600, 3, look_alikes(ours)):
        assert ours.encode(text) == oracle.encode(text, parse_special=False), text
    oracle.close()


def test_deepseek_ids_equal_the_tokenizers_package(
    deepseek: Tokenizer, deepseek_tokenizer_folder: Path
) -> None:
    raw = tokenizers.Tokenizer.from_file(str(deepseek_tokenizer_folder / "tokenizer.json"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    for text in strings(2000, 4, look_alikes(deepseek)):
        expected = raw.encode(text, add_special_tokens=False).ids
        assert deepseek.encode(text, allow_special=True) == expected, text
    for text in strings(100, 5):
        assert deepseek.encode(text) == fast(text, add_special_tokens=False)["input_ids"], text


def test_deepseek_as_gguf_equals_llama_cpp_and_the_folder(
    deepseek: Tokenizer, deepseek_tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = json.loads((deepseek_tokenizer_folder / "tokenizer.json").read_text())["model"]
    vocabulary = deepseek.vocabulary
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": [t or f"[PAD{i}]" for i, t in enumerate(vocabulary.texts)],
        "tokenizer.ggml.token_type": [int(vocabulary.kind(i)) for i in range(deepseek.vocab_size)],
        "tokenizer.ggml.merges": [
            m if isinstance(m, str) else " ".join(m) for m in model["merges"]
        ],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    write_vocabulary(tmp_path / "v.gguf", metadata)
    oracle, ours = LlamaVocab(tmp_path / "v.gguf"), Tokenizer.from_gguf(metadata)
    for text in strings(2000, 6, look_alikes(deepseek)):
        assert ours.encode(text, allow_special=True) == oracle.encode(text, parse_special=True)
        assert ours.encode(text) == deepseek.encode(text), text
    for text in strings(1000, 7):
        assert ours.encode(text) == oracle.encode(text, parse_special=False), text
    assert ours.eos_ids == deepseek.eos_ids
    assert (ours.bos_id, deepseek.bos_id) == (0, 0)
    oracle.close()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_ids_equal_llama_cpp(
    smollm2: Tokenizer, tmp_path: Path, ties: bool, prefix: bool
) -> None:
    words = [smollm2.token_bytes(i).decode("utf-8", "ignore") for i in range(17, 12_000)]
    texts = [w.replace(" ", "▁") for w in words if w and w != "\x00"] + ["한", "국", "한국", "你好"]
    metadata = sentencepiece_metadata(texts, ties=ties)
    metadata["tokenizer.ggml.add_space_prefix"] = prefix
    write_vocabulary(tmp_path / "v.gguf", metadata)
    oracle, ours = LlamaVocab(tmp_path / "v.gguf"), Tokenizer.from_gguf(metadata)
    for text in strings(1000, 8, ["<s>", "</s>", "<0x0A>", "<unk>"]):
        assert ours.encode(text) == oracle.encode(text, parse_special=False), text
        assert ours.encode(text, allow_special=True) == oracle.encode(text, parse_special=True)
        assert ours.decode(ours.encode(text)) == text
    oracle.close()


def test_sentencepiece_text_cannot_be_merged_into_an_end_token() -> None:
    # llama.cpp does merge it here: "</s>" is a token like any other to its merging
    metadata = sentencepiece_metadata(["<", "/", "s", ">", "</", "</s", "a"], ties=False)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("a</s>", allow_special=True)[-1] == 2
    assert 2 not in tokenizer.encode("a</s>")


def test_text_cannot_be_merged_into_an_end_token_of_a_folder(tmp_path: Path) -> None:
    vocab = {text: i for i, text in enumerate([*"</s>ab ", "</", "s>", "</s>"])}
    merges = ["< /", "s >", "</ s>"]
    data = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    end = tokenizer.special_ids["</s>"]
    assert tokenizer.eos_ids == {end}
    assert end not in tokenizer.encode("a</s>b")
    assert end in tokenizer.encode("a</s>b", allow_special=True)


STRUCTURE = ("<unk>", "<s>", "</s>")
WORDS = {text: i for i, text in enumerate((*STRUCTURE, *"▁hiab", "hi"))}
MODELS: dict[str, dict[str, Any]] = {
    "Unigram": {"vocab": [[text, -1.0] for text in WORDS], "unk_id": 0, "byte_fallback": False},
    "WordLevel": {"vocab": WORDS, "unk_token": "<unk>"},
    "WordPiece": {
        "vocab": WORDS,
        "unk_token": "<unk>",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 100,
    },
    "BPE": {"vocab": WORDS, "merges": [], "unk_token": "<unk>", "ignore_merges": True},
}


def write_tokenizer(folder: Path, model: dict[str, Any], *added: str, **parts: Any) -> Path:
    """A folder with a tokenizer.json; the structure and `added` are its added tokens."""
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    data = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": text, "special": text in STRUCTURE, **flags}
            for index, text in enumerate((*STRUCTURE, *added))
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
        **parts,
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


BYTE_LEVEL = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# the package panics on it, which is no Exception
EMPTY_TABLE = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}


@pytest.mark.parametrize("kind", MODELS)
def test_no_name_of_a_hidden_token_can_be_typed(tmp_path: Path, kind: str) -> None:
    folder = write_tokenizer(tmp_path, {"type": kind, **MODELS[kind]})
    first, second = Tokenizer.from_folder(folder), Tokenizer.from_folder(folder)
    assert first.encode("hi") == [WORDS["hi"]]
    assert first.encode("hi</s>hi", allow_special=True) == [WORDS["hi"], 2, WORDS["hi"]]
    # the names of one load, and those that every load once gave them
    names = [*second._bpe.get_vocab(), *(f"\U000f0000{i}" for i in range(9)), *STRUCTURE]
    for text in names:
        assert not {1, 2} & set(first.encode(f"hi {text} hi")), text
    assert set(first.special_ids) == set(STRUCTURE)


def test_a_token_added_after_structure_keeps_its_id(tmp_path: Path) -> None:
    plain = {text: index for index, text in enumerate("abc")}
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    added = [
        {"id": 3, "content": "</s>", "special": True, **flags},
        {"id": 4, "content": "cab", "special": False, **flags},
    ]
    model = {"type": "BPE", "vocab": plain, "merges": []}
    folder = write_tokenizer(tmp_path, model, added_tokens=added, pre_tokenizer=None)
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).encode("acab") == oracle.encode("acab").ids == [0, 4]
    write_tokenizer(tmp_path, model, added_tokens=added[::-1], pre_tokenizer=None)
    with pytest.raises(TextError, match="'cab' has id 4"):
        Tokenizer.from_folder(folder)


def test_a_word_with_the_id_of_an_end_token_is_out_of_reach_too(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {**WORDS, "bye": 2}, "unk_token": "<unk>"}
    assert Tokenizer.from_folder(write_tokenizer(tmp_path, model)).encode("hi bye") == [8, 0]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_space_goes_before_the_texts_that_the_file_says(
    tmp_path: Path, scheme: str, is_nested: bool
) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    nested = {"type": "Sequence", "pretokenizers": [metaspace]}
    vocab = {text: i for i, text in enumerate((*STRUCTURE, *"▁hi\n"))}
    folder = write_tokenizer(
        tmp_path,
        {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"},
        pre_tokenizer=nested if is_nested else metaspace,
        decoder=metaspace,
    )
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_folder(folder)
    for text in ("<s>\nhi</s>\nhi", "hi", "hi</s>hi", " hi<s> hi", "<s>", ""):
        expected = oracle.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=True) == expected, text
        prompt = PromptBuilder(ours)
        prompt.trusted(text)
        assert prompt.build() == expected, text
        after = [1, *ours.encode(text, allow_special=True, continues=True)]
        assert after == oracle.encode("<s>" + text, add_special_tokens=False).ids, text


def test_user_defined_tokens_are_matched_in_plain_text_but_tags_are_not(tmp_path: Path) -> None:
    texts = [*BYTE_OF_CHAR, "ddd", "<think>", "<end>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [1] * 256 + [4, 4, 3],
        "tokenizer.ggml.merges": ["d d"] * 0,
    }
    ours = Tokenizer.from_gguf(metadata)
    assert ours.encode("addd") == [*ours.encode("a"), 256]
    assert not {257, 258} & set(ours.encode("<think><end>"))
    assert ours.encode("<think><end>", allow_special=True) == [257, 258]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text())
def test_any_text_decodes_to_itself_and_forms_no_special_token(
    deepseek: Tokenizer, text: str
) -> None:
    ids = deepseek.encode(text)
    assert deepseek.decode(ids) == text
    assert not set(ids) & set(deepseek.special_ids.values())


def test_half_a_surrogate_pair_becomes_the_replacement_character(deepseek: Tokenizer) -> None:
    assert deepseek.decode(deepseek.encode("a\ud83db")) == "a\ufffdb"


def test_ids_beyond_the_vocabulary_have_no_text(smollm2: Tokenizer) -> None:
    assert smollm2.decode([-1, smollm2.vocab_size, 10**12]) == ""


def test_special_ids_and_end_tokens(smollm2: Tokenizer, deepseek: Tokenizer) -> None:
    assert smollm2.special_ids["<|im_start|>"] == 1
    assert smollm2.eos_ids == {0, 2}
    assert smollm2.decode([1, *smollm2.encode("hi"), 2], skip_special=True) == "hi"
    assert deepseek.special_ids["<think>"] == 128821
    assert 1 in deepseek.eos_ids
    assert deepseek.encode("x", add_bos=True)[0] == deepseek.bos_id == 0


def broken(smollm2_gguf: Path, **changes: object) -> dict[str, object]:
    metadata = dict(read_metadata(smollm2_gguf))
    for key, value in changes.items():
        name = f"tokenizer.ggml.{key}"
        if value is None:
            metadata.pop(name, None)
        else:
            metadata[name] = value
    return metadata


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": "bert"},
        {"model": 3},
        {"tokens": None},
        {"tokens": 7},
        {"tokens": []},
        {"tokens": ["a", 1]},
        {"tokens": ["a", "a"]},
        {"tokens": ["x" * 100_000]},
        {"pre": "made-up"},
        {"pre": ["smollm"]},
        {"merges": None},
        {"merges": "a b"},
        {"merges": [1]},
        {"merges": ["ab"]},
        {"merges": ["nowhere tobefound"]},
        {"token_type": [1]},
        {"token_type": "x"},
        {"token_type": ["x"] * 49152},
        {"model": "llama"},
        {"model": "llama", "scores": [float("nan")] * 49152},
    ],
    ids=lambda c: " ".join(f"{k}={str(v)[:12]}" for k, v in c.items()),
)
def test_a_damaged_gguf_tokenizer_is_one_line_of_text_error(
    smollm2_gguf: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(TextError) as error:
        Tokenizer.from_gguf(broken(smollm2_gguf, **changes))
    assert "\n" not in str(error.value)


def test_special_ids_out_of_range_are_ignored(smollm2_gguf: Path) -> None:
    changes = {"bos_token_id": 10**9, "eos_token_id": -5, "eot_token_id": "x"}
    tokenizer = Tokenizer.from_gguf(broken(smollm2_gguf, **changes))
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids == {0, 2}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        '{"model": 3}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 99999999999}}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        '{"model": {"type": "Nope", "vocab": {"a": 0}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [1]}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": "x"}]}',
        *(
            f'{{"model": {{"type": "Unigram", "vocab": [{entry}, ["a", 0.0]]}}}}'
            for entry in ("5", "null", "[]", '{"a": 1}')
        ),
        "[" * 100_000,
    ],
    ids=lambda c: str(c)[:30],
)
def test_a_damaged_folder_is_one_line_of_text_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TextError) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"type": "WordLevel", "vocab": {"hi": 0}, "unk_token": "<unk>"}, {}),
        ({"type": "Unigram", "vocab": [["hi", -1.0]], "unk_id": None}, {}),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, {"normalizer": EMPTY_TABLE}),
        (
            {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            {"normalizer": EMPTY_TABLE, "pre_tokenizer": {"type": "ByteLevel"} | BYTE_LEVEL},
        ),
    ],
)
def test_a_folder_that_cannot_encode_is_one_line_of_text_error(
    tmp_path: Path, model: dict[str, Any], parts: dict[str, Any]
) -> None:
    folder = write_tokenizer(tmp_path, model, added_tokens=[], **parts)
    for use in (Tokenizer.from_folder, lambda folder: gguf_tokenizer(folder, 300)):
        with pytest.raises(TextError, match="cannot be used") as error:
            use(folder)
        assert "\n" not in str(error.value)


def test_a_text_that_a_tokenizer_has_no_token_for_is_one_line_of_text_error(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, model, added_tokens=[]))
    with pytest.raises(TextError, match=r"cannot encode: .*UNK"):
        tokenizer.encode("b")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_is_no_fault_of_a_file(stop: type[BaseException]) -> None:
    with pytest.raises(stop), package_faults("this file cannot be used"):
        raise stop


def test_a_deeply_nested_post_processor_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    nested = '{"type": "Sequence", "processors": [' * 450 + "{}" + "]}" * 450
    model = '{"type": "BPE", "vocab": {"a": 0, "<s>": 1}, "merges": []}'
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {model}, "post_processor": {nested}}}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert not Tokenizer.from_folder(tmp_path).add_bos

"""Damaged and hostile tokenizer files: one TextError or a working tokenizer, nothing else."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from mull.errors import TextError
from mull.text import ChatTemplate, Tokenizer
from mull.text.vocabulary import BYTE_OF_CHAR

WEIRD: list[Any] = [
    *(None, True, 0, -1, 7, 2**31, 2**63, 1e308, float("nan"), float("inf")),
    *("", "x", "a b", "</s>", "\x00", "\ud800", "한", "a" * 70_000, b"\xff"),
    *([], [None], ["x"], [[]], [["a", "b"]], {}, {"a": 1}, {"type": "ByteLevel"}),
    *("llama", "gpt2", "BPE", "Unigram", "Sequence", "Split", "Metaspace", "TemplateProcessing"),
]

GGUF: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*BYTE_OF_CHAR, "ab", "abc", "<s>", "</s>", "<think>"],
    "tokenizer.ggml.token_type": [1] * 258 + [3, 3, 4],
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.scores": [0.0] * 261,
    "tokenizer.ggml.bos_token_id": 258,
    "tokenizer.ggml.eos_token_id": 259,
    "tokenizer.chat_template": "{{ messages }}",
}

FOLDER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {"id": 258, "content": "<s>", "special": True, "normalized": False},
        {"id": 259, "content": "</s>", "special": True, "single_word": False},
        {"id": 260, "content": "<think>", "special": False},
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": False},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    },
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "vocab": {text: i for i, text in enumerate([*BYTE_OF_CHAR, "ab", "abc"])},
        "merges": [["a", "b"], ["ab", "c"]],
        "unk_token": None,
        "byte_fallback": False,
    },
}
CONFIG: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>"},
    "chat_template": [{"name": "default", "template": "x"}],
    "add_bos_token": True,
}


def mutate(rng: random.Random, value: Any) -> Any:
    """`value` with something in it replaced, left out, cut or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:index]
        if rng.random() < 0.1:
            return value + value[index:]
        return [*value[:index], mutate(rng, value[index]), *value[index + 1 :]]
    return rng.choice(WEIRD)


def use(tokenizer: Tokenizer) -> None:
    """Everything a caller would do first; text stays text."""
    text = "ab abc <s>한\n</s><think> 12 \ud800"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())
    for some in (ids, tokenizer.encode(text, allow_special=True, add_bos=True)):
        tokenizer.decode(some)
    ChatTemplate.for_tokenizer(tokenizer)


def test_2000_damaged_gguf_tokenizers() -> None:
    rng = random.Random(0)
    outcomes = {"works": 0, "refused": 0}
    complaints: list[str] = []
    for case in range(2000):
        metadata = {**copy.deepcopy(GGUF), "tokenizer.ggml.model": ("gpt2", "llama")[case % 2]}
        for _ in range(rng.randint(1, 3)):
            metadata = mutate(rng, metadata)
            metadata = metadata if isinstance(metadata, dict) else {}
        try:
            use(Tokenizer.from_gguf(metadata))
            outcomes["works"] += 1
        except TextError as error:
            outcomes["refused"] += 1
            complaints.append(str(error))
    assert min(outcomes.values()) > 200
    assert all(len(complaint.splitlines()) == 1 for complaint in complaints)


def test_2000_damaged_folders(tmp_path: Path) -> None:
    rng = random.Random(1)
    outcomes = {"works": 0, "refused": 0}
    complaints: list[str] = []
    for _ in range(2000):
        data, config = copy.deepcopy(FOLDER), copy.deepcopy(CONFIG)
        for _ in range(rng.randint(1, 3)):
            data = mutate(rng, data)
        if rng.random() < 0.3:
            config = mutate(rng, config)
        written = json.dumps(data, default=str)
        if rng.random() < 0.1:
            written = written[: rng.randrange(len(written) + 1)]
        (tmp_path / "tokenizer.json").write_text(written)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config, default=str))
        try:
            use(Tokenizer.from_folder(tmp_path))
            outcomes["works"] += 1
        except TextError as error:
            outcomes["refused"] += 1
            complaints.append(str(error))
    assert min(outcomes.values()) > 200
    assert all(len(complaint.splitlines()) == 1 for complaint in complaints)

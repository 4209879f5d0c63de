"""llama.cpp as the oracle for token ids, tiny vocabulary files for it, and strings to try."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
from llama_cpp_py_sync._cffi_bindings import get_ffi

ffi = get_ffi()


def _library() -> tuple[Path, Any]:
    """The first build of llama.cpp this system can load; one package's needs a recent glibc."""
    why = []
    for package, file in (("llama_cpp_py_sync", "libllama.so"), ("xllamacpp", "xllamacpp.abi3.so")):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / file
            try:
                return path, ffi.dlopen(str(path))
            except OSError as error:
                why.append(f"{package}: {error}")
    raise RuntimeError(f"no build of llama.cpp loads here: {'; '.join(why)}")


lib_path, lib = _library()


@ffi.callback("void(enum ggml_log_level, const char *, void *)")
def _silent(level: int, text: Any, data: Any) -> None:
    """llama.cpp's log is of no interest here."""


class LlamaVocab:
    """The vocabulary of a GGUF file as llama.cpp reads it; no weights are loaded."""

    def __init__(self, path: Path) -> None:
        lib.llama_log_set(_silent, ffi.NULL)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self._model != ffi.NULL, f"llama.cpp cannot load {path}"
        self._vocab = lib.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        ids = ffi.new(f"llama_token[{room}]")
        count = lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, parse_special)
        assert count >= 0
        return [ids[i] for i in range(count)]

    def close(self) -> None:
        lib.llama_model_free(self._model)


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> None:
    """A GGUF file that holds nothing but a tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@lru_cache(maxsize=1)
def read_metadata(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file; shared, so not to be changed."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


_PIECES: Sequence[Sequence[str]] = (
    ("Hello", " world", "the", " quick", "naïve", "Straße", "İstanbul", "don't", "I'LL", "we've"),
    ("x's", "'S", "'re", " 'tis", "''", "'\u017f", "Don\u2019t", "l'été", "y'all'd've"),
    (
        "한국어",
        "안녕하세요",
        " 대한민국의",
        "가나다",
        "ㄱㄴㄷ",
        "조선말 맞춤법",
        "\u1112\u1161\u11ab",
    ),
    (
        "你好",
        "世界",
        "深度求索",
        "，",
        "。",
        "「",
        "」",
        "〇",
        "㐀",
        "𠮷",
        "繁體中文",
        "日本語",
        "カタカナ",
    ),
    ("👩‍👩‍👧‍👦", "🇰🇷", "🏳️‍🌈", "👍🏽", "😀", "❤️", "🧑🏿‍🚀", "1️⃣", "\u200d", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"),
    ("0", "7", "42", "2024", "3.14159", "1,000,000", "٣٤٥", "Ⅷ", "½", "²", "१२३", "๑๒", "①", "𝟙"),
    (
        "def f(x):\n    return x ** 2\n",
        "if (a != b) {",
        "};",
        "#include <x>",
        "// c",
        "0xFF",
        "a_b",
    ),
    (
        "{{'k': \"v\"}}",
        "SELECT *",
        "<div class='a'>",
        "\\n\\t",
        "$HOME/.x",
        "@a|b&c^d~e`f",
        "=>",
        "--",
    ),
    (" ", "  ", "   ", "\t", "\t\t ", "\n", "\n\n", " \n ", "\r\n", "\r", "    \n\n   "),
    ("\u00a0", "\u3000", "\u2003", "\u2028", "\u2029", "\u205f", "\u1680", "\x85", "\x0b", "\x0c"),
    ("\u200b", "\ufeff", "\u2060", "\u180e", "\x00", "\x1f", "\x7f", "\xad", "\ufffd", "\ue000"),
    ("e\u0301", "a\u0308\u0323", "\u0301", "क्षि", "ไทย", "العَرَبِيَّة", "עִבְרִית", "ñ", "\u0e33", "Z͑ͫ̓"),
    ("!", "?!", "...", "…", "—", "«»", "“q”", "()", "[]", "%", "€", "£5", "±", "√", "∑", "→", "⟨"),
    (
        "Ωmega",
        "привет",
        "ДОМ",
        "ქართული",
        "Հայերեն",
        "ᏣᎳᎩ",
        "ǅ",
        "ꭰ",
        "ｆｕｌｌ",
        "Ａ１",
        "𐐀",
        "𞤀",
        "ª",
    ),
)


def strings(count: int, seed: int, look_alikes: Sequence[str] = ()) -> list[str]:
    """`count` mixes of many scripts, code, spaces and look-alikes; the same for the same seed."""
    rng = random.Random(seed)
    groups = [*_PIECES, *([look_alikes] * 3 if look_alikes else [])]
    made: list[str] = []
    while len(made) < count:
        kinds = rng.sample(groups, rng.randint(1, 4))
        pieces = []
        for _ in range(rng.randint(1, 12)):
            piece = rng.choice(rng.choice(kinds))
            change = rng.random()
            if change < 0.15:
                piece = piece[: rng.randint(0, len(piece))]
            elif change < 0.2:
                piece = piece * rng.randint(2, 5)
            elif change < 0.25:
                piece = chr(rng.choice((rng.randint(1, 0x2FF), rng.randint(0x300, 0xD7FF))))
            pieces.append(piece)
        made.append("".join(pieces))
    return made


def sentencepiece_metadata(texts: Sequence[str], *, ties: bool) -> dict[str, Any]:
    """A SentencePiece vocabulary as GGUF metadata: control, byte and `texts` tokens.

    Earlier texts have better scores; with `ties`, ten in a row share one.
    """
    control = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{b:02X}>" for b in range(256)]
    plain = [t for t in dict.fromkeys(texts) if t not in control + raw]
    scores = [0.0] * 259 + [-float(i // 10 if ties else i) for i in range(len(plain))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": control + raw + plain,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(plain),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }

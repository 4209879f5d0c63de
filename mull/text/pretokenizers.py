"""How text is cut into words before byte-pair merging, by the name a GGUF file gives it.

`tokenizer.ggml.pre` names a list of regular expressions that are applied one after the other, each
cutting the pieces the one before left (llama.cpp, src/llama-vocab.cpp, llm_tokenizer_bpe). The
expressions are the vocabularies' own; a name we do not know is refused, since a wrong cut gives
tokens the model has never seen.
"""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, pre_tokenizers

from ..errors import TextError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN_AND_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
# llama.cpp never lets a class without \s match white space beyond ASCII.
_HAN_AND_HANGUL = "[[一-龥ࠀ-一가-\ud7ff]&&[^\\s]]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee... letters that have a case. The escapes are
# characters that Unicode normalisation would replace.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭ"
    "ℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


@dataclass(frozen=True)
class PreTokenizer:
    """The cuts, and whether a whole word found in the vocabulary is taken without merging."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_DIGIT_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_BY_NAME = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": _DIGIT_THEN_GPT2,
    "starcoder": _DIGIT_THEN_GPT2,
    "refact": _DIGIT_THEN_GPT2,
    "command-r": _DIGIT_THEN_GPT2,
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer((_QWEN35,)),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~！-／：-～‘-‟\u3001-。]+",
            r"\s+$",
            _HAN_AND_HANGUL,
            r"\p{N}+",
        )
    ),
}

# Texts that no two of these rules cut alike, in forms that Unicode normalisation C leaves alone.
# Left out is what files and llama.cpp disagree on: case folding beyond ASCII, exotic spaces.
_PROBES = (
    "Hello world  it's I'LL we've  don't 'tis x's'' y'all'd've theydo'dlike THEY'REHERE",
    "a1b22c333d4444e55555 3.14159 1,000,000 2024-01-31 ½ ² Ⅷ ٣٤٥ १२३",
    "  \n\n\n \t\t x\r\n\r\ny \n z   \n",
    "tail   ",
    "def f(x):\n    return {'k': \"v\"}[x] ** 2 != a_b;\n#include <x>// c\n\n$HOME=<b>^~`|+",
    '(a) [b] _c -d /e @f %g &h !!! ... ?? ;; --- ==\n\n** .x .Y "q" #1',
    "CamelCaseWord HTTPServer iPhone ÉCOLE Straße naïve don't",
    "привет ДОМ Ωmega ქართული Հայերեն ሰላም العَرَبِيَّة עִבְרִית",
    "你好，世界。「深度求索」〇 日本語カタカナひらがな 한국어 안녕하세요 ㄱㄴㄷ ไทย กำ",
    "क्षि नमस्ते மொழி ខ្មែរ x\u0308\u0323y e\u0329z",
    "👍🏽 ❤️ 🇰🇷 → ± € £5 — “q” «r» … ✓✓ ﬁ ①",
)


def pre_tokenizer(name: str) -> PreTokenizer:
    """The cuts a GGUF file means by `name`; TextError when we do not know them."""
    found = _BY_NAME.get(name or "default")
    if found is None:
        known = ", ".join(sorted(_BY_NAME))
        raise TextError(
            f"unknown pre-tokeniser {name[:80]!r} in tokenizer.ggml.pre: this file cannot be "
            f"tokenised faithfully; known are {known}"
        )
    return found


def name_of(backend: Tokenizer, *, ignore_merges: bool) -> str | None:
    """The name of the rules that a tokenizer cuts by, found by trying; None for rules we lack.

    The same rule is written in many ways (named groups, other orders, built-in classes), so texts
    are cut with both instead of comparing expressions.
    """
    wanted = [words(backend, text) for text in _PROBES]
    for name, pre in _BY_NAME.items():
        if pre.ignore_merges == ignore_merges:
            cuts = build(pre)
            if [[word for word, _ in cuts.pre_tokenize_str(text)] for text in _PROBES] == wanted:
                return name
    return None


def words(backend: Tokenizer, text: str) -> list[str]:
    """What a tokenizer makes of `text` before it merges: normalised, and cut."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def is_byte_level(backend: Tokenizer) -> bool:
    """Whether tokens are written in the byte-level alphabet, not as text."""
    return "ByteLevel" in repr(backend.decoder) + repr(backend.pre_tokenizer)


def build(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The cuts as the `tokenizers` package applies them, ending in the byte-level alphabet."""
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns
    ]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(cuts)

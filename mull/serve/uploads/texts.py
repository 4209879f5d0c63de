"""An uploaded file as text: which kind it is, and in which encoding."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from mull.errors import RequestError
from mull.serve.uploads import process

MAX_BYTES = 20 * 2**20
MAX_CHARACTERS = 4_000_000
_PDF_SECONDS = 30.0
_TEXT, _MARKDOWN, _TABLE, _CODE, _PDF = "text", "markdown", "csv", "code", "pdf"
_KINDS = {
    _TEXT: "txt text log",
    _MARKDOWN: "md markdown mdx rst",
    _TABLE: "csv tsv",
    _CODE: (
        "py pyi ipynb js mjs cjs ts tsx jsx c h cc cpp hpp cxx cs java kt kts go rs rb php swift "
        "scala sh bash zsh fish ps1 bat sql r jl lua pl pm hs ml clj ex exs erl dart zig nim v vue "
        "svelte html htm css scss less xml json jsonl yaml yml toml ini cfg conf env tex diff "
        "patch proto graphql tf dockerfile makefile cmake gradle asm s f90 m"
    ),
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What text of so many kinds looks like in no encoding: archives, pictures, programs.
_BINARY = (b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x7fELF", b"\x1f\x8b", b"MZ\x90")


@dataclass(frozen=True)
class Extracted:
    kind: str
    text: str
    pages: int | None = None


def extract(name: str, path: Path) -> Extracted:
    """The text of a file. Raises RequestError, one line, for what has none that can be read."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RequestError(f"{name} has {size:,} bytes, at most {MAX_BYTES:,} are taken")
    with path.open("rb") as file:
        start = file.read(1024)
    if b"%PDF-" in start:
        return _pdf(name, path)
    if start.startswith(_BINARY):
        raise RequestError(f"{name} is no text: give text, Markdown, code, CSV or PDF")
    text = decode(path.read_bytes(), name)
    _check_length(name, len(text))
    return Extracted(kind_of(name), text.replace("\r\n", "\n").replace("\r", "\n"))


def kind_of(name: str) -> str:
    """By the name's ending; text where that says nothing."""
    return _KIND_OF.get(name.lower().rpartition(".")[2], _TEXT)


def decode(raw: bytes, name: str = "the file") -> str:
    """UTF-8, UTF-16 or UTF-32 with a mark, UTF-16 without one, then the encodings of Korean,
    Japanese and Chinese systems, then Western. RequestError for what is no text in any."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return _decoded(raw, encoding, name)
    if (wide := _unmarked_utf16(raw)) is not None:
        return _decoded(raw, wide, name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = _legacy(raw)
    if _is_binary(text):
        raise RequestError(f"{name} is no text: give text, Markdown, code, CSV or PDF")
    return text


def _decoded(raw: bytes, encoding: str, name: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        raise RequestError(f"{name} says it is {encoding.upper()}, but is not") from None


def _unmarked_utf16(raw: bytes) -> str | None:
    """Text in UTF-16 has a zero in every other byte wherever it is Latin, in Korean at the spaces
    and line ends."""
    sample = raw[: 1 << 16]
    if len(raw) % 2 or b"\0" not in sample:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    for wide, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > 4 * others:
            try:
                text = raw.decode(wide)
            except UnicodeDecodeError:
                continue
            if not _is_binary(text):
                return wide
    return None


def _legacy(raw: bytes) -> str:
    """Of the encodings before Unicode the one whose text looks most like text."""
    candidates = []
    for encoding in ("cp949", "cp932", "gb18030", "big5"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        candidates.append((_likeliness(text[:20_000], encoding), text))
    western = raw.decode("cp1252", "replace")
    candidates.append((_western_likeliness(western[:20_000]), western))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _likeliness(text: str, encoding: str) -> float:
    """The share of letters beyond ASCII that such texts are mostly made of."""
    foreign = [char for char in text if char > "\x7f"]
    if not foreign:
        return 1.0
    common = {
        "cp949": lambda c: "가" <= c <= "힣",
        "cp932": lambda c: "ぁ" <= c <= "ヿ",
        "gb18030": lambda c: c in _COMMON_CHINESE,
        "big5": lambda c: c in _COMMON_CHINESE,
    }[encoding]
    share = sum(map(common, foreign)) / len(foreign)
    # A quarter of Chinese text are these few characters; half of Japanese is kana.
    return min(1.0, share * {"cp949": 1.0, "cp932": 2.0}.get(encoding, 4.0))


_COMMON_CHINESE = frozenset(
    "的一是不了人我在有他这这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于着下自之年过過发發后後作里,。、"
)


def _western_likeliness(text: str) -> float:
    """Letters with accents stand alone among ASCII; a word of only such is none."""
    foreign = [index for index, char in enumerate(text) if char > "\x7f"]
    if not foreign:
        return 1.0
    alone = sum(
        1 for i in foreign if text[i].isalpha() and not (i + 1 < len(text) and text[i + 1] > "\x7f")
    )
    return 0.9 * alone / len(foreign)


def _is_binary(text: str) -> bool:
    sample = text[: 1 << 16]
    strange = sum(1 for char in sample if char < " " and char not in "\t\n\r\f\x1b")
    return strange > len(sample) // 200


def _pdf(name: str, path: Path) -> Extracted:
    most = 4 * MAX_CHARACTERS
    records = process.read("pdf", path, seconds=_PDF_SECONDS, max_bytes=most)
    pages = [str(record["page"]) for record in records]
    text = "\n\n".join(page.strip() for page in pages)
    _check_length(name, len(text))
    return Extracted(_PDF, text, len(pages))


def _check_length(name: str, characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise RequestError(
            f"{name} holds {characters:,} characters, at most {MAX_CHARACTERS:,} are taken: "
            "nothing was cut off, give a part of it"
        )

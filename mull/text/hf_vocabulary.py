"""Reads a tokenizer out of a Hugging Face folder: tokenizer.json and the small files beside it.

The encoder is built without the tokens that carry structure, so that it cannot form one whatever
it is given; those are found, where they are wanted, by `Tokenizer` itself.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from ..errors import TextError
from .vocabulary import MAX_TOKEN_CHARS, MAX_TOKENS, Kind, Vocabulary, is_unicode

_MAX_BYTES = 256 * 1024 * 1024
# what an added token is where the file does not say
_ADDED = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
# DeepSeek does not mark its role and tool tokens as special; conversion to GGUF does, by this look
_CONTROL_LOOKING = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)


def read(folder: Path) -> tuple[Vocabulary, BackendTokenizer, str | None]:
    """(vocabulary, plain encoder, Jinja chat template or None) of a folder; else TextError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TextError(f"no tokenizer.json in {folder}: copy it there from where the model is")
    data = read_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(data.get("added_tokens", []), list):
        raise TextError(f"{path} is not a tokenizer of the `tokenizers` package")
    texts = _texts(model, data.get("added_tokens") or [], path)
    kinds = _kinds(data, texts, path)
    vocabulary = Vocabulary(texts, kinds)
    config = _optional_json(folder / "tokenizer_config.json")
    special_map = _optional_json(folder / "special_tokens_map.json")
    generation = _optional_json(folder / "generation_config.json")
    ids = {text: token for token, text in enumerate(texts) if text}
    eos = _ids(generation.get("eos_token_id"))
    for source in (config, special_map):
        name = _token_text(source.get("eos_token"))
        eos += [ids[name]] if name in ids else []
    # an end token that the file keeps among its ordinary words is structure all the same
    kinds |= dict.fromkeys(vocabulary.end_ids(eos), Kind.CONTROL)
    vocabulary = Vocabulary(texts, kinds)
    vocabulary.eos_ids = vocabulary.end_ids(eos)
    named = special_tokens(folder).items()
    vocabulary.named = {name: ids[text] for name, text in named if text in ids}
    plain = _without_structure(data, vocabulary, path)
    bos = _token_text(config.get("bos_token")) or _token_text(special_map.get("bos_token"))
    vocabulary.bos_id = ids.get(bos) if bos else None
    flag = config.get("add_bos_token")
    vocabulary.add_bos = vocabulary.bos_id is not None and (
        flag is True or (flag is None and _prepends(data.get("post_processor"), bos))
    )
    return vocabulary, plain, _template(folder, config)


def special_tokens(folder: Path) -> dict[str, str]:
    """Texts of the tokens that the small files name: bos, eos, unk, pad."""
    config = _optional_json(folder / "tokenizer_config.json")
    special_map = _optional_json(folder / "special_tokens_map.json")
    found: dict[str, str] = {}
    for name in ("bos", "eos", "unk", "pad"):
        for source in (config, special_map):
            text = _token_text(source.get(f"{name}_token"))
            if text is not None:
                found.setdefault(name, text)
    return found


def _texts(model: dict[str, Any], added: list[Any], path: Path) -> list[str]:
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram: [[piece, score], ...]
        if not all(isinstance(p, list) and p for p in vocab):
            raise TextError(f"{path}: a token of the vocabulary is no [text, score]")
        pairs: list[tuple[Any, Any]] = [(p[0], i) for i, p in enumerate(vocab)]
    elif isinstance(vocab, dict):
        pairs = list(vocab.items())
    else:
        raise TextError(f"{path} has no vocabulary")
    for token in added:
        if not isinstance(token, dict):
            raise TextError(f"{path}: an entry of added_tokens is no object")
        pairs.append((token.get("content"), token.get("id")))
    for text, index in pairs:
        if not isinstance(text, str) or len(text) > MAX_TOKEN_CHARS or not is_unicode(text):
            raise TextError(f"{path}: a token is no text, or longer than {MAX_TOKEN_CHARS}")
        if not isinstance(index, int) or not 0 <= index < MAX_TOKENS:
            raise TextError(f"{path}: token {text[:40]!r} has id {str(index)[:20]}; refused")
    texts = [""] * (max((i for _, i in pairs), default=-1) + 1)
    for text, index in pairs:
        texts[index] = text
    if not texts:
        raise TextError(f"{path} has an empty vocabulary")
    return texts


def _kinds(data: dict[str, Any], texts: list[str], path: Path) -> dict[int, Kind]:
    kinds: dict[int, Kind] = {}
    for token in data.get("added_tokens") or []:
        control = token.get("special") or _CONTROL_LOOKING.fullmatch(token["content"])
        kinds[token["id"]] = Kind.CONTROL if control else Kind.USER_DEFINED
    if data["model"].get("byte_fallback"):
        for index, text in enumerate(texts):
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                kinds.setdefault(index, Kind.BYTE)
    return kinds


def _without_structure(
    data: dict[str, Any], vocabulary: Vocabulary, path: Path
) -> BackendTokenizer:
    """The tokenizer with every structural token out of reach: renamed, and unmergeable.

    Some models find a whole word or piece by its name, so the new names are nobody's to know. The
    tokens stay in their places: the package numbers those that were added after them by these.
    """
    hidden = vocabulary.structural
    hidden_ids = set(hidden.values())
    secret = secrets.token_hex(16)

    def name(text: str, token: int) -> str:
        return secret + text if text in hidden or token in hidden_ids else text

    model = dict(data["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {name(text, i): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[name(p[0], i), *p[1:]] for i, p in enumerate(vocab)]
    if "merges" in model:
        if not isinstance(model["merges"], list):
            raise TextError(f"{path}: merges is no list; the file is damaged")
        model["merges"] = [m for m in model["merges"] if _product(m) not in hidden]
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in hidden:
        model["unk_token"] = secret + unknown
    added = [
        {**_ADDED, **t, "content": name(t["content"], t["id"])}
        for t in data.get("added_tokens") or []
    ]
    stripped = {**data, "model": model, "added_tokens": added, "post_processor": None}
    with package_faults(f"{path} cannot be used"):
        plain = BackendTokenizer.from_str(json.dumps(stripped))
        plain.encode("a", add_special_tokens=False)  # some faults show only now
    for text, token in vocabulary.user_defined.items():
        if plain.token_to_id(text) != token:
            raise TextError(
                f"{path}: token {text[:40]!r} has id {token}, which its place among the added"
                " tokens does not give it; the file is damaged"
            )
    return plain


@contextlib.contextmanager
def package_faults(what: str) -> Iterator[None]:
    """What the `tokenizers` package raises on a fault in the file (bare Exception, or a panic,
    which is none) as a TextError that begins with `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise TextError(f"{what}: {reason}") from error


def _product(merge: Any) -> str:
    """What a merge makes; it is written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return "".join(p for p in parts if isinstance(p, str)) if isinstance(parts, list) else ""


def _prepends(processor: Any, bos: str | None) -> bool:
    """Whether the post-processor puts the beginning-of-text token before a text."""
    if not isinstance(processor, dict) or not bos:
        return False
    if processor.get("type") == "Sequence":
        inner = processor.get("processors")
        # nested no further in any real file; a hostile one could exhaust the stack
        return isinstance(inner, list) and any(_is_first(p, bos) for p in inner)
    return _is_first(processor, bos)


def _is_first(processor: Any, bos: str) -> bool:
    if not isinstance(processor, dict):
        return False
    single = processor.get("single")
    first = single[0] if isinstance(single, list) and single else None
    token = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(token, dict) and token.get("id") == bos


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name; the one called default is for chat
        entries = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = entries[0].get("template") if entries else None
    return template if isinstance(template, str) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TextError(f"{path} is larger than {_MAX_BYTES} bytes; refused")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read as text: {type(error).__name__}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file nobody vouches for; TextError where there is none."""
    try:
        data = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is not valid JSON: it is damaged, copy it again") from error
    if not isinstance(data, dict):
        raise TextError(f"{path} holds no JSON object")
    return data


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}

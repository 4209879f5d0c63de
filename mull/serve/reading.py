"""Reading as a model does, with its tokenizer and template, whether it is loaded or not."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from mull import weights
from mull.serve.serving import Serving
from mull.text import ChatTemplate, Tokenizer


@dataclass(frozen=True)
class Reader:
    """What of a model is needed to read with it."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    context: int


def reader_of(parts: Serving, name: str) -> Reader:
    """Of a name that the pool has found. Raises WeightsError or TextError for a damaged model."""
    loaded = parts.pool.loaded.get(name)
    if loaded is not None:
        llm = loaded.llm
        return Reader(name, llm.tokenizer, llm.template, llm.context)
    files = weights.resolve(parts.pool.source_of(name))
    reader = _read(name, str(files.path), files.path.stat().st_mtime_ns)
    limit = parts.settings.context or reader.context
    return replace(reader, context=min(limit, reader.context))


@functools.lru_cache(maxsize=4)
def _read(name: str, path: str, _changed: int) -> Reader:
    opened = weights.OpenedModel(weights.resolve(path))
    tokenizer = Tokenizer.from_source(opened.tokenizer_source)
    template = ChatTemplate.for_tokenizer(tokenizer, tokenizer.chat_template)
    return Reader(name, tokenizer, template, opened.config.max_position_embeddings)

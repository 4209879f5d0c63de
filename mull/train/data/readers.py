"""Files of data, record by record: plain text, chats, parquet, answers a reject stage kept.

Nobody vouches for these files. What is wrong with one is said in a RecipeError of one line that
names the file, the line or row, and how to mend it.
"""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mull.errors import RecipeError

# A text file is read in blocks of so many bytes, each cut where a paragraph ends: to encode one,
# the tokenizer takes some three hundred times as much memory.
BLOCK_BYTES = 1 << 18
_LONGEST_LINE = 1 << 26


@dataclass(frozen=True)
class Chat:
    """where: file and line, for complaints."""

    where: str
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class KeptAnswer:
    """ids: as they were sampled after the prompt, None where only the text is known."""

    where: str
    question: str
    thinking: str
    answer: str
    ids: tuple[int, ...] | None = None


def text_blocks(path: Path) -> Iterator[str]:
    """The text in blocks of a quarter of a million bytes, each a document, so that a long file
    never lies in memory; cut after a blank line, else after a line, where the block has one."""
    decode = codecs.getincrementaldecoder("utf-8")("strict").decode
    rest, line, found = "", 1, False
    with _opened(path) as file:
        while True:
            raw = _read(file, path)
            try:
                text = decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # error.object also holds the bytes that were kept back of the block before.
                line += error.object[: error.start].count(b"\n")
                raise RecipeError(
                    f"{path}:{line}: is not UTF-8 text; convert the file (iconv -t utf-8)"
                ) from None
            line += text.count("\n")
            rest += text
            if raw and (cut := _paragraph_end(rest)):
                block, rest = rest[:cut], rest[cut:]
            elif not raw:
                block, rest = rest, ""
            else:
                continue
            if block.strip():
                found = True
                yield block
            if not raw:
                break
    if not found:
        raise RecipeError(f"{path}: holds no text; give a file with some, or remove it")


def chats(path: Path) -> Iterator[Chat]:
    """The conversations of a JSONL file: a line is {"messages": [{"role", "content"}, ...]}."""
    found = False
    for where, record in _records(path):
        messages = record.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise RecipeError(
                f'{where}: no conversation; a line is {{"messages": [{{"role": "user", "content": '
                f'"..."}}, ...]}}{_instead(record, "messages")}'
            )
        found = True
        yield Chat(where, messages)
    if not found:
        raise RecipeError(f"{path}: holds no conversation; give a file with some, or remove it")


def kept_answers(path: Path) -> Iterator[KeptAnswer]:
    """The answers a reject stage or a teacher left: {"question", "thinking", "answer", "ids"?}."""
    found = False
    for where, record in _records(path):
        for name in ("question", "thinking", "answer"):
            if not isinstance(record.get(name), str):
                raise RecipeError(f"{where}: {name} is missing or no text{_instead(record, name)}")
        ids = record.get("ids")
        if ids is not None and not (
            isinstance(ids, list) and ids and all(type(token) is int for token in ids)
        ):
            raise RecipeError(f"{where}: ids is no list of token ids; leave it out, or mend it")
        found = True
        yield KeptAnswer(
            where, record["question"], record["thinking"], record["answer"],
            None if ids is None else tuple(ids),
        )  # fmt: skip
    if not found:
        raise RecipeError(
            f"{path}: no answer was kept; give the stage that made it more questions or samples"
        )


def parquet_texts(path: Path, column: str) -> Iterator[str | None]:
    """The texts in one column of a parquet file, None where a row has none."""
    # Half a second of import, and only recipes that name parquet files need it.
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    row, found = 0, False
    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                names = file.schema_arrow.names
                close = difflib.get_close_matches(column, names, 1)
                mend = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
                raise RecipeError(f"{path}: has no column {column!r}; {mend}")
            kind = file.schema_arrow.field(column).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise RecipeError(f"{path}: column {column!r} is {kind}, but must be text")
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    found = found or bool(text)
                    yield text or None
    except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{path}: row {row + 1}: cannot be read as parquet ({reason}); it is damaged or "
            "something else, fetch it again"
        ) from None
    if not found:
        raise RecipeError(f"{path}: column {column!r} holds no text")


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every line that is not blank."""
    with _opened(path) as file:
        number = 0
        while True:
            line = _read(file, path, is_line=True)
            if not line:
                return
            number += 1
            where = f"{path}:{number}"
            if len(line) >= _LONGEST_LINE:
                raise RecipeError(f"{where}: is longer than {_LONGEST_LINE >> 20} MB; refused")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:100]
                raise RecipeError(f"{where}: not valid JSON ({reason}); mend the line") from None
            if not isinstance(record, dict):
                raise RecipeError(f"{where}: a line must be a JSON object ({{...}})")
            yield where, record


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read(file: BinaryIO, path: Path, *, is_line: bool = False) -> bytes:
    try:
        return file.readline(_LONGEST_LINE) if is_line else file.read(BLOCK_BYTES)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from None


def _paragraph_end(text: str) -> int:
    """Where a block can be cut: after its last blank line, its last line, or at its end."""
    for mark in ("\n\n", "\n"):
        if (at := text.rfind(mark)) > 0:
            return at + len(mark)
    return len(text)


def _instead(record: dict[str, Any], name: str) -> str:
    close = difflib.get_close_matches(name, list(record), 1, 0.7)
    return f"; did you mean {name!r} by {close[0]!r}?" if close and close[0] != name else ""

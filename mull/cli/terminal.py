"""What reaches a terminal: a model's words made harmless, thinking dimmed, tables, JSON.

Text from a model or a model file is hostile: a control sequence in it could rewrite the screen, set
the clipboard or answer a prompt. Nothing of the kind passes here, on a terminal or into a pipe.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# C0 without tab and newline, DEL, C1, bidi embeddings/overrides/isolates, separators that some
# terminals take for a new line, tag characters (invisible text), lone surrogates.
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with every control character shown as a harmless stand-in; carriage returns go."""
    return _HOSTILE.sub(_stand_in, text)


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x0D:
        return ""
    if code < 0x20:
        return chr(0x2400 + code)  # U+241B for escape and so on: control pictures
    return "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """`text` made harmless and folded into a single line."""
    return " ".join(visible(text).split())


def print_json(value: Any) -> None:
    """One JSON value on stdout, exact: what a terminal could act on is escaped, not replaced."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    print(_HOSTILE.sub(_json_escape, text))


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: ruled on a terminal, tab-separated (no header) in a pipe."""
    harmless = [[one_line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in harmless:
            print("\t".join(row))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(header))
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name == header[0])
    for row in harmless:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def in_gb(size: int | None) -> str:
    """Bytes in the unit a person would use (decimal, as disks and downloads are sold)."""
    if size is None:
        return "not known"
    if size < 1e9:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e9:,.1f} GB"


def can_style(stream: TextIO) -> bool:
    """Whether escape sequences of our own may be written to `stream` (see no-color.org)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ


def dim(text: str, stream: TextIO) -> str:
    return f"\x1b[2m{text}\x1b[0m" if can_style(stream) else text


class AnswerPrinter:
    """Writes an answer as it comes: the words to stdout, the thinking dimmed to stderr.

    Thinking is shown only when stderr is a terminal, so a pipe carries the answer alone.
    """

    def __init__(self) -> None:
        self._shows_thinking = sys.stderr.isatty()
        self._section = ""
        self._at_line_start = True

    def write(self, kind: str, text: str) -> None:
        """Show one piece; `kind` is "thinking", "answer" or "tool_call"."""
        if kind != "answer" and not self._shows_thinking:
            return
        if self._section != kind:
            text = text.lstrip()  # the blank lines around </think> are the template's, not ours
            if not text:
                return
            if self._section:
                self._end_section(blank_line=True)
            self._section = kind
            if kind != "answer" and not can_style(sys.stderr):
                text = f"({kind.replace('_', ' ')}) {text}"
        text = visible(text)
        stream = sys.stdout if kind == "answer" else sys.stderr
        stream.write(text if kind == "answer" else dim(text, stream))
        stream.flush()
        self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Leave the cursor at the start of a line, whatever was printed or interrupted."""
        self._end_section(blank_line=False)

    def finish(self) -> None:
        """End a whole answer; one without a word still gets its line, so lines can be counted."""
        self.end_line()
        if self._section != "answer":
            print(flush=True)

    def _end_section(self, *, blank_line: bool) -> None:
        stream = sys.stdout if self._section == "answer" else sys.stderr
        if self._section and not self._at_line_start:
            stream.write("\n")
        if blank_line and sys.stdout.isatty():
            stream.write("\n")
        stream.flush()
        self._at_line_start = True


def note(text: str) -> None:
    """A dimmed remark on stderr, for whoever watches."""
    print(dim(visible(text), sys.stderr), file=sys.stderr, flush=True)

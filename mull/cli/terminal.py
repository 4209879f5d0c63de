"""What reaches a terminal: a model's words made harmless, thinking dimmed, tables, JSON.

No control sequence of a model's passes here (see mull.harmless), on a terminal or into a pipe.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from mull.harmless import HOSTILE, one_line, visible


def print_json(value: Any) -> None:
    """One JSON value on stdout, exact: what a terminal could act on is escaped, not replaced."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    print(HOSTILE.sub(lambda match: json.dumps(match.group())[1:-1], text))


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

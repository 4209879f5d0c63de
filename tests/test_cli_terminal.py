"""Hostile text made harmless before it reaches a terminal."""

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.cli.reader import is_complete, unwrap
from mull.cli.terminal import AnswerPrinter, one_line, print_json, print_table, visible

HOSTILE = {
    "clear the screen": "\x1b[2J\x1b[H",
    "set the clipboard (OSC 52)": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "set the title": "\x1b]0;pwned\x1b\\",
    "hyperlink": "\x1b]8;;http://example.org\x1b\\here\x1b]8;;\x1b\\",
    "C1 control sequence introducer": "\x9b31mred",
    "C1 operating system command": "\x9d0;title\x9c",
    "device status report": "\x1b[6n",
    "overwrite the line": "safe\rrm -rf",
    "backspaces": "ab\x08\x08cd",
    "bell and null": "\x07\x00",
    "right-to-left override": "gpj.\u202eexe",
    "isolates": "\u2066a\u2069\u2067b\u2069\u2068c\u2069",
    "line separator": "a\u2028b\u2029c",
    "invisible tags": "a\U000e0041\U000e0042",
    "delete": "a\x7f",
    "lone surrogate": "a\ud800",
}
FORBIDDEN = {
    *map(chr, (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x2028, 0x2029)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ud800",
}


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_control_character_of_a_model_reaches_the_terminal(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = FakeTerminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    printer = AnswerPrinter()
    for character in text:  # as a stream may split it
        printer.write("answer", character)
    printer.finish()
    print_table(("NAME",), [(text,)])
    assert not FORBIDDEN & set(out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", ""))


@given(st.text())
def test_what_is_visible_stays_and_what_is_not_never_passes(text: str) -> None:
    shown = visible(text)
    assert not FORBIDDEN & set(shown)
    kept = [c for c in text if c not in FORBIDDEN and not 0xD800 <= ord(c) <= 0xDFFF]
    assert all(c in shown for c in kept if not 0xE0000 <= ord(c) <= 0xE007F)


def test_korean_emoji_tabs_and_newlines_pass_unchanged() -> None:
    text = "안녕 👩‍👩‍👧 é\tx\nשלום"
    assert visible(text) == text


def test_an_error_is_one_line_whatever_the_file_is_called() -> None:
    assert one_line("no such file: a\nb\x1b[2J\r\nc") == "no such file: a b␛[2J c"


@given(st.text(st.characters(), max_size=50))
def test_json_is_exact_and_yet_harmless(text: str) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        print_json({"answer": text})
    assert json.loads(out.getvalue()) == {"answer": text}
    assert not FORBIDDEN & set(out.getvalue())


def test_thinking_goes_dimmed_to_stderr_and_the_answer_alone_to_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.StringIO(), FakeTerminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    printer = AnswerPrinter()
    for kind, text in [
        ("thinking", "\nhmm"),
        ("thinking", " so"),
        ("answer", "\n\nParis"),
        ("answer", "."),
    ]:
        printer.write(kind, text)
    printer.finish()
    assert out.getvalue() == "Paris.\n"
    assert err.getvalue() == "\x1b[2mhmm\x1b[0m\x1b[2m so\x1b[0m\n"


def test_thinking_is_not_printed_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    printer = AnswerPrinter()
    printer.write("thinking", "secret")
    printer.write("answer", "42")
    printer.finish()
    assert (out.getvalue(), err.getvalue()) == ("42\n", "")


@pytest.mark.parametrize(
    ("typed", "complete"),
    [
        ("hello", True),
        ("hello\\", False),
        ("first\\\nsecond", True),
        ('"""', False),
        ('"""one\ntwo', False),
        ('"""one\ntwo"""', True),
        ('"""one\n', False),
        ("", True),
    ],
)
def test_enter_sends_only_a_complete_question(typed: str, complete: bool) -> None:
    assert is_complete(typed) is complete


def test_the_marks_of_a_long_question_are_taken_off() -> None:
    assert unwrap('"""one\ntwo"""') == "one\ntwo"
    assert unwrap('"""\none\n"""') == "one"
    assert unwrap("first\\\nsecond") == "first\nsecond"
    assert unwrap("plain") == "plain"

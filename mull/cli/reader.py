"""Where a chat's lines come from: a terminal with history and editing, or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mull.cli.terminal import note

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BLOCK = '"""'


def piped_lines() -> Iterator[str]:
    """Every line of standard input that is not blank."""
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def terminal_lines() -> Iterator[str]:
    """Questions typed at a terminal, each of one or several lines, until Ctrl-D."""
    session = _session()
    while True:
        try:
            text = session.prompt(">>> ", prompt_continuation="... ")
        except KeyboardInterrupt:
            note("(Ctrl-D or /quit leaves)")
            continue
        except EOFError:
            return
        question = unwrap(text)
        if question:
            yield question


def is_complete(text: str) -> bool:
    """Whether Enter sends `text`: not inside triple quotes or after a trailing backslash."""
    if text.lstrip().startswith(BLOCK):
        body = text.strip()
        return len(body) >= 2 * len(BLOCK) and body.endswith(BLOCK)
    return not text.endswith("\\")


def unwrap(text: str) -> str:
    """The question without the marks that made it several lines long."""
    text = text.strip()
    if text.startswith(BLOCK):
        return text.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
    return text.replace("\\\n", "\n")


def _session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    from mull import weights

    home = weights.models_home().parent
    home.mkdir(parents=True, exist_ok=True)
    history = home / "chat_history"
    # Questions are private: create the file before prompt_toolkit does, for its owner only.
    os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
    return PromptSession(
        history=FileHistory(str(history)), multiline=True, key_bindings=_key_bindings()
    )


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings

"""The commands inside a chat: `/model`, `/think`, `/save` and the rest.

Each takes the chat and the text after its name, acts, and returns a question to ask next, if any.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mull.cli.terminal import note
from mull.errors import RequestError

if TYPE_CHECKING:
    from mull.cli.chat import Chat


class QuitChat(Exception):  # noqa: N818  # not an error: the user is done
    """Raised by /quit."""


class Command(NamedTuple):
    usage: str
    help: str
    run: Callable[[Chat, str], str | None]


def run_command(chat: Chat, line: str) -> str | None:
    """Run a line that starts with a slash; returns the question it asks, if it asks one."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise RequestError(f"there is no command /{name}: {hint}")
    return command.run(chat, argument.strip())


def _help(chat: Chat, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        note(f"  {command.usage:<{width}}  {command.help}")
    note("")
    note(f"  {'Enter':<{width}}  send; Alt-Enter or a trailing \\ starts a new line")
    note(f"  {'triple quotes':<{width}}  open and close a block of several lines")
    note(f"  {'Ctrl-C':<{width}}  stop the answer, keep the chat")
    note(f"  {'Ctrl-D':<{width}}  leave")


def _model(chat: Chat, argument: str) -> None:
    if argument:
        chat.switch_model(argument)
    note(f"model {chat.conversation.model_line()}")


def _think(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if argument in {"on", "off", "auto"}:
        conversation.thinking, conversation.think_budget = argument, None
    elif argument.isdecimal() and len(argument) < 10:
        conversation.thinking, conversation.think_budget = "auto", int(argument)
    elif argument:
        raise RequestError(f"/think takes on, off, auto or a number of tokens, not {argument}")
    budget = conversation.think_budget
    limit = "" if budget is None else f", at most {budget:,} tokens"
    note(f"thinking {conversation.thinking}{limit}")
    llm = conversation.llm
    if llm is not None and llm.thinks is False:
        note(f"({llm.name} is no thinking model: it answers at once)")


def _system(chat: Chat, argument: str) -> None:
    chat.conversation.system = argument or None
    note("system prompt set" if argument else "system prompt removed")


def _clear(chat: Chat, argument: str) -> None:
    chat.conversation.clear()
    note("conversation cleared")


def _retry(chat: Chat, argument: str) -> str:
    chat.loaded()  # where that fails, nothing is taken back
    return chat.conversation.retract()


def _save(chat: Chat, argument: str) -> None:
    if not argument:
        raise RequestError("/save needs a file name: chat.md for Markdown, chat.json for JSON")
    try:
        path = Path(argument).expanduser()
        chat.conversation.save(path)
    except (OSError, ValueError, RuntimeError) as error:  # no such user, no possible name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"cannot write {argument}: {reason}") from error
    note(f"saved {path}")


def _quit(chat: Chat, argument: str) -> None:
    raise QuitChat


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "model": Command("/model [MODEL]", "show the model, or go on with another one", _model),
    "think": Command("/think on|off|auto|N", "thinking, or a budget of N tokens for it", _think),
    "system": Command("/system [TEXT]", "set the system prompt, or remove it", _system),
    "retry": Command("/retry", "take the last answer back and ask again", _retry),
    "clear": Command("/clear", "forget the conversation", _clear),
    "save": Command("/save FILE", "write the conversation: .md or .json", _save),
    "quit": Command("/quit", "leave (as does Ctrl-D)", _quit),
}

"""The table of verbs, and what every verb shares: exit codes, and one line per error.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import mull
from mull.cli.ask import ask
from mull.cli.bench import bench
from mull.cli.chat import chat
from mull.cli.doctor import doctor
from mull.cli.export import export
from mull.cli.keys import keys
from mull.cli.models import models
from mull.cli.pull import pull
from mull.cli.rm import rm
from mull.cli.show import show
from mull.cli.terminal import one_line
from mull.cli.train import train
from mull.cli.up import up
from mull.errors import MullError, TrainFailedError

app = typer.Typer(
    name="mull",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich costs half of the start-up time of `mull --help`
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verb in (up, chat, ask, pull, models, show, rm, export, bench, train, doctor):
    app.command()(verb)
app.add_typer(keys, name="keys")

# typer exports one usage error only; all of them share its base class.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mull {mull.__version__}")
        raise typer.Exit


@app.callback()
def _mull(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Your own DeepSeek: run thinking models on the hardware you have. Nothing leaves the machine.

    MODEL is a name from `mull models`, a folder in Hugging Face layout, or a .gguf file.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every expected error is one line on stderr."""
    _open_closed_streams()
    if sys.stdin is not None and sys.stdin.isatty():
        # A shell script's background job starts with SIGINT ignored; at a terminal it must stop us.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Half a character in a pipe or a lone surrogate from a model must not end in a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        code = app(words, prog_name="mull", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except KeyboardInterrupt:
        return 130
    except UsageError as error:
        return _complain(_usage_message(error), code=2)
    except MullError as error:
        # The rooms' own classes speak of what they were given; the bare one of work that failed.
        has_failed = type(error) is MullError or isinstance(error, TrainFailedError)
        return _complain(str(error), code=1 if has_failed else 2)
    except BrokenPipeError:
        # The reader left (`mull models | head -1`); keep Python's exit from saying so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _complain(str(error) or "out of memory", code=1)
    except (typer.Abort, EOFError):
        return _complain("stopped: no answer to the question asked", code=1)


def _open_closed_streams() -> None:
    """A stream the caller closed (`<&-`) is None in Python; here it is empty, or goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _usage_message(error: Any) -> str:
    """What typer says, in our form: what, where, how to mend."""
    command = error.ctx.command_path if error.ctx is not None else "mull"
    what = error.format_message().rstrip(".")
    return f"{what[:1].lower()}{what[1:]}: see `{command} --help`"


def _complain(message: str, *, code: int) -> int:
    print(f"mull: {one_line(message)}", file=sys.stderr)
    return code

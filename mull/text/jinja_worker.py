"""The process in which chat templates of unknown origin render: run as a script, never imported.

A template is a program out of a downloaded file. It gets Jinja's immutable sandbox, and this
process gets no environment, no files, no children and little memory; the parent kills it when it
takes too long. One JSON object a line comes in, one goes out.
"""

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY = 768 * 1024 * 1024


class TemplateRefusalError(Exception):
    """The template itself refuses the conversation (raise_exception)."""


def limit_resources() -> None:
    """Take away what rendering does not need, where the system can."""
    try:
        import resource
    except ImportError:  # no such limits on Windows; the parent's clock still holds
        return
    for name, limit in (
        ("RLIMIT_AS", MAX_MEMORY),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (limit, limit))


def refuse(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message)[:500])


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it in templates: not escaped for HTML, keys in order."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], cache_size=8
    )
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(str(form)[:100])
    return env


def render(env: ImmutableSandboxedEnvironment, job: dict[str, Any]) -> dict[str, Any]:
    limit, length, pieces = job["max_chars"], 0, []
    try:
        for piece in env.from_string(job["source"]).generate(**job["variables"]):
            length += len(piece)
            if length > limit:
                return {"error": f"writes more than {limit} characters"}
            pieces.append(piece)
    except TemplateRefusalError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"error": "needs more memory than a template may have"}
    except RecursionError:
        return {"error": "nests too deeply"}
    except (jinja2.TemplateError, OverflowError, ArithmeticError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"text": "".join(pieces)}


def main() -> None:
    env = environment()
    limit_resources()
    for line in sys.stdin:
        answer = render(env, json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

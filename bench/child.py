"""What every contender's process does: load once, then answer requests, one JSON line each.

Runs under the contender's own Python, so it imports nothing but the standard library. A contender
that waits for its turn blocks in `readline` and uses no processor time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Answer = Callable[..., dict[str, Any]]


class UnsupportedError(Exception):
    """A request this contender cannot answer by its nature: its cell stays empty."""


def decoded(decode: Answer) -> Answer:
    """What stands for sampling answers where a program samples nothing: decoding as many sequences
    from prompts as long, all of the same length."""

    def rollout(prompts: list[Any], each: int, tokens: int, context_tokens: int, seed: int) -> Any:
        return decode(len(prompts) * each, tokens, context_tokens, seed)

    return rollout


def serve(load: Callable[..., tuple[dict[str, Any], dict[str, Answer]]]) -> None:
    """`load` gets the options of the command line (JSON) and gives a greeting and the answers.

    greeting: name, version, and what else is worth printing once. An answer's result is written
    back as it is; an exception becomes {"error": ...}, UnsupportedError {"unsupported": ...}.
    """
    # Native libraries print to file descriptor 1: it becomes stderr, the replies keep a copy.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(result: dict[str, Any]) -> None:
        replies.write(json.dumps(result) + "\n")

    try:
        greeting, answers = load(**json.loads(sys.argv[1]))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply(greeting)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(answers[request.pop("do")](**request))
        except UnsupportedError as error:
            reply({"unsupported": str(error)})
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})

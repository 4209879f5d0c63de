"""A chat template that opens the thinking: what a model gets that was trained to go on from there.

It is the base's own source and one expression after it. An expression and no block, because the
rules that cut whitespace around blocks would change what the base renders.
"""

import json
import re
from pathlib import Path

from . import hf_vocabulary
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_WHEN = "add_generation_prompt and (enable_thinking is not defined or enable_thinking)"
_OPENED = re.compile(r"(.*)\{\{ '[^'{}]*' if " + re.escape(_WHEN) + r" else '' \}\}\s*", re.DOTALL)


def with_opening(source: str, opening: str) -> str:
    """The template that also writes `opening`, unless enable_thinking is given and false."""
    # Jinja leaves out the newline that ends a source, and no other.
    base = source.removesuffix("\n").removesuffix("\r")
    literal = opening.replace("\n", "\\n")
    return f"{base}{{{{ '{literal}' if {_WHEN} else '' }}}}"


def without_opening(source: str) -> str | None:
    """What renders as `with_opening` was given; None for any other source."""
    found = _OPENED.fullmatch(source)
    return None if found is None else found[1] + "\n"


def opening_files(folder: Path) -> dict[str, str]:
    """Name -> content of those files of a tokenizer's folder that have to change for its template
    to open the thinking; none where it does so already or has thinking of its own.

    A base without any template gets the one that mull renders for it.
    """
    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.for_tokenizer(tokenizer)
    if template.thinks:
        return {}
    source = tokenizer.chat_template or template.source
    if template.think_open in source:  # it can be asked to think
        return {}
    opened = with_opening(source, template.thinking_opening)
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    settings = hf_vocabulary.read_json(config) if config.is_file() else None
    files = {}
    if settings is not None and ("chat_template" in settings or not jinja.is_file()):
        settings["chat_template"] = _replaced(settings.get("chat_template"), opened)
        files[config.name] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if jinja.is_file() or settings is None:
        files[jinja.name] = opened
    return files


def _replaced(kept: object, opened: str) -> object:
    """Of several templates by name only the one for chat."""
    if not isinstance(kept, list):
        return opened
    others = [
        each for each in kept if not (isinstance(each, dict) and each.get("name") == "default")
    ]
    return [*others, {"name": "default", "template": opened}]

"""What an answer must look like, as the source of a grammar: JSON, a pattern, tool calls.

The source covers what follows the thinking, never the thinking itself. It is written in the Lark
dialect of llguidance, which also reads JSON schemas; whatever comes from a client goes into it as
JSON or as an escaped pattern.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import regex_to_lark

from ..errors import TextError
from .messages import Tool, check_tools
from .templates import ChatTemplate
from .tool_calls import ToolSyntax, tool_syntax

MAX_SCHEMA_CHARS = 100_000
MAX_SCHEMA_DEPTH = 64
MAX_PATTERN_CHARS = 10_000

# Room for an indent at any reasonable depth, and an end to it: small models can fall into endless
# white space wherever it is allowed.
_WHITE_SPACE = r"[ \n\r\t]{1,40}"
# Others are notes to the reader: JSON Schema lets a validator ignore a format it does not know.
_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
_FREE = r"TEXT: /(.|\n)*/"
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


def answer_form(
    template: ChatTemplate,
    *,
    response_format: object = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: object = None,
    parallel_tool_calls: bool = True,
) -> str | None:
    """The grammar's source, or None where the answer is free; TextError for a bad wish.

    response_format: {"type": "text" | "json_object"}, {"type": "json_schema", "json_schema":
    {"schema": ..., "strict": ...}} or {"type": "regex", "regex": ...}. tool_choice: none, auto,
    required, or an object naming one function. Tools declared as strict are only ever called with
    arguments of their schema; for others a schema is obeyed as far as it can be.
    """
    body = _body(response_format)
    declared = check_tools(tools)
    wanted, is_required = _chosen(declared, tool_choice)
    is_strict = any(_is_strict(tool) for tool in wanted)
    if not (is_required or (wanted and (is_strict or body))):
        return None if body is None else f"start: {body}"
    syntax = tool_syntax(template.tool_format)
    if syntax is None:
        raise TextError(
            "tool_choice: this model's template has no form for tool calls, so it can make none"
        )
    start = ["start: calls"]
    if not is_required:
        start = [f"start: ({body}) | calls"] if body else _text_or_calls(template, syntax)
    rules = _call_rules(template, syntax, wanted, parallel=parallel_tool_calls)
    return "\n".join([*start, *rules])


def _chosen(tools: list[Tool], choice: object) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one must be."""
    name = None
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise TextError("tool_choice must name a function: {'function': {'name': ...}}")
    elif choice not in (None, "none", "auto", "required"):
        raise TextError("tool_choice must be none, auto, required, or an object naming a function")
    if choice == "none":
        return [], False
    if name is None and choice != "required":
        return tools, False
    wanted = [tool for tool in tools if name is None or tool.name == name]
    if not wanted:
        what = f"names {name[:60]!r}, which is not among tools" if name else "needs tools to call"
        raise TextError(f"tool_choice {what}")
    return wanted, True


def _is_strict(tool: Tool) -> bool:
    function = tool.declared.get("function")
    return isinstance(function, Mapping) and function.get("strict") is True


def _body(wish: object) -> str | None:
    """The answer itself, without calls."""
    if wish is None:
        return None
    kind = wish.get("type") if isinstance(wish, Mapping) else None
    if not isinstance(wish, Mapping) or kind == "text":
        if kind == "text":
            return None
        raise TextError("response_format must be an object with a type")
    if kind == "json_object":
        return _json({"type": "object"}, "response_format", exact=True)
    if kind == "json_schema":
        given = wish.get("json_schema")
        if not isinstance(given, Mapping) or not isinstance(given.get("schema"), Mapping):
            raise TextError("response_format.json_schema needs a schema that is an object")
        return _json(
            given["schema"], "response_format.json_schema", exact=given.get("strict") is not False
        )
    if kind == "regex":
        return _pattern(wish.get("regex"))
    raise TextError(
        f"response_format.type is {str(kind)[:40]!r}: use text, json_object, json_schema or regex"
    )


def _pattern(regex: object) -> str:
    if not isinstance(regex, str) or not 1 <= len(regex) <= MAX_PATTERN_CHARS:
        raise TextError(f"response_format.regex must be 1 to {MAX_PATTERN_CHARS} characters")
    escaped = regex_to_lark(regex.replace("\n", r"\n"), "")
    return f"/{escaped}/"


def _json(schema: Mapping[str, Any], where: str, *, exact: bool) -> str:
    """`exact`: a schema with keywords that cannot be obeyed is refused when it is compiled."""
    known = _checked(schema, where, 0)
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": not exact}
    try:
        text = json.dumps({**known, "x-guidance": options}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TextError(f"{where} must be a JSON schema: {error}") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise TextError(
            f"{where}: the schema has {len(text)} characters, but at most {MAX_SCHEMA_CHARS} fit"
        )
    return f"%json {text}"


def _checked(value: Any, where: str, depth: int) -> Any:
    """The schema without formats nobody knows; TextError where it is nested too deeply."""
    if depth > MAX_SCHEMA_DEPTH:
        raise TextError(f"{where}: the schema is nested more than {MAX_SCHEMA_DEPTH} deep")
    if isinstance(value, Mapping):
        return {
            key: _checked(inner, where, depth + 1)
            for key, inner in value.items()
            if not (key == "format" and isinstance(inner, str) and inner not in _FORMATS)
        }
    if isinstance(value, list | tuple):
        return [_checked(inner, where, depth + 1) for inner in value]
    return value


def _call_rules(
    template: ChatTemplate, syntax: ToolSyntax, tools: list[Tool], *, parallel: bool
) -> list[str]:
    """`calls`: one call or, if `parallel`, several, in the family's own writing; and `after_tag`,
    the same behind the tag that opens them."""
    form = syntax.form

    def spelled(text: str) -> str:
        return _spelled(template, text)

    more = f"({spelled(form.between)} call)*" if parallel else ""
    # What opens every call stands apart from the rest of it, so that the first may stand open.
    tag = "" if form.before else syntax.tag_of(form.begin)
    rules = [
        f"calls: {spelled(form.before + tag)} after_tag",
        f"after_tag: untagged {more} {spelled(form.after)}",
        f"call: {spelled(tag)} untagged",
        "untagged: " + " | ".join(f"call_{i}" for i in range(len(tools))),
    ]
    begin = spelled(form.begin.removeprefix(tag))
    for i, tool in enumerate(tools):
        if not _NAME.fullmatch(tool.name):
            raise TextError(
                f"tool {tool.name[:60]!r}: a name holds 1 to 128 letters, digits, _ - . : or /"
            )
        given = tool.parameters if isinstance(tool.parameters, Mapping) else {}
        where, exact = f"tool {tool.name!r}", _is_strict(tool)
        schema = {"type": "object", **_checked(given, where, 0)}
        if syntax.bare_objects:
            rules.append(f"call_{i}: {_json(_whole_call(tool.name, schema), where, exact=exact)}")
            continue
        name, arguments = json.dumps(tool.name), _json(schema, where, exact=exact)
        rules.append(
            f"call_{i}: {begin} {name} {spelled(form.middle)} {arguments} {spelled(form.end)}"
        )
    return rules


def _whole_call(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A call that is one JSON object, so that it shares its first characters with other JSON."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": _moved(schema)},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(value: Any) -> Any:
    """A schema whose root has become the property `parameters` of another."""
    if isinstance(value, Mapping):
        return {
            key: f"#/properties/parameters{inner[1:]}"
            if key == "$ref" and isinstance(inner, str) and inner.startswith("#")
            else _moved(inner)
            for key, inner in value.items()
        }
    return [_moved(inner) for inner in value] if isinstance(value, list | tuple) else value


def _text_or_calls(template: ChatTemplate, syntax: ToolSyntax) -> list[str]:
    """Free text that may end in calls: where the first of them begins, the rest must be one."""
    if syntax.bare_objects:
        return ["start: PLAIN? | calls", r"PLAIN: /[^{\s](.|\n)*/"]
    opening = syntax.opening[0]
    if opening in template.tokenizer.special_ids:
        return ["start: TEXT calls?", _FREE]
    # Without a token of its own the tag is text, and the shortest stretch that ends in it is meant.
    return ["start: TEXT | open after_tag", f"open[lazy]: TEXT {json.dumps(opening)}", _FREE]


def _spelled(template: ChatTemplate, text: str) -> str:
    """`text` of a template as grammar: structural tokens by id, the rest as quoted text."""
    parts = template.tokenizer.split(text, allow_special=True)
    return " ".join(
        json.dumps(part, ensure_ascii=False) if isinstance(part, str) else f"<[{part}]>"
        for part in parts
    )

"""Random JSON schemas that any model can fill: every size in them is bounded."""

from __future__ import annotations

import random
from typing import Any

_WORDS = ("name", "city", "tags", "count", "is_open", "größe", "메모", "a b", "x-y", "items")


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """An object at the top, as clients ask for; anything below it."""
    if depth == 0:
        return _object(rng, 1)
    kinds = [_text, _pattern, _integer, _number, _choice, _constant, _flag, _nothing]
    if depth < 4:
        kinds += [_object, _array, _tuple, _either, _referred]
    schema: dict[str, Any] = rng.choice(kinds)(rng, depth + 1)
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_WORDS, rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    items = random_schema(rng, depth)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    first = [random_schema(rng, depth) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _either(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randint(2, 3))]}


def _referred(rng: random.Random, depth: int) -> dict[str, Any]:
    inner = random_schema(rng, depth)
    return {"allOf": [inner]} if rng.random() < 0.5 else {"anyOf": [inner, {"type": "null"}]}


def _text(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)}


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    patterns = (
        "^[A-Z]{2,4}-[0-9]{3}$",
        "^(yes|no|maybe)$",
        "^[a-z]+@[a-z]{2,8}$",
        "^[가-힣]{1,5}$",
    )
    formats = ("date", "ipv4", "uuid", "time")
    if rng.random() < 0.5:
        return {"type": "string", "format": rng.choice(formats)}
    return {"type": "string", "pattern": rng.choice(patterns), "maxLength": 24}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
    return schema | ({"multipleOf": 1} if rng.random() < 0.3 else {})


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.randint(1, 100)}


def _choice(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["red", "grün", 3, 4.5, None, True, ["x"], {"k": 1}], 3)}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["only", 7, False, {"a": [1, 2]}])}


def _flag(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["boolean", "null"] if rng.random() < 0.5 else "boolean"}


def _nothing(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "null"}

"""Chains of thought for those datasets of reasoning-gym that a small model can learn with steps.

Each function takes an entry (question, answer, metadata) and returns the steps before the answer,
or None where the entry is beyond digit-by-digit work. The digit steps are our own families'.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from mull.tasks.families.base_conversion import from_base_steps, in_base, to_base_steps
from mull.tasks.families.digits import add, divide, subtract
from mull.tasks.gym_expressions import product, reduce, signed_sum

Entry = Mapping[str, Any]

_MAX_SORTED = 12
_PRIMES = (2, 3, 5, 7)


def _expression(entry: Entry) -> str | None:
    """basic_arithmetic, chain_sum, products: one operation after the other, innermost first, and
    after each what is left of the expression, its parentheses and signs as they were."""
    lines: list[str] = []
    value = reduce(entry["metadata"]["expression"].strip(), lines)
    return "\n".join(lines) if str(value) == entry["answer"] else None


def _decimal_chain(entry: Entry) -> str | None:
    """How many decimals, then the running sum, every number in units of the last place."""
    first, *rest = entry["metadata"]["expression"].split()
    places = max(len(part.partition(".")[2]) for part in [first, *rest])
    total = _scaled(first, places)
    lines = [f"{places} {total}"]
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        step = _scaled(number, places) * (1 if operator == "+" else -1)
        lines.append(signed_sum(total, step))
        total += step
    lines.append(f"{places} {total}")  # side by side again: where the point goes
    return "\n".join(lines) if Decimal(total).scaleb(-places) == Decimal(entry["answer"]) else None


def _scaled(number: str, places: int) -> int:
    return int(Decimal(number).scaleb(places))


def _gcd(entry: Entry) -> str:
    first, *rest = entry["metadata"]["numbers"]
    lines = []
    for number in rest:
        found, steps = _euclid(first, number)
        lines += steps
        first = found
    return "\n".join(lines)


def _euclid(a: int, b: int) -> tuple[int, list[str]]:
    """Divisions with small quotients: differences, the multiple taken away before each."""
    width = max(len(str(a)), len(str(b)))
    a, b = max(a, b), min(a, b)
    lines = []
    while b:
        times, rest = divmod(a, b)
        product = f"~{str(b)[::-1]}*{times}=~{str(b * times)[::-1]} " if times > 1 else ""
        lines.append(product + subtract(a, b * times, width))
        a, b = b, rest
    return a, lines


def _lcm(entry: Entry) -> str | None:
    numbers = entry["metadata"]["numbers"]
    if len(numbers) != 2:
        return None
    a, b = max(numbers), min(numbers)
    divisor, lines = _euclid(a, b)
    lines.append(f"{b}/{divisor}: {divide(b, divisor)} {b // divisor}")
    lines.append(product(a, b // divisor))
    return "\n".join(lines)


def _base_conversion(entry: Entry) -> str | None:
    metadata = entry["metadata"]
    source, target = metadata["source_base"], metadata["target_base"]
    if max(source, target) > 10:
        return None
    value = metadata["decimal_value"]
    lines = []
    if source < 10:
        lines.append(from_base_steps(in_base(value, source), source))
    if target < 10:
        lines.append(to_base_steps(value, target))
    return "\n".join(lines)


def _letter_counting(entry: Entry) -> str:
    """A line per word: the letter sought, the word, its letters with the count so far."""
    letter = entry["metadata"]["target_letter"]
    count = 0
    lines = []
    for word in entry["metadata"]["span"]:
        counted = []
        for char in word.lower():
            count += char == letter
            counted.append(f"{char}{count}")
        lines.append(f"{letter} {word}: {' '.join(counted)}")
    return "\n".join(lines)


def _spell_backward(entry: Entry) -> str:
    numbered = [f"{char}{index}" for index, char in enumerate(entry["metadata"]["word"], 1)]
    return f"{' '.join(numbered)}\n{' '.join(reversed(numbered))}"


def _word_sequence_reversal(entry: Entry) -> str:
    numbered = [f"{index} {word}" for index, word in enumerate(entry["metadata"]["words"], 1)]
    return f"{' '.join(numbered)}\n{' '.join(reversed(numbered))}"


def _fraction(entry: Entry) -> str | None:
    """Try the primes up to 7 on both numbers, each as often as it divides them."""
    metadata = entry["metadata"]
    top, bottom = metadata["numerator"], metadata["denominator"]
    lines = []
    for prime in _PRIMES:
        while True:
            lines.append(f"{prime}: {divide(top, prime)}")
            if top % prime:
                break
            lines[-1] += f" ; {divide(bottom, prime)}"
            if bottom % prime:
                break
            top, bottom = top // prime, bottom // prime
            lines[-1] += f" {top}/{bottom}"
    is_done = (top, bottom) == (
        metadata["simplified_numerator"],
        metadata["simplified_denominator"],
    )
    return "\n".join(lines) if is_done else None


def _count_bits(entry: Entry) -> str:
    """Halve until nothing is left; the count of remainders of 1 behind the semicolon."""
    number, count = entry["metadata"]["number"], 0
    lines = []
    while number:
        count += number % 2
        lines.append(f"{number}/2={number // 2} {number % 2};{count}")
        number //= 2
    return "\n".join(lines)


def _leg_counting(entry: Entry) -> str:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total = 0
    lines = []
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{count}*{ANIMALS[animal]}={legs} {total}+{legs}={total + legs}")
        total += legs
    return "\n".join(lines)


def _calendar(entry: Entry) -> str | None:
    """Day of the year from the days before its month, then the remainder by 7; how the year began
    is learnt with it."""
    if entry["metadata"]["task"] != "weekday_of_date":
        return None
    date = datetime.date.fromisoformat(entry["metadata"]["target_date"])
    before = (date.replace(day=1) - datetime.date(date.year, 1, 1)).days
    return f"{before}+{date.day}={before + date.day}\n{divide(before + date.day, 7)}"


def _simple_equation(entry: Entry) -> str | None:
    """a*x + b = c: take b away, divide by a."""
    left, _, right = entry["metadata"]["equation"].partition(" = ")
    name = entry["metadata"]["variable"]
    at = [reduce(re.sub(rf"\b{name}\b", str(x), left).strip(), []) for x in (0, 1, 2)]
    if None in at or not right.lstrip("-").isdigit():
        return None
    constant, slope = at[0], at[1] - at[0]  # type: ignore[operator]
    if slope == 0 or at[2] - at[1] != slope:  # type: ignore[operator]
        return None
    value = int(right)
    lines = []
    if constant:
        lines.append(signed_sum(value, -constant))
        value -= constant
    if slope != 1:
        lines.append(f"{value}/{slope}: {divide(abs(value), abs(slope))}")
    return "\n".join(lines)


def _simple_geometry(entry: Entry) -> str | None:
    """(sides - 2) * 180 less the sum of the known angles."""
    sides, angles = entry["metadata"]["n_sides"], entry["metadata"]["known_angles"]
    if any(angle != int(angle) for angle in angles):
        return None
    whole = (sides - 2) * 180
    first, *rest = map(int, angles)
    lines = [f"{sides}-2={sides - 2} {sides - 2}*180={whole}"]
    for angle in rest:
        lines.append(add(first, angle, 4))
        first += angle
    if first > whole:
        return None
    lines.append(subtract(whole, first, 4))
    return "\n".join(lines)


def _complex(entry: Entry) -> str | None:
    """The four parts, then real and imaginary part; division by the conjugate of the divisor."""
    metadata = entry["metadata"]
    (a, b), (c, d) = ([int(part) for part in metadata[name]] for name in ("num1", "num2"))
    lines = [f"{a} {b} {c} {d}"]
    match metadata["operation"]:
        case "+":
            lines += [signed_sum(a, c), signed_sum(b, d)]
        case "-":
            lines += [signed_sum(a, -c), signed_sum(b, -d)]
        case "*":
            lines += _two_products(a, c, b, d, -1)
            lines += _two_products(a, d, b, c, 1)
        case "/":
            lines += _two_products(a, c, b, d, 1)
            lines += _two_products(b, c, a, d, -1)
            lines += _two_products(c, c, d, d, 1)
            norm = c * c + d * d
            for part in (a * c + b * d, b * c - a * d):
                lines.append(f"{part}/{norm}={part // norm}")
        case _:
            return None
    return "\n".join(lines)


def _two_products(a: int, b: int, c: int, d: int, sign: int) -> list[str]:
    """a*b + sign*c*d, the products from memory."""
    products = f"{a}*{b}={a * b} {c}*{d}={c * d}"
    return [products, signed_sum(a * b, sign * c * d)]


def _siblings(entry: Entry) -> str | None:
    """aiw: the brother's sisters are hers and herself."""
    if entry["metadata"]["task_type"] != "siblings":
        return None
    told = {int(number) for number in re.findall(r"\d+", entry["question"])}
    others = int(entry["answer"]) - 1
    return f"{others}+1={others + 1}" if others in told else None


def _number_sorting(entry: Entry) -> str | None:
    left = list(entry["metadata"]["original_numbers"])
    if len(left) > _MAX_SORTED:
        return None
    goes_down = entry["metadata"]["direction"] == "descending"
    lines = []
    for number in sorted(left, key=Decimal, reverse=goes_down):
        left.remove(number)
        lines.append(" ".join([f"{number};", *left]))
    return "\n".join(lines)


def _family(entry: Entry) -> str | None:
    """family_relationships: who is asked about, and their numbers in the order of the story."""
    story, _, asked = entry["question"].partition("\n\n")
    relation = entry["metadata"]
    names = list(dict.fromkeys(re.findall(r"\b[A-Z][a-z]+\b", story)))
    members = [name for name in names if name != "They"]
    first, second = relation["person1"], relation["person2"]
    if {first, second} - set(members) or first not in asked or second not in asked:
        return None
    numbered = " ".join(f"{index} {name}" for index, name in enumerate(members, 1))
    at = (members.index(first) + 1, members.index(second) + 1)
    return f"{numbered}\n{first} {at[0]} {second} {at[1]}"


def _syllogism(entry: Entry) -> str | None:
    """The terms numbered as the premises name them, and the conclusion in those numbers."""
    told = re.findall(r"^\d\. \w+ (\w+) are (?:not )?(\w+)$", entry["question"], re.MULTILINE)
    asked = re.search(
        r"follow that:\n(\w+) (\w+) are (not )?(\w+)\?", entry["question"], re.MULTILINE
    )
    names = list(dict.fromkeys(name for pair in told for name in pair))
    if asked is None or not {asked[2], asked[4]} <= set(names):
        return None
    numbered = " ".join(f"{index} {name}" for index, name in enumerate(names, 1))
    subject, predicate = names.index(asked[2]) + 1, names.index(asked[4]) + 1
    return f"{numbered}\n{asked[1]} {subject} {asked[3] or ''}{predicate}"


STEPS: dict[str, Callable[[Entry], str | None]] = {
    "aiw": _siblings,
    "base_conversion": _base_conversion,
    "basic_arithmetic": _expression,
    "calendar_arithmetic": _calendar,
    "chain_sum": _expression,
    "complex_arithmetic": _complex,
    "count_bits": _count_bits,
    "decimal_chain_sum": _decimal_chain,
    "family_relationships": _family,
    "fraction_simplification": _fraction,
    "gcd": _gcd,
    "lcm": _lcm,
    "leg_counting": _leg_counting,
    "letter_counting": _letter_counting,
    "number_sorting": _number_sorting,
    "products": _expression,
    "simple_equations": _simple_equation,
    "simple_geometry": _simple_geometry,
    "spell_backward": _spell_backward,
    "syllogism": _syllogism,
    "word_sequence_reversal": _word_sequence_reversal,
}

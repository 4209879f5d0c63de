"""How answers to reasoning-gym's datasets are judged: exactly.

Its own scorers give marks for closeness, for containing the answer, within tolerances, and some
evaluate what the model wrote. So an answer is compared with the reference here; only where several
answers are right does its scorer decide, at a score of exactly 1.0, and only over answers made of
the characters a right one can have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from mull.tasks.expression import uses_numbers_to_reach
from mull.tasks.task import Problem, Verdict
from mull.tasks.verify import judge_by, judge_list, judge_text, parse_number

# answer, entry -> score from 0 to 1
Scorer = Callable[[str, Mapping[str, Any]], float]

REFUSED = {
    "composite": "it mixes other datasets; use the task `mixture`",
    "propositional_logic": "its scorer accepts a premise as conclusion, and it has no reference",
}

_LISTS = {
    "list_functions",
    "number_filtering",
    "number_sorting",
    "word_sequence_reversal",
    "word_sorting",
}
_CASELESS = {
    "acre",
    "calendar_arithmetic",
    "color_cube_rotation",
    "course_schedule",
    "family_relationships",
    "game_of_life_halting",
    "isomorphic_strings",
    "mahjong_puzzle",
    "ransom_note",
    "syllogism",
    "zebra_puzzles",
}
_JSON = r'[\[\]{}"\w:,.>()+\- \n]+'
# Several answers are right: the characters a right one is made of.
_SEVERAL = {
    "boxnet": _JSON,
    "cryptarithm": r"[A-Z0-9=,\s]+",
    "graph_color": _JSON,
    "group_anagrams": _JSON,
    "jugs": _JSON,
    "kakurasu": r"[01\s]+",
    "knight_swap": _JSON,
    "knights_knaves": r"[A-Za-z,.\s]+",
    "palindrome_generation": r"[a-z]+",
    "palindrome_partitioning": _JSON,
    "quantum_lock": r"[ABC→,\s]+",
    "rubiks_cube": r"[A-Za-z0-9'\s]+",
    "rush_hour": r"[A-Z0-9+\-\s]+",
    "shortest_path": r"[a-z\s]+",
    "sokoban": r"[LRUD]+",
    "tower_of_hanoi": r"[A-Za-z0-9\s]+",
    "word_ladder": r"[A-Za-z,\s]+",
}
# Its scorer hands these to sympy, which runs Python's eval: only names of mathematics pass, and no
# powers that could grow without end.
_ALGEBRA = {"intermediate_integration", "polynomial_multiplication", "simple_integration"}
_TERM = re.compile(
    r"\s*(?:[0-9]{1,12}(?![0-9])|(?:a?(?:sin|cos|tan)h?|exp|log|sqrt|pi|[A-Za-z])(?![A-Za-z0-9_])|[-+/(),]|\*)"
)
_POWER = re.compile(r"[A-Za-z)]\s*\*\*\s*(?:[0-9]{1,2}(?![0-9])|\(-?[0-9]{1,2}(?:/[0-9]{1,2})?\))")
_MAX_ALGEBRA = 400
_MAX_POWERS_OF_BRACKETS = 2


def needs_entry(dataset: str) -> bool:
    """True if judging needs what reasoning-gym knows besides question and answer."""
    return dataset in _SEVERAL or dataset in _ALGEBRA or dataset in _BY_ENTRY


def judge_gym(dataset: str, problem: Problem, text: str, scorer: Scorer) -> Verdict:
    """The verdict over text; scorer is asked only where several answers are right."""
    entry = problem.data.get("entry", {})

    def scores_full(answer: str, entry: Mapping[str, Any]) -> bool:
        # It raises anything over an answer it does not expect, which is then not a right one.
        try:
            return scorer(answer, entry) == 1.0
        except Exception:
            return False

    if dataset in _LISTS:
        return judge_list(text, problem.answer)
    if dataset in _BY_ENTRY:
        return judge_by(text, lambda answer: _BY_ENTRY[dataset](answer, entry))
    if dataset in _SEVERAL or dataset in _ALGEBRA:
        return judge_by(
            text,
            lambda answer: _is_admitted(dataset, answer, problem) and scores_full(answer, entry),
        )
    return judge_text(text, problem.answer, _SPELLINGS.get(dataset, _as_is(dataset)))


def reference_answer(dataset: str, answer: str) -> str:
    """The reference as the question wants it written."""
    return _three_figures(answer) if dataset == "power_function" else answer


def _is_admitted(dataset: str, answer: str, problem: Problem) -> bool:
    """Whether the answer is of the form a right one has, so that the scorer may see it."""
    if dataset in _ALGEBRA:
        return _is_algebra(answer)
    if dataset == "knights_knaves":  # its scorer passes over words that it does not know
        return _words(answer) == _words(problem.answer)
    return re.fullmatch(_SEVERAL[dataset], answer) is not None


def _words(answer: str) -> list[str]:
    return sorted(re.findall(r"[a-z]+", answer.lower()))


def _as_is(dataset: str) -> Callable[[str], str]:
    return str.casefold if dataset in _CASELESS else lambda answer: answer


def _is_algebra(answer: str) -> bool:
    if len(answer) > _MAX_ALGEBRA or answer.count("**") != len(_POWER.findall(answer)):
        return False
    if len(re.findall(r"\)\s*\*\*", answer)) > _MAX_POWERS_OF_BRACKETS:
        return False
    position = 0
    while match := _TERM.match(answer, position):
        position = match.end()
    return position == len(answer.rstrip())


def _reaches(target: Callable[[Mapping[str, Any]], int]) -> Callable[[str, Mapping], bool]:
    def is_right(answer: str, entry: Mapping[str, Any]) -> bool:
        metadata = entry["metadata"]
        return uses_numbers_to_reach(answer, metadata["numbers"], target(metadata))

    return is_right


def _is_queens_board(answer: str, entry: Mapping[str, Any]) -> bool:
    return answer.split() in [board.split() for board in entry["metadata"]["valid_answers"]]


_BY_ENTRY: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "countdown": _reaches(lambda metadata: metadata["target"]),
    "puzzle24": _reaches(lambda metadata: 24),
    "n_queens": _is_queens_board,
}


def _three_figures(answer: str) -> str:
    """Scientific notation with three significant figures, the form power_function asks for."""
    if not re.fullmatch(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?", answer):
        return answer
    try:
        return f"{Decimal(answer):.2e}"
    except InvalidOperation:
        return answer


def _asked_figures(answer: str) -> str:
    """As asked, digits after the third figure being a different answer."""
    is_asked = re.fullmatch(r"[+-]?[0-9]\.[0-9]{2}[eE][+-]?[0-9]{1,3}", answer)
    return _three_figures(answer) if is_asked else answer


def _factors(answer: str) -> str:
    """`2 × 2 × 3` in any order, with any of the usual signs."""
    parts = re.split(r"\s*[×x*]\s*", answer)
    if not all(re.fullmatch(r"[1-9][0-9]{0,30}", part) for part in parts):
        return answer
    return " × ".join(sorted(parts, key=lambda part: (len(part), part)))


def _complex(answer: str) -> str:
    """`-15.0 + 3.0i` whatever the spaces and trailing zeros; real or imaginary part alone is 0."""
    match = re.fullmatch(
        r"([+-]?[0-9.]{1,40})?(?:([+-][0-9.]{0,40}|^[0-9.]{0,40})i)?", answer.replace(" ", "")
    )
    if not answer or match is None:
        return answer
    real, imaginary = match[1] or "0", match[2] if match[2] is not None else "0"
    imaginary = imaginary + "1" if imaginary in ("", "+", "-") else imaginary
    parts = parse_number(real), parse_number(imaginary)
    return answer if None in parts else f"{parts[0]} {parts[1]}i"


def _solutions(answer: str) -> str:
    """Numbers in any order."""
    numbers = [parse_number(part.strip()) for part in answer.split(",")]
    known = [number for number in numbers if number is not None]
    return answer if len(known) < len(numbers) else ", ".join(map(str, sorted(known)))


def _hexadecimal(answer: str) -> str:
    match = re.fullmatch(r"(-?)0x0*([0-9a-f]{1,200})", answer.lower())
    return f"{match[1]}0x{match[2]}" if match else answer


def _json(answer: str) -> str:
    try:
        return json.dumps(json.loads(answer), sort_keys=True)
    except (ValueError, RecursionError):
        return answer


_SPELLINGS: dict[str, Callable[[str], str]] = {
    "advanced_geometry": lambda answer: answer.removesuffix("°").replace(" ", ""),
    "bitwise_arithmetic": _hexadecimal,
    "codeio": _json,
    "complex_arithmetic": _complex,
    "game_of_life": _json,
    "polynomial_equations": _solutions,
    "power_function": _asked_figures,
    "prime_factorization": _factors,
}

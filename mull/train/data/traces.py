"""From a task's problem to something to learn from: clean chains of thought, and worse ones.

A base model that has only seen clean chains leaves nothing for reinforcement learning to find, one
that has seen none never finds them. So a recipe mixes forms: the same problem told cleanly, without
tags, with steps left out, with slips, with second thoughts, or as a guess.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mull.errors import RecipeError
from mull.tasks.task import Problem, Split, Task
from mull.train.recipe_parts import Form

# Of a step being wrong, in the form "slips"; of a guess being right; of a step being left out.
SLIP_SHARE, RIGHT_GUESSES, LEFT_OUT = 0.06, 0.15, 0.4

# A chain of thought with several sums in a line counts each sum as a step.
_PIECE = re.compile(r"\S+")
_NUMBER = re.compile(r"\d+")
_WITHOUT_STEPS: tuple[Form, ...] = ("guess", "direct")
# Some problems of a task may have no steps and are passed over; none in so many means all.
_MOST_WITHOUT = 500


class Mark(enum.Enum):
    """What an assistant says that is no text of its own."""

    CLOSE = enum.auto()  # a newline, the tag that closes the thinking, a blank line
    CLOSE_EMPTY = enum.auto()  # the same where nothing was thought: no newline before the tag
    BLANK_LINE = enum.auto()


@dataclass(frozen=True)
class Trace:
    """A question and what is said to it; the end-of-sentence token follows by itself.

    prompt: "open", the chat's with the thinking begun; "closed", with the thinking skipped;
    "plain", the question as text and a newline, without any tag.
    """

    form: Form
    question: str
    said: tuple[str | Mark, ...]
    prompt: Literal["open", "closed", "plain"] = "open"


def trace(problem: Problem, form: Form, rng: random.Random, other: str | None = None) -> Trace:
    """The problem told in that form. other: the answer to another problem of its kind, a plausible
    guess. Raises RecipeError where the form needs steps and the task has none."""
    if form == "direct":
        return Trace(form, problem.question, (problem.answer,), prompt="closed")
    if form == "guess":
        said = (Mark.CLOSE_EMPTY, guessed(problem.answer, rng, other))
        return Trace(form, problem.question, said)
    steps, answer = problem.steps, problem.answer
    if steps is None:
        raise RecipeError(
            f"task {problem.family} has no steps to learn the form {form!r} from; "
            f"use {' or '.join(_WITHOUT_STEPS)}, or what a reject stage kept"
        )
    if form == "worked":
        return Trace(form, problem.question, (steps, Mark.BLANK_LINE, answer), prompt="plain")
    if form == "malformed":
        return Trace(form, problem.question, _malformed(steps, answer, rng))
    if form == "skipped":
        steps = with_steps_left_out(steps, rng)
    elif form == "slips":
        steps, answer = with_slips(steps, answer, rng)
    elif form == "recheck":
        steps = with_second_thoughts(steps, rng)
    return Trace(form, problem.question, (steps, Mark.CLOSE, answer))


def traces(
    task: Task, split: Split, seed: int, forms: Mapping[Form, float]
) -> Iterator[tuple[Problem, Trace]]:
    """Every problem of the task with one trace each, its form drawn by share; the trace at an index
    depends on the seed, the index and the problems before it alone. Problems that lack the steps
    their form needs are passed over."""
    names, shares = list(forms), list(forms.values())
    if not any(shares):
        raise RecipeError("data.forms: every share is 0; give at least one form a share")
    latest: dict[str, str] = {}
    lacking: list[tuple[Problem, Form]] = []  # since the latest one that was told
    for index, problem in enumerate(task.problems(split, seed)):
        rng = random.Random(f"trace/{seed}/{index}")
        form = rng.choices(names, shares)[0]
        if problem.steps is None and form not in _WITHOUT_STEPS:
            lacking.append((problem, form))
            if len(lacking) < _MOST_WITHOUT:
                continue
        else:
            lacking.clear()
        yield problem, trace(problem, form, rng, latest.get(problem.family))
        latest[problem.family] = problem.answer
    for problem, form in lacking[:1]:
        if not latest:  # nothing was told: the task has no steps at all
            trace(problem, form, random.Random(0))


def guessed(answer: str, rng: random.Random, other: str | None = None) -> str:
    """An answer that looks right: the right one now and then, else other digits in its place, or
    the answer to another problem, or its own letters in another order."""
    if rng.random() < RIGHT_GUESSES:
        return answer
    if _NUMBER.search(answer):
        wrong = re.sub(r"\d", lambda digit: _other_digit(digit[0], rng, keep=0.4), answer)
        return wrong if wrong != answer else with_wrong_digit(answer, rng)
    if other is not None and other != answer:
        return other
    letters = list(answer)
    rng.shuffle(letters)
    return "".join(letters).strip() or answer


def with_steps_left_out(steps: str, rng: random.Random) -> str:
    """Some lines fewer, never the last; in a text of one or two lines, some words fewer."""
    separator = "\n" if steps.count("\n") >= 2 else " "
    parts = steps.split(separator)
    if len(parts) == 1:
        return steps
    gone = {rng.randrange(len(parts) - 1)}
    gone |= {index for index in range(len(parts) - 1) if rng.random() < LEFT_OUT}
    return separator.join(part for index, part in enumerate(parts) if index not in gone)


def with_slips(steps: str, answer: str, rng: random.Random) -> tuple[str, str]:
    """A wrong digit in 6 % of the steps; half of them are noticed by nobody and what follows says
    the right number, in the others it goes on with the wrong one, the answer too."""
    at = 0
    while (piece := _PIECE.search(steps, at)) is not None:
        at = piece.end()
        if rng.random() >= SLIP_SHARE or not _NUMBER.search(piece[0]):
            continue
        wrong = with_wrong_digit(piece[0], rng)
        rest = steps[at:]
        if rng.random() < 0.5:
            old, new = _NUMBER.findall(piece[0])[-1], _NUMBER.findall(wrong)[-1]
            rest, answer = _renamed(rest, old, new), _renamed(answer, old, new)
        steps = steps[: piece.start()] + wrong + rest
    return steps, answer


def with_second_thoughts(steps: str, rng: random.Random) -> str:
    """One line said wrongly and mended, or said and said again to check it."""
    lines = steps.split("\n")
    index = rng.randrange(max(1, len(lines) - 1))
    line = lines[index]
    if rng.random() < 0.5 and _NUMBER.search(line):
        again = [with_wrong_digit(line, rng), "Wait, that is wrong.", line]
    else:
        again = [line, "Check.", line]
    return "\n".join([*lines[:index], *again, *lines[index + 1 :]])


def with_wrong_digit(text: str, rng: random.Random) -> str:
    """One digit of the last number changed (a result usually stands last); as it is without one."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return text
    at = rng.randrange(numbers[-1].start(), numbers[-1].end())
    return text[:at] + _other_digit(text[at], rng) + text[at + 1 :]


def _other_digit(digit: str, rng: random.Random, *, keep: float = 0.0) -> str:
    if keep and rng.random() < keep:
        return digit
    return rng.choice([other for other in "0123456789" if other != digit])


def _renamed(text: str, old: str, new: str) -> str:
    """A number under its new name; those of one digit stand for too many things to be renamed."""
    return re.sub(rf"(?<!\d){old}(?!\d)", new, text) if len(old) > 1 else text


def _malformed(steps: str, answer: str, rng: random.Random) -> tuple[str | Mark, ...]:
    kinds: list[tuple[str | Mark, ...]] = [
        (f"{steps}\n{answer}",),  # never closed
        (steps, Mark.CLOSE),  # no answer
        (steps, Mark.CLOSE, f"{answer}\n{answer}"),
        (steps, Mark.CLOSE, answer, Mark.CLOSE, answer),
        (steps[: rng.randrange(len(steps) + 1)],),  # breaks off
    ]
    return rng.choice(kinds)

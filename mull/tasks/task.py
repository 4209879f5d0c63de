"""What a task is: an endless supply of problems with checkable answers, and a verifier.

Train, validation and test are told apart by a hash of the question itself, or of what the task says
makes two questions the same, so they never overlap, whatever seeds or settings made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Split = Literal["train", "validation", "test"]

# Of 20 questions one is for validation and two are for test.
_PARTS = 20


class Verdict(StrEnum):
    """What became of an answer. Only CORRECT earns anything; a failed verifier says nothing about
    the answer and is counted apart."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    TRUNCATED = "truncated"
    VERIFIER_FAILED = "verifier_failed"


@dataclass(frozen=True)
class Problem:
    """One question. steps: a program's own chain of thought that ends in the answer, without tags,
    None where the task has none. data: what a verifier needs besides the answer. split_key: equal
    for questions that are the same in other words and belong into one split; None: the wording."""

    question: str
    answer: str
    family: str
    level: int = 0
    steps: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    split_key: str | None = None

    @property
    def split(self) -> Split:
        return split_of(self.question if self.split_key is None else self.split_key)


class Task(Protocol):
    """A source of problems. The same split and seed give the same problems in the same order."""

    name: str

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Endless where the task can make problems, else each of its problems once."""
        ...

    def verify(self, problem: Problem, text: str) -> Verdict:
        """text: the answer after the thinking. CORRECT, WRONG or UNPARSABLE; exact, quick to be
        killed (see VerifierPool)."""
        ...


def split_of(question: str) -> Split:
    """The one split a question, or what stands for several of them, belongs to."""
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    part = int.from_bytes(digest[:8], "big") % _PARTS
    return "validation" if part == 0 else "test" if part <= 2 else "train"

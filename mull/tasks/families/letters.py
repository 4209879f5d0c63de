"""Letters of a word: counting one, reversing the word, shifting every letter.

Words are drawn letter by letter, so that none is known by heart.
"""

from __future__ import annotations

import random
from string import ascii_lowercase

from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem

_COUNT = (
    'How many times does the letter "{letter}" appear in "{word}"?',
    'Count the letter "{letter}" in "{word}".',
)
_REVERSE = ('Reverse the word "{word}".', 'Spell "{word}" backwards.')
_SHIFT = (
    'Shift every letter of "{word}" forward by {shift}.',
    'Encrypt "{word}" with a Caesar shift of {shift}.',
)


class LetterCounting(Family):
    """How often a letter occurs in a word. Levels: level + 4 letters, of four kinds, so that the
    letter often repeats. Each letter is written with the count so far: two symbols a letter."""

    name = "letter_counting"
    hardest = 16

    def make(self, rng: random.Random, level: int) -> Problem:
        kinds = rng.sample(ascii_lowercase, 4)
        word = "".join(rng.choices(kinds, k=level + 4))
        letter = rng.choice(kinds)
        counted = [f"{char}{word[: index + 1].count(letter)}" for index, char in enumerate(word)]
        answer = str(word.count(letter))
        question = worded(_COUNT, letter=letter, word=word)
        return self.problem(question, answer, level, f"{' '.join(counted)}\n{answer}")


class Reversal(Family):
    """A word backwards. Levels: level + 3 letters. The letters are numbered, then listed from the
    last number down: four symbols a letter."""

    name = "reversal"
    hardest = 16

    def make(self, rng: random.Random, level: int) -> Problem:
        word = _word(rng, level + 3)
        numbered = [f"{char}{index}" for index, char in enumerate(word, 1)]
        answer = word[::-1]
        steps = f"{' '.join(numbered)}\n{' '.join(reversed(numbered))}\n{answer}"
        return self.problem(worded(_REVERSE, word=word), answer, level, steps)


class Caesar(Family):
    """Every letter moved on in the alphabet, z to a. Levels: level + 3 letters, shifts 1 to 9. One
    step `letter>letter` each."""

    name = "caesar"
    hardest = 16

    def make(self, rng: random.Random, level: int) -> Problem:
        word, shift = _word(rng, level + 3), rng.randint(1, 9)
        answer = "".join(ascii_lowercase[(ord(char) - ord("a") + shift) % 26] for char in word)
        steps = " ".join(f"{old}>{new}" for old, new in zip(word, answer, strict=True))
        question = worded(_SHIFT, word=word, shift=shift)
        return self.problem(question, answer, level, f"{steps}\n{answer}")


def _word(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(ascii_lowercase, k=length))

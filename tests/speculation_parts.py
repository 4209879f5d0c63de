"""What the tests of speculation replace: the clock, and where guesses come from."""

from __future__ import annotations

import random
from typing import Any

from engine_parts import make_engine

from mull.engine.engine import Engine
from mull.engine.lookup import PromptLookup
from mull.engine.speculation import Speculation
from mull.engine.step_costs import StepCosts
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer


class FreeRows(StepCosts):
    """Every step takes as long as any other: all that can be guessed is."""

    def cost(self, rows: int) -> float:
        return 1.0

    def observe(self, rows: int, seconds: float) -> None:
        pass


class CostlyRows(FreeRows):
    """A step takes as long as its rows are many: nothing is ever worth a guess."""

    def cost(self, rows: int) -> float:
        return float(rows)


class Eager(Speculation):
    """Looks for guesses after every token."""

    steps_before_a_look = 1  # type: ignore[assignment]


def eager_engine(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> Engine:
    """Drafts whatever can be drafted, at every step."""
    engine = make_engine(model, tokenizer, **options)
    engine.speculation = Eager(engine.scheduler, mode=engine.speculation.mode)
    engine.speculation.costs = FreeRows()
    return engine


def prophetic_engine(
    model: CausalLM, tokenizer: Tokenizer, answers: dict[tuple[int, ...], list[int]], **options: Any
) -> Engine:
    """Guesses what the prompt's answer is known to be, up to 5 tokens of which every fourth is
    wrong: drafts end right, wrong from the start, and at every place between."""
    engine = eager_engine(model, tokenizer, **options)
    dice = random.Random(0)

    class Prophet(PromptLookup):
        def __init__(self, ids: list[int], start: int) -> None:
            self.ids, self.start = ids, start
            self.answer = answers[tuple(ids[:start])]

        def catch_up(self) -> bool:
            return True

        def chances(self, most: int, *, least: float) -> list[float]:
            return [0.9] * min(most, 5)

        def propose(self, most: int) -> list[int]:
            said = len(self.ids) - self.start
            true = (self.answer[said:] + [0] * most)[:most]
            return [dice.randrange(256) if dice.random() < 0.25 else token for token in true]

    engine.speculation.new_lookup = Prophet
    return engine

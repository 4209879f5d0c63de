"""Families of problems with a program-made chain of thought, by name."""

from __future__ import annotations

from mull.tasks.families.addition import Addition
from mull.tasks.families.base_conversion import BaseConversion
from mull.tasks.families.boolean import Boolean
from mull.tasks.families.chain import Chain
from mull.tasks.families.clock import Clock, Weekday
from mull.tasks.families.countdown import Countdown
from mull.tasks.families.digit_sum import DigitSum
from mull.tasks.families.division import Division
from mull.tasks.families.equation import Equation
from mull.tasks.families.family import Family
from mull.tasks.families.gcd import Gcd
from mull.tasks.families.letters import Caesar, LetterCounting, Reversal
from mull.tasks.families.multiplication import Multiplication
from mull.tasks.families.product_sum import ProductSum
from mull.tasks.families.sequence import NumberSequence
from mull.tasks.families.sorting import Sorting

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        Multiplication,
        Division,
        Chain,
        BaseConversion,
        Addition,
        Gcd,
        Sorting,
        LetterCounting,
        Reversal,
        Caesar,
        DigitSum,
        Equation,
        Clock,
        Weekday,
        Boolean,
        NumberSequence,
        Countdown,
        ProductSum,
    )
}

__all__ = ["FAMILIES", "Family"]

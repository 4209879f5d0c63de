"""Families: right answers by another computation, steps that hold, splits that never meet."""

import ast
import datetime
import math
import re
from fractions import Fraction
from itertools import islice

import pytest

from mull.errors import TaskError
from mull.tasks import Problem, Verdict, load_task, split_of
from mull.tasks.families import FAMILIES

SPLITS = ("train", "validation", "test")
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def evaluated(expression: str, **names: object) -> object:
    ast.parse(expression, mode="eval")
    return eval(expression, {"__builtins__": {}}, names)


def product(problem: Problem) -> str:
    return str(math.prod(numbers(problem.question)))


def quotient(problem: Problem) -> str:
    a, b = sorted(numbers(problem.question), reverse=True)
    return "{} remainder {}".format(*divmod(a, b))


def sum_or_difference(problem: Problem) -> str:
    a, b = numbers(problem.question)
    is_sum = "+" in problem.question or "Add" in problem.question
    return str(a + b if is_sum else abs(a - b))


def chain_value(problem: Problem) -> str:
    if "Start with" not in problem.question:
        return str(evaluated(problem.question.removeprefix("What is ").rstrip("?")))
    start, *operations = problem.question.partition(". What")[0].split(", ")
    value = numbers(start)[0]
    for operation in operations:
        word, *_, operand = operation.split()
        number = int(operand)
        value = {"add": value + number, "subtract": value - number, "multiply": value * number}[
            word
        ]
    return str(value)


def converted(problem: Problem) -> str:
    number, *bases = numbers(problem.question)
    base = next(base for base in bases if base != 10)
    if re.search(rf"(from base {base}|in base {base} as)", problem.question):
        return str(int(str(number), base))
    digits = []
    while number:
        digits.append(str(number % base))
        number //= base
    return "".join(reversed(digits)) or "0"


def in_order(problem: Problem) -> str:
    goes_down = "decreasing" in problem.question or "largest to" in problem.question
    return ", ".join(map(str, sorted(numbers(problem.question), reverse=goes_down)))


def quoted(problem: Problem) -> list[str]:
    return re.findall(r'"(\w+)"', problem.question)


def letter_count(problem: Problem) -> str:
    letter, word = sorted(quoted(problem), key=len)
    return str(word.count(letter))


def shifted(problem: Problem) -> str:
    shift = numbers(problem.question)[-1]
    letters = "abcdefghijklmnopqrstuvwxyz" * 2
    return "".join(letters[letters.index(char) + shift] for char in quoted(problem)[0])


def unknown(problem: Problem) -> str:
    left, right = re.search(r"(?:Solve|if) (.*) = (\d+)", problem.question).groups()
    return str(next(x for x in range(100) if evaluated(left, x=x) == int(right)))


def time_after(problem: Problem) -> str:
    hour, minute, *spans = numbers(problem.question)
    time = datetime.datetime(2000, 1, 1, hour, minute)
    for hours, minutes in zip(spans[::2], spans[1::2], strict=True):
        time += datetime.timedelta(hours=hours, minutes=minutes)
    return time.strftime("%H:%M")


def day_after(problem: Problem) -> str:
    today = next(day for day in DAYS if day in problem.question)
    monday = datetime.date(2024, 1, 1) + datetime.timedelta(days=DAYS.index(today))
    return DAYS[(monday + datetime.timedelta(days=numbers(problem.question)[0] % 7000)).weekday()]


def truth(problem: Problem) -> str:
    expression = re.search(r"\(.*\)", problem.question)[0]
    return str(evaluated(expression.replace("xor", "!="), true=True))


def next_term(problem: Problem) -> str:
    """The polynomial through all terms, one further (Lagrange)."""
    terms = numbers(problem.question.partition("with")[0])
    value = Fraction(0)
    for i, term in enumerate(terms):
        weight = Fraction(term)
        for j in range(len(terms)):
            if j != i:
                weight *= Fraction(len(terms) - j, i - j)
        value += weight
    return str(value)


def right_expression(problem: Problem) -> str:
    *given, target = numbers(problem.question)
    assert sorted(numbers(problem.answer)) == sorted(given)
    assert evaluated(problem.answer) == target
    return problem.answer


SOLVERS = {
    "multiplication": product,
    "division": quotient,
    "addition": sum_or_difference,
    "chain": chain_value,
    "base_conversion": converted,
    "gcd": lambda problem: str(math.gcd(*numbers(problem.question))),
    "sorting": in_order,
    "letter_counting": letter_count,
    "reversal": lambda problem: quoted(problem)[0][::-1],
    "caesar": shifted,
    "digit_sum": lambda problem: str(sum(map(int, str(numbers(problem.question)[0])))),
    "equation": unknown,
    "clock": time_after,
    "weekday": day_after,
    "boolean": truth,
    "sequence": next_term,
    "countdown": right_expression,
    "product_sum": lambda problem: str(
        evaluated(problem.question.partition(" ")[2].strip("is ?."))
    ),
}


def drawn(name: str, count: int, split: str = "train", seed: int = 0, **settings) -> list[Problem]:
    return list(islice(load_task(name, **settings).problems(split, seed), count))


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_right_and_end_the_steps_at_every_level(name):
    for level in range(FAMILIES[name].hardest + 1):
        try:
            problems = drawn(name, 40, seed=level, levels=level)
        except TaskError:
            pytest.fail(f"{name} level {level} runs dry")
        for problem in problems:
            assert problem.answer == SOLVERS[name](problem), problem
            assert problem.steps.split("\n")[-1] == problem.answer
            assert problem.level == level
            assert problem.family == name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_digit_step_holds(name):
    for problem in drawn(name, 200, levels=[0, FAMILIES[name].hardest]):
        for a, b, product, carry, total in re.findall(
            r"\b(\d)\*(\d)=(\d\d)\+(\d)=(\d\d)\b", problem.steps
        ):
            assert int(a) * int(b) == int(product)
            assert int(product) + int(carry) == int(total)
        for a, b, c, total in re.findall(r"\b(\d)\+(\d)\+(\d)=(\d\d)\b", problem.steps):
            assert int(a) + int(b) + int(c) == int(total)
        for a, b, c, ten, rest in re.findall(r"\b(\d)-(\d)-(\d)=(\d)(\d)\b", problem.steps):
            assert int(a) - int(b) - int(c) == int(rest) - 10 * int(ten)
        for value, times, divisor, product, rest in re.findall(
            r"\b(\d\d):(\d)\*(\d)=(\d\d)\+(\d)\b", problem.steps
        ):
            assert int(times) * int(divisor) == int(product)
            assert int(product) + int(rest) == int(value)
            assert int(rest) < int(divisor)


def test_every_line_of_a_division_says_all_that_is_left_to_do():
    for problem in drawn("division", 200, levels=[0, 14]):
        dividend = max(numbers(problem.question))
        for line in problem.steps.split("\n")[:-1]:
            divisor, rest, quotient, left = re.fullmatch(
                r"\d\d:\d\*(\d)=\d\d\+(\d) (\d+);(\d*)", line
            ).groups()
            done = int(quotient) * int(divisor) + int(rest)
            assert int(f"{done}{left}") == dividend


def test_every_line_of_a_chain_says_all_that_is_left_to_do():
    for problem in drawn("chain", 200, levels=[0, 18]):
        for line in problem.steps.split("\n")[:-1]:
            value, *left = line.partition("~")[2].split(" ")
            result = int(value[::-1])
            for operation in left:
                result = evaluated(f"{result}{operation}")
            assert str(result) == problem.answer


def test_every_line_of_a_conversion_says_all_that_is_left_to_do():
    for problem in drawn("base_conversion", 200, levels=[0, 5]):
        base = min(base for base in numbers(problem.question)[-2:] if base < 10)
        for line in problem.steps.split("\n")[:-1]:
            if ";" in line:  # to the base: what the rest becomes, then the digits so far
                rest, digits = line.split(" ")[-1].split(";")
                assert int(rest) * base ** len(digits) + int(digits, base) == max(
                    numbers(problem.question)
                )
            else:
                value, _, left = line.partition("~")[2].partition(" ")
                whole = int(value[::-1]) * base ** len(left) + int(left or "0", base)
                assert str(whole) == problem.answer


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_answer_earns(name):
    task = load_task(name)
    problems = drawn(name, 50)
    others = {problem.answer for problem in problems}
    for problem in problems:
        assert task.verify(problem, problem.answer) == Verdict.CORRECT
        assert (
            task.verify(problem, f"The answer is \\boxed{{{problem.answer}}}.") == Verdict.CORRECT
        )
        if name != "countdown":
            for other in others - {problem.answer}:
                assert task.verify(problem, other) == Verdict.WRONG
        assert task.verify(problem, "") == Verdict.UNPARSABLE
        assert task.verify(problem, problem.question) != Verdict.CORRECT


def test_the_splits_of_ten_thousand_questions_share_none():
    questions: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name, family in FAMILIES.items():
        for seed, levels in enumerate([(0, 1), (1, min(3, family.hardest))]):
            for split in SPLITS:
                for problem in drawn(name, 100, split, seed, levels=levels):
                    questions[split].add(problem.question)
                    assert split_of(problem.question) == split
    assert sum(map(len, questions.values())) > 7_000
    train, validation, test = questions.values()
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("name", ["multiplication", "chain", "gcd", "base_conversion", "caesar"])
def test_one_problem_has_one_wording(name):
    """Else its twin in other words could be in the test split."""
    words: dict[tuple, str] = {}
    for seed in range(20):
        for problem in drawn(name, 200, seed=seed, levels=0):
            key = (tuple(numbers(problem.question)), tuple(quoted(problem)), problem.answer)
            told = words.setdefault(key, problem.question)
            # Chains may share their numbers and still be different.
            assert told == problem.question or name in ("chain", "base_conversion")


def test_a_seed_gives_the_same_problems_and_another_seed_others():
    for name in FAMILIES:
        assert drawn(name, 20, seed=3) == drawn(name, 20, seed=3)
        assert drawn(name, 20, seed=3) != drawn(name, 20, seed=4)


def test_steps_grow_with_the_level():
    for name, family in FAMILIES.items():
        lengths = [
            sum(len(problem.steps) for problem in drawn(name, 60, levels=level))
            for level in range(min(family.hardest, 4) + 1)
        ]
        assert lengths == sorted(lengths), name


@pytest.mark.parametrize("levels", [(-1, 0), (2, 1), (0, 99), 99, (0,), "01", (0, 1, 2), (0.5, 1)])
def test_levels_that_do_not_exist_are_refused(levels):
    with pytest.raises(TaskError, match="levels"):
        load_task("multiplication", levels=levels)


def test_division_takes_the_usual_short_form():
    task = load_task("division")
    problem = drawn("division", 1)[0]
    quotient, _, rest = problem.answer.split()
    for text in (
        f"{quotient} R {rest}",
        f"{quotient}r{rest}",
        f"Answer: {quotient} remainder {rest}.",
    ):
        assert task.verify(problem, text) == Verdict.CORRECT
    assert task.verify(problem, f"{quotient} {rest}") == Verdict.WRONG

"""The bill and the budget: arithmetic, carried over resumes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.errors import RecipeError
from mull.train.bill import Bill, Budget
from mull.train.recipe import Recipe
from mull.train.recipe_parts import Machine

MACHINE = Machine(watts=100.0, dollars_per_hour=2.0, dollars_per_kwh=0.5)


def test_an_hour_costs_what_the_machine_says() -> None:
    bill = Bill(MACHINE)
    bill.add("rl", seconds=3000, repeated_seconds=600, tokens_trained=5, flops=10**15)
    line = bill.line("rl")
    assert line["joules"] == pytest.approx(360_000)
    assert line["kwh"] == pytest.approx(0.1)
    assert line["dollars"] == pytest.approx(2.05)
    assert line["flops"] == 10**15


def test_the_clock_books_time_to_the_stage_that_runs() -> None:
    now = 0.0
    bill = Bill(MACHINE, clock=lambda: now)
    bill.start("sft")
    now = 5.0
    bill.start("rl")
    now = 7.5
    bill.tick()
    now = 8.0
    bill.stop()
    now = 99.0
    bill.tick()
    assert bill.line("sft")["seconds"] == 5.0
    assert bill.line("rl")["seconds"] == 3.0
    assert bill.line()["seconds"] == 8.0


def test_a_bill_is_carried_over_a_resume() -> None:
    bill = Bill(MACHINE)
    bill.add("sft", seconds=0.1 + 0.2, tokens_trained=7, tokens_sampled=8, flops=3**40)
    carried = Bill.from_dict(json.loads(json.dumps(bill.to_dict())))
    assert carried.stages == bill.stages
    assert carried.to_dict() == bill.to_dict()
    carried.add("sft", seconds=1.0)
    assert carried.line()["seconds"] == 0.1 + 0.2 + 1.0
    assert Bill.from_dict(bill.to_dict(), Machine(watts=0.0)).line()["joules"] == 0


def test_work_that_was_lost_is_paid_for_all_the_same() -> None:
    saved, later = Bill(MACHINE), Bill(MACHINE)
    saved.add("rl", seconds=5.0, repeated_seconds=1.0, tokens_sampled=9)
    later.add("rl", seconds=7.5, repeated_seconds=1.0, tokens_sampled=12)
    later.add("eval", seconds=2.0)
    saved.repeat(later)
    assert saved.line("rl")["seconds"] == 5.0
    assert saved.line("rl")["repeated_seconds"] == 3.5
    assert saved.line("rl")["tokens_sampled"] == 9
    assert saved.line("eval")["repeated_seconds"] == 2.0
    saved.repeat(later)  # it is the later one now
    assert saved.line()["repeated_seconds"] == 5.5


def test_a_running_clock_is_in_the_saved_bill() -> None:
    now = 0.0
    bill = Bill(MACHINE, clock=lambda: now)
    bill.start("rl")
    now = 4.0
    assert bill.to_dict()["total"]["seconds"] == 4.0


def test_a_budget_of_time_counts_repeated_work_too() -> None:
    bill, budget = Bill(MACHINE), Budget.parse("1.5m")
    bill.add("rl", seconds=60)
    assert not budget.is_spent(bill)
    bill.add("rl", repeated_seconds=30)
    assert budget.is_spent(bill)
    assert not budget.is_spent(bill, "sft")


def test_a_budget_of_dollars_is_spent_by_price_and_energy() -> None:
    bill, budget = Bill(MACHINE), Budget.parse("$2.05")
    bill.add("rl", seconds=3599)
    assert not budget.is_spent(bill)
    bill.add("sft", seconds=2)
    assert budget.is_spent(bill)


def test_dollars_on_a_free_machine_are_refused() -> None:
    Budget.parse("$2").check(MACHINE)
    Budget.parse("20m").check(Machine(watts=0.0))
    with pytest.raises(RecipeError, match="would never be spent"):
        Budget.parse("$2").check(Machine(watts=0.0))


MEANINGLESS = [
    "", "20", "m", "-5m", "20 m", "$", "$-1", "2$", "1e3s", "0m", "$0.0", "\u0661m", "1.m", "20min",
    "nan", "9" * 400 + "h",
]  # fmt: skip


@pytest.mark.parametrize("text", MEANINGLESS)
def test_a_budget_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="budget"):
        Budget.parse(text)


@given(
    st.decimals("0.01", "100000", places=2).map(lambda number: f"{number}"),
    st.sampled_from("smh"),
)
def test_a_budget_ends_exactly_when_it_is_spent(number: str, unit: str) -> None:
    budget = Budget.parse(number + unit)
    assert budget.limit == float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    bill = Bill(MACHINE)
    bill.add("rl", seconds=budget.limit * 0.999)
    assert not budget.is_spent(bill)
    bill.add("rl", seconds=budget.limit * 0.002)
    assert budget.is_spent(bill)
    assert Budget.parse("$" + number).limit == float(number)


@given(st.text("0123456789.smh$", max_size=6))
def test_a_budget_is_read_or_refused_as_recipes_do(text: str) -> None:
    """Whatever a recipe admits can be parsed, except budgets of nothing."""
    try:
        budget = Budget.parse(text)
    except RecipeError as error:
        if "nothing can be done" in str(error):
            return
        with pytest.raises(ValueError, match="budget"):
            _recipe(text)
    else:
        assert budget.limit > 0
        _recipe(text)


def _recipe(budget: str) -> Recipe:
    stage = {"name": "a", "kind": "eval", "tasks": ["t"]}
    tasks = {"t": {"families": {"x": {}}}}
    return Recipe.model_validate(
        {"name": "r", "model": {"depth": 1}, "tasks": tasks, "stages": [stage], "budget": budget}
    )

"""Prompt lookup: what it proposes, and how far it trusts it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mull.engine.lookup import PromptLookup
from mull.engine.step_costs import StepCosts


def follow(ids: list[int], start: int) -> PromptLookup:
    """A lookup that has seen the answer grow token by token."""
    growing = ids[:start]
    lookup = PromptLookup(growing, start)
    lookup.catch_up()
    for token in ids[start:]:
        growing.append(token)
        lookup.catch_up()
    return lookup


def proposal(ids: list[int], start: int | None = None, most: int = 4) -> list[int]:
    lookup = follow(ids, len(ids) if start is None else start)
    return lookup.propose(most) if lookup.catch_up() else []


def test_what_followed_the_last_two_tokens_before_is_proposed():
    assert proposal([5, 6, 7, 8, 9, 1, 5, 6]) == [7, 8, 9, 1]
    assert proposal([5, 6, 7, 8, 9, 1, 6, 5]) == []


def test_the_place_that_agrees_longest_wins_then_the_latest():
    assert proposal([3, 1, 2, 40, 9, 1, 2, 50, 3, 1, 2], most=1) == [40]
    assert proposal([3, 1, 2, 40, 4, 1, 2, 50, 9, 1, 2], most=1) == [50]


def test_a_period_goes_on_beyond_the_end():
    assert proposal([7, 8, 9, 7, 8, 9, 7], most=8) == [8, 9, 7, 8, 9, 7, 8, 9]


def test_after_a_replaced_word_the_old_place_is_followed_on():
    source = [1, 2, 3, 4, 5, 6, 7, 8]
    assert proposal([*source, 99, 1, 2, 3, 44], start=9) == [5, 6, 7, 8]


def test_copying_earns_trust_and_a_lucky_pair_loses_it():
    copying = follow([*range(100), 500, *range(60)], start=101)
    # Pairs from 0..9 recur, but what follows them is new every time.
    digits = [i // 10**k % 10 for i in range(7, 2000, 13) for k in range(3)]
    guessing = follow([*digits, *reversed(digits)], start=len(digits))
    sure = copying.chances(8, least=0.0)
    unsure = guessing.chances(8, least=0.0)
    assert sure[0] > 0.9
    assert sure[-1] > 0.6
    assert unsure[0] < 0.5


@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    start=st.integers(1, 60),
    most=st.integers(1, 20),
)
def test_a_proposal_continues_an_earlier_place_or_nothing_is_proposed(ids, start, most):
    start = min(start, len(ids))
    lookup = follow(ids, start)
    if lookup.catch_up():
        proposed = lookup.propose(most)
        assert len(proposed) == most
        text = ids + proposed
        assert any(
            all(text[place + i] == proposed[i] for i in range(most)) for place in range(len(ids))
        )
        chances = lookup.chances(most, least=0.0)
        assert all(1 > a >= b > 0 for a, b in zip(chances, [*chances[1:], 1e-9], strict=True))
    else:
        assert tuple(ids[-2:]) not in itertools.pairwise(ids[:-1])


def feed(costs: StepCosts, seconds: dict[int, float], rounds: int = 60) -> None:
    for _ in range(rounds):
        for rows, duration in seconds.items():
            costs.observe(rows, duration)


def ratio(costs: StepCosts, rows: int, base: int = 1) -> float:
    return costs.cost(rows) / costs.cost(base)


def test_the_costs_of_steps_are_learnt_as_ratios():
    costs = StepCosts()
    feed(costs, {1: 2.0, 4: 3.0, 8: 5.0, 40: 20.0})
    assert abs(ratio(costs, 4) - 1.5) < 0.1
    assert abs(ratio(costs, 8) - 2.5) < 0.2
    assert abs(ratio(costs, 40) - 10.0) < 0.7


def test_a_machine_that_is_slower_for_a_while_changes_no_ratio():
    costs = StepCosts()
    feed(costs, {1: 2.0, 8: 5.0})
    feed(costs, {1: 4.0}, rounds=100)
    assert abs(ratio(costs, 8) - 2.5) < 0.6
    costs.observe(1, 400.0)
    assert abs(ratio(costs, 8) - 2.5) < 0.7


def test_sizes_not_seen_follow_their_neighbours():
    costs = StepCosts()
    feed(costs, {1: 1.0, 16: 16.0, 17: 17.0})
    assert ratio(costs, 24) > 20
    assert 1 < ratio(costs, 2) < 2
    assert ratio(costs, 5000) > 1000


def test_a_size_measured_badly_once_is_tried_again_later():
    costs = StepCosts()
    feed(costs, {1: 1.0}, rounds=10)
    feed(costs, {8: 50.0}, rounds=5)
    assert ratio(costs, 8) > 4
    feed(costs, {1: 1.0}, rounds=1200)
    assert ratio(costs, 8) < 4

"""Questions of kinds that still teach are asked more often; what is measured stays unmoved."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest

from mull.tasks import Problem, Verdict
from mull.tasks.task import Split
from mull.train.episodes import measured
from mull.train.focus import FocusedQuestions
from mull.train.problems import Questions


class Kinds:
    """Two families with two levels each, all as likely."""

    name = "kinds"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        draw = random.Random(seed)
        for number in count():
            yield Problem(f"{number}?", "1", draw.choice("ab"), level=draw.randrange(2))

    def verify(self, problem: Problem, text: str) -> Verdict:
        return Verdict.CORRECT


def questions(focus: float, position: int = 0, kinds: dict[str, list[float]] | None = None):
    row = Questions(Kinds(), 7, position=position)
    return FocusedQuestions(row, focus, 5, kinds or {})


def taught(asked: FocusedQuestions, rounds: int) -> None:
    """Only level 1 of family a gives live groups."""
    for _ in range(rounds):
        for each in asked.take(16):
            problem = each.problem
            asked.saw(problem, is_live=(problem.family, problem.level) == ("a", 1))


def test_without_focus_the_row_is_as_it_was():
    plain = Questions(Kinds(), 7).take(200)
    asked = questions(0.0)
    taught(asked, 10)
    found = asked.take(40)
    assert [each.problem for each in found] == plain[160:]
    assert {each.chance for each in found} == {1.0}


def test_what_teaches_is_asked_most_and_the_rest_is_not_given_up():
    asked = questions(0.8)
    taught(asked, 20)
    kinds = Counter((each.problem.family, each.problem.level) for each in asked.take(4000))
    share = kinds["a", 1] / 4000
    # Others: one in five of what would be, a little more for what is not sure.
    assert 0.5 < share < 0.7
    assert all(kinds[family, level] > 250 for family in "ab" for level in (0, 1))


def test_weighed_by_their_chances_all_kinds_are_as_many_as_in_the_row():
    asked = questions(0.8)
    taught(asked, 20)
    weights: Counter[tuple[str, int]] = Counter()
    for each in asked.take(4000):
        weights[each.problem.family, each.problem.level] += 1 / each.chance
    total = sum(weights.values())
    assert [weight / total for weight in weights.values()] == pytest.approx([0.25] * 4, abs=0.03)


def test_what_changes_is_noticed():
    asked = questions(0.8)
    taught(asked, 20)
    for _ in range(40):
        for each in asked.take(16):
            asked.saw(each.problem, is_live=each.problem.family == "b")
    families = Counter(each.problem.family for each in asked.take(1000))
    assert families["b"] > 700


def test_nothing_to_learn_anywhere_asks_for_everything():
    asked = questions(0.8)
    for _ in range(20):
        for each in asked.take(16):
            asked.saw(each.problem, is_live=False)
    assert min(each.chance for each in asked.take(100)) > 0.7


def test_going_on_from_its_state_asks_the_same():
    asked = questions(0.8)
    taught(asked, 5)
    state = asked.state()
    again = questions(0.8, state["asked"], state["kinds"])
    assert again.take(50) == asked.take(50)
    assert again.state() == asked.state()


def test_a_question_asked_twice_as_often_counts_half_as_much():
    def answers(correct: int, of: int, length: int) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                verdict=Verdict.CORRECT if index < correct else Verdict.WRONG,
                is_correct=index < correct,
                reward=float(index < correct),
                answer=SimpleNamespace(ids=[0] * length),
            )
            for index in range(of)
        ]

    judged = [answers(4, 4, 10), answers(0, 4, 40), answers(0, 4, 40)]
    groups = [SimpleNamespace(is_dead=True)] * 2 + [SimpleNamespace(is_dead=False)]
    found = measured(judged, groups, [2.0, 1.0, 1.0])  # type: ignore[arg-type]
    assert found["pass_at_1"] == found["reward"] == pytest.approx(0.5)
    assert found["length"] == pytest.approx(25)
    assert found["dead_groups"] == pytest.approx(2 / 3)
    assert found["answers"] == 12

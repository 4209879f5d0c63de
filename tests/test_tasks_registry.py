"""Tasks by name, and mixtures of them."""

from collections import Counter
from itertools import islice

import pytest

from mull.errors import TaskError
from mull.tasks import Mixture, Verdict, load_task

PARTS = [
    {"task": "multiplication", "weight": 3, "levels": [0, 2]},
    {"task": "chain", "levels": 4, "digits": 4},
    {"task": "reasoning-gym:chain_sum", "weight": 0.5, "easiest": True},
]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("multiplicaton", {}, "did you mean 'multiplication'"),
        ("", {}, "no task named"),
        ("reasoning-gym:chain_sun", {}, "did you mean 'chain_sum'"),
        ("reasoning-gym:composite", {}, "mixture"),
        ("reasoning-gym:chain_sum", {"min_digit": 1}, "did you mean 'min_digits'"),
        ("reasoning-gym:chain_sum", {"min_digits": 9, "max_digits": 2}, "refuses"),
        ("chain", {"digit": 3}, "did you mean 'digits'"),
        ("chain", {"digits": 99}, "digits"),
        ("chain", {"digits": "many"}, "chain"),
        ("base_conversion", {"bases": [5, 16]}, "bases"),
        ("mixture", {}, "at least one"),
        ("mixture", {"part": []}, "parts"),
        ("mixture", {"parts": [{"weight": 1}]}, "task"),
        ("mixture", {"parts": [{"task": "chain", "weight": 0}]}, "weights"),
        ("mixture", {"parts": [{"task": "chain", "weight": "2"}]}, "weight"),
        ("mixture", {"parts": [{"task": "chian"}]}, "did you mean 'chain'"),
    ],
)
def test_an_unknown_name_or_setting_is_one_line_with_the_nearest_valid_one(name, settings, said):
    with pytest.raises(TaskError, match=said) as caught:
        load_task(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_mixture_draws_by_weight_and_verifies_by_family():
    task = load_task("mixture", parts=PARTS)
    problems = list(islice(task.problems("train", 1), 900))
    assert problems == list(islice(load_task("mixture", parts=PARTS).problems("train", 1), 900))
    counts = Counter(problem.family for problem in problems)
    assert counts["multiplication"] == pytest.approx(600, abs=60)
    assert counts["chain"] == pytest.approx(200, abs=50)
    assert counts["reasoning-gym:chain_sum"] == pytest.approx(100, abs=40)
    for problem in problems[:100]:
        assert task.verify(problem, problem.answer) == Verdict.CORRECT
        assert task.verify(problem, "no") == Verdict.WRONG


def test_a_mixture_keeps_the_splits_apart():
    task = load_task("mixture", parts=PARTS[:2])
    train = {problem.question for problem in islice(task.problems("train", 1), 2_000)}
    test = {problem.question for problem in islice(task.problems("test", 1), 300)}
    assert not train & test


def test_a_file_starts_over_in_training_and_is_asked_once_in_tests(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text(
        "".join(f'{{"question": "q{index}", "answer": "{index}"}}\n' for index in range(100))
    )
    task = Mixture([(load_task(str(path)), 1.0)])
    assert len(list(islice(task.problems("train", 0), 500))) == 500
    assert 0 < len(list(task.problems("test", 0))) < 30


def test_a_problem_from_elsewhere_is_refused():
    stranger = next(load_task("gcd").problems("train", 0))
    with pytest.raises(TaskError, match="gcd"):
        load_task("mixture", parts=PARTS[:1]).verify(stranger, "1")

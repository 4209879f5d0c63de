"""reasoning-gym's datasets: references are right, near misses and tricks are not."""

import re
from itertools import islice

import pytest

from mull.tasks import Problem, Verdict, load_task
from mull.tasks.gym import gym_datasets
from mull.tasks.gym_steps import STEPS

HACKS = ["", "0", "1", "-1", "None", "True", "Yes or No", "[]", "{}", '""', "[[]]", "nan", "1e400"]
HACKS += ["٣", "9**9**9**9", "__import__('os')", "x" * 50_000, "[" * 50_000, "<answer></answer>"]
# Several dozen positions a second or fewer.
SLOW = {"futoshiki", "knight_swap", "sokoban"}
# No reference answer is given, or a whole class of answers is right.
WITHOUT_REFERENCE = {"boxnet", "graph_color", "rubiks_cube", "rush_hour"}


def problems(dataset: str, count: int, split: str = "train", seed: int = 1, **settings):
    task = load_task(f"reasoning-gym:{dataset}", **settings)
    return task, list(islice(task.problems(split, seed), count))


def said_the_same(hack: str, problem: Problem) -> bool:
    """Some hacks are, now and then, the answer."""
    return re.sub(r"[\[\]'\"]|\.0\b", "", hack.lower()) == re.sub(
        r"[\[\]'\"]|\.0\b", "", problem.answer.lower()
    )


@pytest.mark.parametrize("dataset", gym_datasets())
def test_the_reference_is_right_and_hacks_are_not(dataset):
    task, drawn = problems(dataset, 1 if dataset in SLOW else 3)
    for problem in drawn:
        assert bool(problem.answer) != (dataset in WITHOUT_REFERENCE)
        if problem.answer:
            for text in (problem.answer, f"I say <answer>{problem.answer}</answer>"):
                assert task.verify(problem, text) == Verdict.CORRECT, problem.answer
            more = (f"{problem.answer} or 170171", f"perhaps {problem.answer}", problem.answer * 2)
            for text in (*more, f"<answer>{problem.answer}</answer><answer>170171</answer>"):
                if not said_the_same(text, problem):
                    assert task.verify(problem, text) != Verdict.CORRECT, (text, problem.answer)
        for text in (*HACKS, problem.question):
            if not said_the_same(text, problem):
                assert task.verify(problem, text) != Verdict.CORRECT, (text[:50], problem.answer)


def first(dataset: str, **settings):
    task, (problem,) = problems(dataset, 1, **settings)
    return task, problem


@pytest.mark.parametrize(
    ("dataset", "near"),
    [
        ("decimal_arithmetic", lambda answer: answer[:-1] + str((int(answer[-1]) + 1) % 10)),
        ("number_sorting", lambda answer: re.sub(r"(\d)'", r"\g<1>4'", answer, count=1)),
        ("power_function", lambda answer: answer.replace("e", "01e")),
        ("number_format", lambda answer: f"{answer}1"),
        ("coin_flip", lambda answer: f"{float(answer) + 5e-5:.6f}"),
        ("pool_matrix", lambda answer: re.sub(r"(\d)\b", r"\g<1>1", answer, count=1)),
        ("gsm_symbolic", lambda answer: f"{answer} apples and {answer}1 pears"),
        ("game_of_life_halting", lambda answer: {"True": "False"}.get(answer, "True")),
        ("prime_factorization", lambda answer: f"{answer} × 1"),
        ("bitwise_arithmetic", lambda answer: str(int(answer, 16))),
        ("complex_arithmetic", lambda answer: answer.replace("0i", "001i")),
    ],
)
def test_what_its_own_scorer_lets_pass_is_wrong_here(dataset, near):
    task, problem = first(dataset)
    assert near(problem.answer) != problem.answer
    assert task.verify(problem, near(problem.answer)) != Verdict.CORRECT


def test_countdown_and_24_want_all_numbers_and_the_exact_value():
    for dataset, target in (("countdown", None), ("puzzle24", 24)):
        task, problem = first(dataset)
        metadata = problem.data["entry"]["metadata"]
        target = metadata.get("target", target)
        assert task.verify(problem, f"{problem.answer} = {target}") == Verdict.CORRECT
        for text in (str(target), f"{target} + {problem.answer} - {target}", "24 + 0/7 + 0 + 0"):
            assert task.verify(problem, text) == Verdict.WRONG
    # int() of its scorer makes 24 of this.
    near = Problem("", "", "", data={"entry": {"metadata": {"numbers": [5, 5, 49, 2]}}})
    assert task.verify(near, "49/2+5-5") == Verdict.WRONG


def test_another_right_answer_is_right_where_several_are():
    task, problem = first("palindrome_generation", min_length=6, max_length=8)
    half = problem.answer[: len(problem.answer) // 2]
    swapped = half[::-1] + problem.answer[len(half) : -len(half)] + half
    assert task.verify(problem, swapped) == Verdict.CORRECT
    task, problem = first("simple_integration")
    assert task.verify(problem, f"7 + {problem.answer}") == Verdict.CORRECT
    assert task.verify(problem, f"x*({problem.answer})") == Verdict.WRONG


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "((9**99)**99)**99",
        "x**999999",
        "(x+1)**99**2",
        "x.__class__",
        "exit()",
        "'a'",
        "__import__('os').system('false')",
        "lambda: x",
        "[x for x in x]",
        "Integral(x)",
        "x;x",
        "x_",
        "open(x)",
        "S('x')",
        "x**(9**9)",
        "((((x)**9)**9)**9)**99",
        "x" + "+x" * 300,
    ],
)
def test_only_tame_algebra_reaches_sympy(text):
    from mull.tasks.gym_rules import judge_gym

    asked: list[str] = []
    problem = Problem("", "x", "", data={"entry": {}})
    scorer = lambda answer, entry: asked.append(answer) or 1.0  # noqa: E731
    assert judge_gym("simple_integration", problem, text, scorer) == Verdict.WRONG
    assert not asked
    assert judge_gym("simple_integration", problem, "-2*x**3/5 + atan(x) + C", scorer) == "correct"


@pytest.mark.parametrize("dataset", ["chain_sum", "word_sorting", "knights_knaves", "pool_matrix"])
def test_neighbouring_seeds_and_splits_share_nothing(dataset):
    seen: dict[str, tuple[str, int]] = {}
    for split in ("train", "test"):
        for seed in (42, 43):
            for problem in problems(dataset, 60, split, seed)[1]:
                # By chance a short question may come twice within its split, as in one long draw.
                assert seen.setdefault(problem.question, (split, seed))[0] == split
    assert len(seen) > 225
    for seed in (42, 2_000_000):
        assert problems(dataset, 5, seed=seed)[1] == problems(dataset, 5, seed=seed)[1]


def test_a_finite_file_of_items_can_be_drawn_across_several_preparations():
    assert len(problems("list_functions", 1_500)[1]) == 1_500


@pytest.mark.parametrize("dataset", STEPS)
def test_steps_end_in_the_answer_and_hold(dataset):
    settings = {"min_numbers": 3, "max_numbers": 6} if dataset == "number_sorting" else {}
    for easiest in (True, False):
        task, drawn = problems(dataset, 60, easiest=easiest, **settings)
        with_steps = [problem for problem in drawn if problem.steps is not None]
        assert len(with_steps) >= (54 if easiest else 6), f"only {len(with_steps)} of 60"
        for problem in with_steps:
            assert problem.steps.split("\n")[-1] == problem.answer
            assert_steps_hold(problem.steps)
            assert task.verify(problem, problem.answer) == Verdict.CORRECT


def assert_steps_hold(steps: str) -> None:
    for a, b, c, total in re.findall(r"\b(\d)\+(\d)\+(\d)=(\d\d)\b", steps):
        assert int(a) + int(b) + int(c) == int(total), steps
    for a, b, c, ten, rest in re.findall(r"\b(\d)-(\d)-(\d)=(\d)(\d)\b", steps):
        assert int(a) - int(b) - int(c) == int(rest) - 10 * int(ten), steps
    for a, b, c, total in re.findall(r"\b(\d)\*(\d)\+(\d)=(\d\d)\b", steps):
        assert int(a) * int(b) + int(c) == int(total), steps
    for value, times, divisor, rest in re.findall(r"\b(\d+)=(\d)\*(\d+)\+(\d+)\b", steps):
        assert int(value) == int(times) * int(divisor) + int(rest), steps
        assert int(rest) < int(divisor), steps

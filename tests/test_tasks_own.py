"""A user's own task: the example works, and whatever is wrong is said in one line."""

import json
from itertools import islice

import pytest

from mull.errors import TaskError
from mull.tasks import TaskSpec, Verdict, VerifierPool, load_task, split_of

EXAMPLE = '''\
"""Roman numerals."""

NUMERALS = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"),
            (4, "IV"), (1, "I")]


def make_problem(rng):
    number = rng.randrange(1, 400)
    left, written, steps = number, "", []
    for value, letters in NUMERALS:
        while left >= value:
            left -= value
            written += letters
            steps.append(f"{letters} {left}")
    return f"Write {number} in Roman numerals.", written, "\\n".join(steps)
'''
SPLITS = ("train", "validation", "test")
VERIFY = """
def verify(problem, text):
    return text.strip().upper() == problem.answer
"""


@pytest.fixture
def file(tmp_path):
    def write(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def lines(*problems: dict) -> str:
    return "\n".join(map(json.dumps, problems))


def test_a_python_file_makes_problems_for_every_split(file):
    path = file("roman.py", EXAMPLE)
    task = load_task(path)
    for split in SPLITS:
        problems = list(islice(task.problems(split, 1), 15))
        assert problems == list(islice(load_task(path).problems(split, 1), 15))
        assert all(split_of(problem.question) == split for problem in problems)
        assert all(problem.steps and problem.family == path for problem in problems)
        assert task.verify(problems[0], f"\\boxed{{{problems[0].answer}}}") == Verdict.CORRECT
        assert task.verify(problems[0], "") == Verdict.UNPARSABLE


TWINS = """
def make_problem(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return f"{a} * {b}?", str(a * b), None, " ".join(sorted((str(a), str(b))))
"""


@pytest.mark.parametrize("form", ["py", "jsonl"])
def test_questions_that_are_the_same_in_other_words_fall_into_one_split(file, form):
    task = load_task(file("twins.py", TWINS))
    if form == "jsonl":
        drawn = [p for split in SPLITS for p in islice(task.problems(split, 0), 300)]
        rows = [
            {"question": p.question, "answer": p.answer, "split_key": p.split_key} for p in drawn
        ]
        task = load_task(file("twins.jsonl", lines(*rows)))
    found: dict[str, str] = {}
    for split in SPLITS:
        for problem in islice(task.problems(split, 1), 500):
            a, b = problem.question.removesuffix("?").split(" * ")
            assert found.setdefault(problem.question, split) == split
            assert found.get(f"{b} * {a}?", split) == split
    assert set(found.values()) == set(SPLITS)
    # Their wordings alone would have parted many of them.
    assert any(split_of(question) != split for question, split in found.items())


def test_its_own_verify_decides_in_the_verifiers_process(file):
    spec = TaskSpec(file("roman.py", EXAMPLE + VERIFY))
    problem = next(load_task(spec.name).problems("train", 1))
    with VerifierPool() as pool:
        items = [(spec, problem, text) for text in (problem.answer.lower(), "IIIIII", "")]
        verdicts = pool.verify_all(items)
    assert verdicts == [Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "make_problem"),
        ("make_problem = 3", "function"),
        ("def make_problem(rng):\n  return (", "line 2"),
        ("x = 1\ny = x / 0", "line 2.*ZeroDivisionError"),
        ("def make_problem(rng):\n    return {}['a']", "line 2.*KeyError"),
        ("def make_problem(rng):\n    return 'question'", "tuple"),
        ("def make_problem(rng):\n    return 'q', ''", "answer"),
        ("def make_problem(rng):\n    return 'q', None", "answer"),
        ("def make_problem(rng):\n    return '', 'a'", "question"),
        ("def make_problem(rng):\n    return 'q', 'a', 5", "steps"),
        ("def make_problem(rng):\n    return 'q', 'a', None, 5", "split_key"),
    ],
)
def test_a_broken_python_file_is_explained(file, source, said):
    path = file("broken.py", source)
    with pytest.raises(TaskError, match=said) as caught:
        next(load_task(path).problems("train", 0))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_one_question_cannot_fill_three_splits(file):
    task = load_task(file("one.py", "def make_problem(rng):\n    return 'q', 'a'"))
    split = "test" if split_of("q") == "train" else "train"
    with pytest.raises(TaskError, match="no question"):
        next(task.problems(split, 0))


def test_a_jsonl_file_gives_each_of_its_problems_once(file):
    rows = [{"question": f"{a}+1?", "answer": a + 1, "steps": f"{a}+1={a + 1}"} for a in range(200)]
    task = load_task(file("sums.jsonl", lines(*rows)))
    seen = [
        problem.question
        for split in ("train", "validation", "test")
        for problem in task.problems(split, 0)
    ]
    assert sorted(seen) == sorted(row["question"] for row in rows)
    problem = next(task.problems("train", 0))
    assert task.verify(problem, problem.answer) == Verdict.CORRECT
    assert problem.steps.endswith(problem.answer)


def test_a_line_ends_at_a_newline_alone(file):
    strange = [f"a{mark}b" for mark in "\u2028\u2029\x85\x0b\x0c\x1c\r"]
    rows = [json.dumps({"question": q, "answer": q}, ensure_ascii=False) for q in strange]
    task = load_task(file("strange.jsonl", "\r\n".join([*rows, ""]).encode()))
    found = [p for split in ("train", "validation", "test") for p in _problems(task, split)]
    assert sorted(problem.question for problem in found) == sorted(strange)


def _problems(task, split):
    try:
        return list(task.problems(split, 0))
    except TaskError:  # so few questions leave splits empty
        return []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no problems"),
        ("\n \n", "no problems"),
        ("[1]", "line 1"),
        ('{"question": "q", "answer": "a"}\n{oops', "line 2"),
        ("[" * 5_000, "line 1"),
        (b"\xff\xfe", "UTF-8"),
        (lines({"question": "q"}), "line 1.*answer"),
        (lines({"answer": "a"}), "line 1.*question"),
        (lines({"question": "q", "answer": " "}), "line 1.*answer"),
        (lines({"question": "q", "answer": None}), "line 1.*answer"),
        (lines({"question": "q", "answer": True}), "line 1.*answer"),
        (lines({"question": "q", "answer": "a", "steps": 3}), "line 1.*steps"),
        (lines({"question": "q", "answer": "a", "split_key": 3}), "line 1.*split_key"),
        (
            lines({"question": "q", "answer": "a"}, {"question": "q", "answer": "b"}),
            "line 2.*asked",
        ),
    ],
)
def test_broken_lines_are_explained(file, text, said):
    path = file("broken.jsonl", text)
    with pytest.raises(TaskError, match=said) as caught:
        load_task(path)
    assert path in str(caught.value)


def test_missing_files_and_settings_are_refused(file, tmp_path):
    for name in ("none.py", "none.jsonl"):
        with pytest.raises(TaskError, match="no such file"):
            load_task(str(tmp_path / name))
    with pytest.raises(TaskError, match="no settings"):
        load_task(file("roman.py", EXAMPLE), levels=[0, 1])


def test_a_verify_that_returns_nonsense_is_a_failed_verifier(file):
    path = file("odd.py", "def make_problem(rng):\n    return f'q{rng.random()}', 'a'\n"
                "def verify(problem, text):\n    return 0.5\n")  # fmt: skip
    task = load_task(path)
    problem = next(task.problems("train", 0))
    with pytest.raises(TaskError, match="True or False"):
        task.verify(problem, "a")
    with VerifierPool() as pool:
        assert pool.verify_all([(path, problem, "a")]) == [Verdict.VERIFIER_FAILED]

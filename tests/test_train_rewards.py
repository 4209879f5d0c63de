"""What answers earn: for being right, for form beside it, for their language and their length."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_data_parts import tokenizer_folder, writer_of

from mull.tasks import Problem, Verdict
from mull.train.recipe_parts import Rewards
from mull.train.rewards import Judge, language_share, overlong_penalty
from mull.train.rollout import Answer

PROBLEM = Problem("What is two plus three?", "5", "sums")
ROOM = 100


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    writer = writer_of(tokenizer_folder(Path(tmp_path_factory.mktemp("t"))))
    return Judge(None, "sums", None, writer)  # type: ignore[arg-type]


def earned(judge: Judge, thinking: str, text: str, verdict: Verdict, **rewards: float) -> float:
    """By a whole answer as the engine hands it over, the thinking opened by the prompt."""
    ids = judge._writer.tokenizer.encode(f"{thinking}</think>{text}")
    is_truncated = verdict is Verdict.TRUNCATED
    answer = Answer(ids, [0.0] * len(ids), frozenset(), is_truncated, thinking, text)
    given: dict[str, Any] = {"format": 0.0, **rewards}
    return judge.reward(PROBLEM, answer, verdict, Rewards(**given), ROOM)


@pytest.mark.parametrize("verdict", Verdict)
def test_only_a_right_answer_earns_for_being_right_and_for_its_form(judge, verdict):
    is_right = verdict is Verdict.CORRECT
    assert earned(judge, "2+3", "5", verdict, correct=2.0, format=0.5) == 2.5 * is_right
    assert earned(judge, "2+3</think>", "5", verdict, correct=2.0, format=0.5) == 2.0 * is_right
    assert earned(judge, "2+3", " ", verdict, correct=2.0, format=0.5) == 2.0 * is_right


def test_language_counts_for_wrong_answers_but_not_for_empty_or_truncated_ones(judge):
    half = "two and 셋 은"
    assert earned(judge, half, "5", Verdict.CORRECT, language=0.4) == pytest.approx(1.2)
    assert earned(judge, half, "6", Verdict.WRONG, language=0.4) == pytest.approx(0.2)
    assert earned(judge, "two and three", "6", Verdict.UNPARSABLE, language=0.4) == 0.4
    for thinking in ("", " \n", "2 + 3 = 5"):
        assert earned(judge, thinking, "6", Verdict.WRONG, language=0.4) == 0.0
        assert earned(judge, thinking, "5", Verdict.CORRECT, language=0.4) == 1.0
    assert earned(judge, "two and three", "", Verdict.TRUNCATED, language=0.4) == 0.0


def test_an_answer_near_the_end_of_its_room_pays(judge):
    paid = {"overlong": 0.5, "overlong_tokens": ROOM}
    ids = len(judge._writer.tokenizer.encode("2+3</think>5"))
    assert earned(judge, "2+3", "5", Verdict.CORRECT, **paid) == pytest.approx(1 - ids / 200)


@given(most=st.integers(1, 1000), margin=st.integers(1, 1000))
def test_the_overlong_penalty_grows_by_equal_steps_over_the_margin(most, margin):
    """DAPO eq. 13, whose last case is an answer that does not fit."""
    margin = min(margin, most)
    penalties = [overlong_penalty(tokens, most, margin) for tokens in range(most + 2)]
    assert set(penalties[: most - margin + 1]) == {0.0}
    assert penalties[-2:] == [-1.0, -1.0]
    falls = [a - b for a, b in pairwise(penalties[most - margin : most + 1])]
    assert falls == pytest.approx([1 / margin] * margin)


def test_the_language_is_that_of_most_words_of_the_question():
    korean = "37 곱하기 48은 얼마 the"
    assert language_share("서른 일곱 times 12", korean) == pytest.approx(2 / 3)
    assert language_share("three times 12", korean) == 0.0
    assert (
        language_share("셋 곱하기", "3 * 4 = ?") == 1.0
    )  # a question in no language asks for none
    assert (language_share("1 2 3", korean), language_share("1", korean, wordless=0.0)) == (1, 0)

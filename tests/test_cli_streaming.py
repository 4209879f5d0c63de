"""What the user is told of how an answer ended."""

from typing import Any

import pytest

from mull.cli.streaming import tell_how_it_ended
from mull.llm import Answer


@pytest.mark.parametrize(
    ("reason", "details", "told"),
    [
        ("stop", {}, ""),
        ("length", {}, "--max-tokens"),
        ("length", {"context_full": True}, "context is full"),
        ("length", {"loop": {"in": "answer", "period": 1, "repeats": 300}}, "repeating itself"),
        ("stop", {"loop": {"in": "thinking", "period": 1, "repeats": 300}}, ""),
        ("length", {"loop": {"in": "thinking", "period": 1, "repeats": 300}}, "--max-tokens"),
    ],
)
def test_only_what_cut_an_answer_short_is_told(
    reason: str, details: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_how_it_ended(Answer("model", "hm", "yes", [], [1], reason, details, {}, {}))
    err = capsys.readouterr().err
    assert told in err
    assert bool(err) == bool(told)

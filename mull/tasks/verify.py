"""Finding the final answer in a text and comparing it, exactly.

The text is what came after the thinking and may be hostile. An answer is what stands in \\boxed{},
in <answer></answer>, after "answer:" or "the answer is", or the whole text if it is nothing else.
Two different answers are none: whoever hedges is wrong. Nothing is evaluated, nothing becomes a
float, every step is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from mull.tasks.task import Verdict

MAX_TEXT = 200_000
MAX_ANSWER = 20_000
_MAX_NUMBER = 300
_MAX_CANDIDATES = 64

_PHRASE = re.compile(r"\banswer(?:\s|\*\*)*(?:\bis\b|:|=)(?:[\s:]|\*\*\s)*([^\n]*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_WRAPPERS = (
    ("\\boxed{", "}"),
    ("\\text{", "}"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("$$", "$$"),
    ("$", "$"),
    ("**", "**"),
    ("`", "`"),
)
_INTEGER = r"(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+)"
_NUMBER = re.compile(rf"[+-]?{_INTEGER}(?:\.[0-9]+)?")
_FRACTION = re.compile(r"([+-]?)(?:\\d?frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)\s*/\s*([0-9]+))")


def judge(text: str, answer: str) -> Verdict:
    """Right if the text's one answer is the same number or the same text as answer."""
    return judge_text(text, answer, lambda candidate: candidate)


def judge_text(text: str, answer: str, normalise: Callable[[str], str]) -> Verdict:
    """As judge; normalise makes different spellings of one answer equal. It must be quick and
    cope with any text of up to MAX_ANSWER characters."""
    wanted = canonical(normalise(canonical(answer)))
    return _judge(
        text,
        lambda candidate: canonical(normalise(candidate)),
        lambda candidate: candidate == wanted,
    )


def judge_list(text: str, answer: str) -> Verdict:
    """Right if the items are the same in the same order; brackets, quotes and spaces are free."""
    wanted = _items(canonical(answer))
    return _judge(text, _items, lambda candidate: candidate == wanted)


def judge_by(text: str, is_right: Callable[[str], bool]) -> Verdict:
    """Right if is_right says so of the text's one answer; it must be bounded for any text."""
    return _judge(text, lambda candidate: candidate, is_right)


def canonical(answer: str) -> str:
    """One spelling per answer: no mathematical brackets, single spaces, numbers as `p` or `p/q`."""
    answer = _unwrapped(answer)
    number = parse_number(answer)
    return " ".join(answer.split()) if number is None else str(number)


def parse_number(text: str) -> Fraction | None:
    """An integer, decimal or fraction in lowest terms, exactly; None for anything else.

    A fraction that can be reduced is a task, not an answer to it. Leading zeros make a text (a
    word of digits), and so does any digit outside ASCII.
    """
    if not 0 < len(text) <= _MAX_NUMBER:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _FRACTION.fullmatch(text):
        sign, top, bottom = match[1], match[2] or match[4], match[3] or match[5]
        if int(bottom) < 2:
            return None
        value = Fraction(int(top), int(bottom))
        is_lowest = str(value) == f"{top}/{bottom}"
        return (-value if sign == "-" else value) if is_lowest else None
    return None


def final_answer(text: str) -> str | None:
    """The one answer the text commits to, unwrapped; None if there is none or more than one."""
    if not text.strip() or len(text) > MAX_TEXT:
        return None
    found = set(candidates(text))
    return found.pop() or None if len(found) == 1 else None


def candidates(text: str) -> list[str]:
    """Every answer the text commits to, unwrapped; empty if it commits to none."""
    marked = _boxed(text) + _tagged(text)
    if not marked:
        marked = [_until_sentence_end(rest) for rest in _PHRASE.findall(text)]
    return [_unwrapped(answer) for answer in (marked or [text])]


def _judge(text: str, normalise: Callable[[str], str], is_right: Callable[[str], bool]) -> Verdict:
    if not text.strip() or len(text) > MAX_TEXT:
        return Verdict.UNPARSABLE
    found = candidates(text)
    if not any(found):
        return Verdict.UNPARSABLE
    if len(found) > _MAX_CANDIDATES or any(len(answer) > MAX_ANSWER for answer in found):
        return Verdict.WRONG
    answers = {normalise(answer) for answer in found}
    if len(answers) == 1 and is_right(answers.pop()):
        return Verdict.CORRECT
    # Lines of prose without any mark hold no answer; one line is taken for a wrong one.
    is_prose = found[0] == _unwrapped(text) and "\n" in found[0]
    return Verdict.UNPARSABLE if is_prose else Verdict.WRONG


def _boxed(text: str) -> list[str]:
    """What stands in each outermost \\boxed{}, its braces balanced; an open one does not count."""
    found = []
    start = text.find("\\boxed{")
    while start >= 0:
        end = _closing_brace(text, start + len("\\boxed{"))
        if end < 0:
            break
        found.append(text[start + len("\\boxed{") : end])
        start = text.find("\\boxed{", end)
    return found


def _tagged(text: str) -> list[str]:
    """What stands between <answer> and the next </answer>; searched by hand, since a regular
    expression takes quadratic time over many tags that nobody closes."""
    found = []
    start = text.find("<answer>")
    while start >= 0:
        end = text.find("</answer>", start)
        if end < 0:
            break
        found.append(text[start + len("<answer>") : end])
        start = text.find("<answer>", end)
    return found


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.start()
    return -1


def _until_sentence_end(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return line[: end.start()] if end else line


def _unwrapped(answer: str) -> str:
    """Without outer spaces, mathematical brackets, emphasis and the full stop after it."""
    if len(answer) > MAX_ANSWER:
        return answer
    answer = answer.strip()
    for _ in range(8):
        before = answer
        answer = answer.removesuffix(".").strip()
        for opening, closing in _WRAPPERS:
            inner = answer.removeprefix(opening).removesuffix(closing)
            if len(inner) == len(answer) - len(opening) - len(closing) and opening not in inner:
                answer = inner.strip()
        if answer == before:
            break
    return answer


def _items(answer: str) -> str:
    """`[1, 'b']`, `1,b` and `1 , b` are one list; a list without commas is one item."""
    if answer[:1] + answer[-1:] in ("[]", "()", "{}"):
        answer = answer[1:-1]
    return ",".join(canonical(item.strip().strip("'\"")) for item in answer.split(","))

"""Answers in a report: the same questions before and after, by stage."""

from __future__ import annotations

from html import escape
from typing import Any

from mull.train.figures import count, number, plain
from mull.train.report_data import RunData

_QUESTIONS = 8
_MOST_CHARACTERS = 6000  # of one thinking; a page with a megabyte of text is read by nobody


def answers_section(run: RunData) -> str:
    """The first questions that most stages were asked; without such, the last ones of all."""
    if not run.answers:
        return ""
    most = max(len(by_stage) for by_stage in run.answers.values())
    if most > 1:
        # By how many stages answered, then as they come: nobody picks the flattering ones.
        asked = sorted(run.answers, key=lambda question: -len(run.answers[question]))
        chosen = [q for q in asked if len(run.answers[q]) > 1][:_QUESTIONS]
        intro = "The same questions put to every stage: the first that were asked, not chosen ones."
    else:
        chosen = list(run.answers)[-_QUESTIONS:]
        intro = "The last answers that were looked at."
    shown = "".join(_question(run, question) for question in chosen)
    return f"<section><h2>Before and after</h2>\n<p>{intro}</p>{shown}</section>\n"


def _question(run: RunData, question: str) -> str:
    by_stage = run.answers[question]
    stages = run.order(by_stage)
    rows = "".join(_answer(stage, by_stage[stage], stage == stages[-1]) for stage in stages)
    return f'<h3 class="question">{escape(question)}</h3><dl class="answers">{rows}</dl>'


def _answer(stage: str, sample: dict[str, Any], is_last: bool) -> str:
    step, tokens = number(sample.get("step")), number(sample.get("tokens"))
    about = [] if not step else [f"step {plain(step)}"]
    if tokens is not None:
        about.append(f"{count(tokens)} tokens")
    verdict = str(sample.get("verdict", ""))
    css = "verdict correct" if verdict == "correct" else "verdict"
    badge = f' <span class="{css}">{escape(verdict.replace("_", " "))}</span>' if verdict else ""
    thinking = str(sample.get("thinking") or "")
    thought = ""
    if thinking.strip():
        cut = thinking[:_MOST_CHARACTERS] + (" …" if len(thinking) > _MOST_CHARACTERS else "")
        thought = (
            f"<details{' open' if is_last else ''}><summary>thinking</summary>"
            f'<div class="thought" tabindex="0">{escape(cut)}</div></details>'
        )
    answer = str(sample.get("answer") or "")[:_MOST_CHARACTERS].strip()
    said = (
        f'<span class="said">{escape(answer)}</span>' if answer else '<i class="soft">nothing</i>'
    )
    return (
        f"<dt>{escape(stage)}<small>{escape(', '.join(about))}</small></dt>"
        f"<dd>{said}{badge}{thought}</dd>"
    )

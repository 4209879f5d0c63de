"""The stage table of a report, after the R1 paper's: families down, stages across, pass@1."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mull.train.figures import NONE, count, number, percent, plain
from mull.train.report_data import RunData

_GROUPS = ((False, "Held out: the difficulty trained on"), (True, "Out of distribution: harder"))
_Row = tuple[str, str]  # task and family


def main_eval(run: RunData) -> RunData:
    """Only the figures of the eval stage that asked most stages; of the last one of those."""
    return max(reversed(run.by_eval()), key=lambda part: len(scored_stages(part)), default=run)


def scored_stages(run: RunData) -> list[str]:
    """Stages that were evaluated, in the recipe's order."""
    return run.order(str(record.get("stage", "")) for record in run.evals)


def mean_of_stage(run: RunData, stage: str, *, ood: bool) -> float | None:
    """Mean pass@1 over all families; None unless the stage was asked every one of them."""
    rows = _rows(run, ood)
    scores = [_score(record) for row in rows if (record := _cell(run, stage, row, ood))]
    return sum(scores) / len(scores) if rows and len(scores) == len(rows) else None


def table_section(run: RunData) -> str:
    tables = "".join(_table(part) for part in run.by_eval())
    if not tables:
        return ""
    return (
        "<section><h2>What each stage can do</h2>\n"
        "<p>pass@1 in percent with its standard error, on problems never trained on; the best of a "
        f"row is set in colour.</p>{tables}</section>\n"
    )


def _table(run: RunData) -> str:
    """run: with the figures of one eval stage."""
    stages = scored_stages(run)
    kinds = {name: stage.kind for name, stage in run.stages.items()}
    head = "".join(
        f'<th scope="col">{escape(name)}<small>{escape(kinds.get(name, ""))}</small></th>'
        for name in stages
    )
    body = "".join(_group(run, stages, ood, title) for ood, title in _GROUPS)
    return (
        '<div class="scroll"><table class="stages">'
        f"<caption>{escape(_asked(run))}</caption>"
        f'<thead><tr><th scope="col">family</th>{head}</tr></thead>{body}</table></div>'
        f"{_details(run, stages)}\n"
    )


def _group(run: RunData, stages: Sequence[str], ood: bool, title: str) -> str:
    rows = _rows(run, ood)
    if not rows:
        return ""
    several_tasks = len({task for task, _family in rows}) > 1
    lines = [
        f'<tr class="group"><th scope="colgroup" colspan="{len(stages) + 1}">{title}</th></tr>'
    ]
    for row in rows:
        name = escape(row[1])
        if several_tasks:
            name += f"<small>{escape(row[0])}</small>"
        records = [_cell(run, stage, row, ood) for stage in stages]
        best = max(_score(record) for record in records if record)
        cells = "".join(_score_cell(record, best) for record in records)
        lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    if len(rows) > 1:
        means = [mean_of_stage(run, stage, ood=ood) for stage in stages]
        cells = "".join(_mean_cell(mean) for mean in means)
        lines.append(f'<tr class="sum"><th scope="row">mean</th>{cells}</tr>')
    return f"<tbody>{''.join(lines)}</tbody>"


def _score_cell(record: dict[str, Any] | None, best: float) -> str:
    if record is None:
        return f'<td class="none">{NONE}</td>'
    score, stderr, greedy = (
        _score(record),
        number(record.get("stderr")),
        number(record.get("greedy")),
    )
    shown = f"{100 * score:.1f}"
    if score == best:
        shown = f"<b>{shown}</b>"
    if stderr is not None:
        shown += f" ±{100 * stderr:.1f}"
    if greedy is not None:
        shown += f"<small>greedy {100 * greedy:.1f}</small>"
    return f'<td style="--share:{_share(score)}">{shown}</td>'


def _mean_cell(mean: float | None) -> str:
    if mean is None:
        return f'<td class="none">{NONE}</td>'
    return f'<td style="--share:{_share(mean)}">{100 * mean:.1f}</td>'


def _share(score: float) -> str:
    return f"{min(max(score, 0.0), 1.0):.2f}"


def _asked(run: RunData) -> str:
    problems = {int(number(record.get("problems")) or 0) for record in run.evals}
    samples = {int(number(record.get("k")) or 0) for record in run.evals}
    asked = f"{_range(problems)} problems per family, {_range(samples)} sampled answers to each"
    first = run.evals[0]
    if by := first.get("by"):
        asked = f"{by}: {asked}"
    if first.get("thinking") == "off":
        asked += ", without thinking"
    sampling = first.get("sampling")
    if isinstance(sampling, dict) and (room := number(sampling.get("max_tokens"))):
        warmth = plain(number(sampling.get("temperature")) or 0.0)
        asked += f", of at most {room:,.0f} tokens at temperature {warmth}"
    return asked


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _details(run: RunData, stages: Sequence[str]) -> str:
    """The figures that have no room in the table."""
    rows = []
    for ood, _title in _GROUPS:
        for row in _rows(run, ood):
            for stage in stages:
                if record := _cell(run, stage, row, ood):
                    name = f"{row[1]}{' (out of distribution)' if ood else ''}"
                    rows.append(_detail(name, stage, record))
    heads = ("stage", "pass@1", "problems", "k", "tokens an answer", "truncated", "not verified")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        "<details><summary>Length, truncation and failed verification of these answers</summary>"
        f'<div class="scroll"><table><thead><tr><th scope="col">family</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _detail(name: str, stage: str, record: dict[str, Any]) -> str:
    cells = (
        stage,
        percent(_score(record)),
        count(number(record.get("problems"))),
        count(number(record.get("k"))),
        count(number(record.get("tokens"))),
        percent(number(record.get("truncated"))),
        percent(number(record.get("verifier_failed"))),
    )
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{row}</tr>'


def _rows(run: RunData, ood: bool) -> list[_Row]:
    rows = (_row(record) for record in run.evals if bool(record.get("ood")) == ood)
    return list(dict.fromkeys(rows))


def _row(record: dict[str, Any]) -> _Row:
    return str(record.get("task", "")), str(record.get("family", ""))


def _cell(run: RunData, stage: str, row: _Row, ood: bool) -> dict[str, Any] | None:
    for record in run.evals:
        same = str(record.get("stage", "")) == stage and bool(record.get("ood")) == ood
        if same and _row(record) == row:
            return record
    return None


def _score(record: dict[str, Any]) -> float:
    return number(record.get("pass_at_1")) or 0.0

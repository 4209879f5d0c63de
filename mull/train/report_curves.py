"""The curves of every stage in a report, each stage's figures also as a table beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from mull.train.charts import line_chart, thinned
from mull.train.figures import count, duration, number, percent, plain
from mull.train.report_data import Curve, RunData, StageData

_TABLE_ROWS = 12


@dataclass(frozen=True)
class _Kind:
    """How a value of the step records is shown. is_wide: first, and twice as large, in RL."""

    key: str
    title: str
    shown: Callable[[float], str] = plain
    span: tuple[float, float] | None = None
    is_wide: bool = False


def _whole_percent(share: float) -> str:
    return percent(share, 0)


def _short(value: float) -> str:
    return count(value) if abs(value) >= 1e4 else plain(value)


_KINDS = (
    _Kind("pass_at_1", "pass@1", _whole_percent, (0.0, 1.0), is_wide=True),
    _Kind("length", "answer length, tokens", _short, is_wide=True),
    _Kind("loss", "loss"),
    _Kind("validation_loss", "validation loss"),
    _Kind("mtp_loss", "multi-token loss"),
    _Kind("reward", "reward"),
    _Kind("entropy", "entropy, nats"),
    _Kind("gap", "gap, rollout to trainer"),
    _Kind("dead_groups", "dead groups", _whole_percent, (0.0, 1.0)),
    _Kind("truncated", "truncated answers", _whole_percent, (0.0, 1.0)),
    _Kind("kl", "KL to the reference"),
    _Kind("grad_norm", "gradient norm"),
)


def curves_section(run: RunData) -> str:
    parts = [
        _stage(index, stage)
        for index, stage in enumerate(run.stages.values())
        if any(kind.key in stage.curves for kind in _KINDS)
    ]
    if not parts:
        return ""
    return (
        "<section><h2>How it learnt</h2>\n<p>The line is the mean of neighbouring steps, the band "
        f"behind it their range.</p>{''.join(parts)}</section>\n"
    )


def _stage(index: int, stage: StageData) -> str:
    kinds = [kind for kind in _KINDS if kind.key in stage.curves]
    wide = [kind for kind in kinds if kind.is_wide]
    rest = [kind for kind in kinds if not kind.is_wide]
    about = f"{stage.last_step:,} steps"
    if stage.seconds:
        about += f" in {duration(stage.seconds)}"
    if stage.kind and stage.kind != stage.name:
        about = f"{stage.kind}, {about}"
    about += _result(stage)
    parts = [f"<h3>{escape(stage.name)} <small>{escape(about)}</small></h3>"]
    for some, css in ((wide, "curves wide"), (rest, "curves")):
        if some:
            figures = "".join(_figure(f"s{index}-{kind.key}", stage, kind) for kind in some)
            parts.append(f'<div class="{css}">{figures}</div>')
    parts.append(_table(stage, kinds))
    return "".join(parts)


def _result(stage: StageData) -> str:
    """Which state was taken, where it is not the last one."""
    names = ("best_step", "last_step", "validation_loss", "last_validation_loss")
    step, last, loss, last_loss = (number(stage.best.get(name)) for name in names)
    if step is None or step == last:
        return ""
    return (
        f"; its result is step {step:,.0f}: validation loss {plain(loss)}, at the last step "
        f"{plain(last_loss)}"
    )


def _figure(identity: str, stage: StageData, kind: _Kind) -> str:
    curve = stage.curves[kind.key]
    points = thinned(curve.steps, curve.values, 100 if kind.is_wide else 60)
    chart = line_chart(
        points,
        identity=identity,
        title=f"{stage.name}: {kind.title}",
        width=500 if kind.is_wide else 250,
        height=160 if kind.is_wide else 135,
        span=kind.span,
        shown=kind.shown,
    )
    end = kind.shown(points[-1].mean)
    caption = f"<figcaption><b>{escape(kind.title)}</b><span>{escape(end)}</span></figcaption>"
    return f"<figure>{caption}{chart}</figure>"


def _table(stage: StageData, kinds: list[_Kind]) -> str:
    columns = {kind.key: _by_row(stage.curves[kind.key], stage.last_step) for kind in kinds}
    head = "".join(f'<th scope="col">{escape(kind.title)}</th>' for kind in kinds)
    rows = []
    for row in range(_TABLE_ROWS):
        cells = [columns[kind.key].get(row) for kind in kinds]
        if all(cell is None for cell in cells):
            continue
        first, last = _steps_of_row(row, stage.last_step)
        name = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        shown = "".join(
            f"<td>{'' if cell is None else escape(kind.shown(cell))}</td>"
            for kind, cell in zip(kinds, cells, strict=True)
        )
        rows.append(f'<tr><th scope="row">{name}</th>{shown}</tr>')
    return (
        f"<details><summary>The figures of {escape(stage.name)} as a table</summary>"
        '<div class="scroll"><table><caption>Means over the steps of each row</caption>'
        f'<thead><tr><th scope="col">steps</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _row_size(last_step: int) -> int:
    return max(1, -(-last_step // _TABLE_ROWS))


def _steps_of_row(row: int, last_step: int) -> tuple[int, int]:
    size = _row_size(last_step)
    return row * size + 1, min((row + 1) * size, last_step)


def _by_row(curve: Curve, last_step: int) -> dict[int, float]:
    """Mean value of each table row; steps count from 1."""
    size = _row_size(last_step)
    sums: dict[int, tuple[float, int]] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        row = min(_TABLE_ROWS - 1, max(0, int(step) - 1) // size)
        total, many = sums.get(row, (0.0, 0))
        sums[row] = (total + value, many + 1)
    return {row: total / many for row, (total, many) in sums.items()}

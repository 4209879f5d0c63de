"""Curves as inline SVG: one line, the range it was averaged from behind it, a few ticks.

Colours come from the page (classes `line`, `band`, `grid`, `tick`), so light, dark and print work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mull.train.figures import plain

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 20.0  # margins


@dataclass(frozen=True)
class Point:
    """The mean of a few neighbouring steps, and their range."""

    step: float
    mean: float
    low: float
    high: float


def thinned(steps: Sequence[float], values: Sequence[float], most: int) -> list[Point]:
    """At most `most` points, each of equally many neighbours."""
    size = max(1, math.ceil(len(values) / most))
    points = []
    for at in range(0, len(values), size):
        some = values[at : at + size]
        step = steps[min(at + size // 2, len(steps) - 1)]
        if at == 0 or at + size >= len(values):
            step = steps[0 if at == 0 else -1]  # the line spans all the steps there were
        points.append(Point(step, sum(some) / len(some), min(some), max(some)))
    return points


def ticks(low: float, high: float, about: int = 3) -> list[float]:
    """Round numbers from at or below `low` to at or above `high` (low <= high)."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-30:  # flat, as far as a reader could tell
        room = 0.5 * size if size >= 1e-30 else 0.5
        low, high = min(low, high) - room, max(low, high) + room
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(unit for unit in (1, 2, 2.5, 5, 10) if unit * power >= rough * 0.999) * power
    first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return [count * unit for count in range(first, last + 1)]


def line_chart(
    points: Sequence[Point],
    *,
    identity: str,
    title: str,
    width: int,
    height: int,
    span: tuple[float, float] | None = None,
    shown: Callable[[float], str] = plain,
) -> str:
    """An <svg> of the points over their steps.

    identity: unique in the page. span: fixed limits of the values. shown: how a value is written.
    """
    low, high = span or _limits(points)
    marks = [low, (low + high) / 2, high] if span else ticks(low, high)
    low, high = marks[0], marks[-1]
    first, last = points[0].step, points[-1].step
    right, bottom = width - _RIGHT, height - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + (step - first) / ((last - first) or 1.0) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - _TOP)

    end = points[-1]
    said = (
        f"{title}: from {shown(points[0].mean)} at step {plain(first)} "
        f"to {shown(end.mean)} at step {plain(last)}"
    )
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{identity}-t {identity}-d">',
        f'<title id="{identity}-t">{escape(title)}</title>',
        f'<desc id="{identity}-d">{escape(said)}</desc>',
    ]
    for mark in marks:
        at = f"{y(mark):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{at}" y2="{at}"/>')
        label = f'<text class="tick" x="{_LEFT - 6:g}" y="{y(mark) + 3.5:.1f}" text-anchor="end">'
        parts.append(f"{label}{escape(shown(mark))}</text>")
    for step, anchor in ((first, "start"), (last, "end")):
        place = f'x="{x(step):.1f}" y="{height - 4}"'
        name = "step " if anchor == "start" else ""
        text = f'<text class="tick" {place} text-anchor="{anchor}">{name}{step:,.0f}</text>'
        parts += [text] if anchor == "start" or last > first else []
    if any(point.low != point.high for point in points):
        upper = [f"{x(p.step):.1f},{y(p.high):.1f}" for p in points]
        lower = [f"{x(p.step):.1f},{y(p.low):.1f}" for p in reversed(points)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
    course = " ".join(f"{x(p.step):.1f},{y(p.mean):.1f}" for p in points)
    parts.append(f'<polyline class="line" points="{course}"/>')
    parts.append(f'<circle class="end" cx="{x(last):.1f}" cy="{y(end.mean):.1f}" r="2.6"/></svg>')
    return "".join(parts)


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    """Of the means, with the ranges as far as they do not flatten the line."""
    means = [point.mean for point in points]
    low, high = min(means), max(means)
    room = (high - low) or abs(high) or 1.0
    return (
        max(min(point.low for point in points), low - 0.5 * room),
        min(max(point.high for point in points), high + 0.5 * room),
    )

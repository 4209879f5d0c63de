"""Numbers as people read them: durations, energy, money, shares; a dash where there is none."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
_UNITS = (
    (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"),
)  # fmt: skip


def number(value: Any) -> float | None:
    """A finite float, or None for whatever is none."""
    if value is None or isinstance(value, str | bytes | bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # tensors of several elements
        return None
    return found if math.isfinite(found) else None


def plain(value: float | None) -> str:
    """About four significant digits, without an exponent where that is readable."""
    if value is None:
        return NONE
    size = abs(value)
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    if size >= 1e9 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}".rstrip("0").rstrip(".")


def count(value: float | None) -> str:
    """A count of things, in thousands, millions, ... above ten thousand."""
    if value is None:
        return NONE
    for limit, unit in _UNITS:
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):,.1f} {unit}"
    return f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {seconds_left:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def energy(joules: float | None) -> str:
    if joules is None:
        return NONE
    for limit, unit in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if joules >= limit:
            return f"{joules / limit:,.1f} {unit}"
    return f"{joules:.0f} J"


def dollars(amount: float | None) -> str:
    """Two digits for what a reader would pay; more where everything else would be lost."""
    if amount is None:
        return NONE
    if amount >= 0.1 or amount == 0:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.0001 else "under $0.0001"

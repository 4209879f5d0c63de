"""Finding a stop string in streamed text, however its characters are split over tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds text back only while it may still turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text to show, the stop string matched or None); nothing is shown from a match on."""
        if not self.stops:
            return text, None
        text = self.held + text
        found = [(place, stop) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda match: match[0])
            self.held = ""
            return text[:place], stop
        keep = max(_overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, now that nothing more can follow it."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

"""Stop strings are found however the text is cut, and nothing but a possible match is held back."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.stop_strings import StopStrings

TEXTS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(edges)]


@given(text=TEXTS, stops=STOPS, places=st.lists(st.integers(0, 30)))
@settings(max_examples=500, derandomize=True, deadline=None)
def test_what_is_shown_ends_before_the_first_match_whatever_the_pieces(text, stops, places):
    matcher = StopStrings(stops)
    shown, matched, given_so_far = "", None, ""
    for piece in cut(text, places):
        given_so_far += piece
        new, matched = matcher.push(piece)
        shown += new
        if matched is not None:
            break
        # Only an end of the text that some stop begins with is held back, and no more than it.
        assert shown + matcher.held == given_so_far
        assert not matcher.held or any(stop.startswith(matcher.held) for stop in stops)
    found = [text.find(stop) for stop in stops if stop in text]
    if matched is None:
        assert not found
        assert shown + matcher.flush() == text
    else:
        assert text.startswith(shown + matched)
        # Seen as soon as it is complete: among pieces of one character this is the first to end.
        assert not any(stop in shown for stop in stops)
        if len(cut(text, places)) == 1:
            assert len(shown) == min(found)

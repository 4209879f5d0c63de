"""Text of a model or a file made harmless for whatever acts on control characters.

Such text is hostile: a control sequence in it could rewrite the screen, set the clipboard or answer
a prompt.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, bidi embeddings/overrides/isolates, separators that some
# terminals take for a new line, tag characters (invisible text), lone surrogates.
HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with every control character shown as a harmless stand-in; carriage returns go."""
    return HOSTILE.sub(_stand_in, text)


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code == 0x0D:
        return ""
    if code < 0x20:
        return chr(0x2400 + code)  # U+241B for escape and so on: control pictures
    return "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """`text` made harmless and folded into a single line."""
    return " ".join(visible(text).split())

"""The text of a PDF, page by page; run in the worker's process alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mull.errors import RequestError

MAX_PAGES = 5000


def pages(path: Path) -> Iterator[dict[str, Any]]:
    """{"page": text} for each. RequestError for one that is locked, or has no text at all."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise RequestError("this PDF needs a password: give it without one")
        count = len(reader.pages)
    except PyPdfError as error:
        raise RequestError(f"this is no PDF that can be read ({error})"[:200]) from None
    if count > MAX_PAGES:
        raise RequestError(f"this PDF has {count:,} pages, at most {MAX_PAGES:,} are read")
    has_text = False
    for page in reader.pages:
        text = page.extract_text()
        has_text = has_text or bool(text.strip())
        yield {"page": text}
    if not has_text:
        raise RequestError(
            "this PDF holds no text, only pictures of it: run it through text recognition first"
        )

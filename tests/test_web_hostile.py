"""What models write and people attach may be hostile: the page shows it and does nothing else."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import MullUp, Visit
from scripted_models import write_scripted_model

from mull.errors import RequestError
from mull.serve.uploads import process

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")
expect = sync_api.expect
Go = Callable[..., Visit]

MARKUP = """Before <script>window.taken = 1</script> <img src=x onerror="window.taken = 2">
<iframe src="https://example.org/"></iframe> <style>body{display:none}</style>
<form action="https://example.org/"><input name=q></form>

[harmless](javascript:window.taken=3) and [data](data:text/html,<script>window.taken=4</script>)
![picture](https://example.org/track.png) ![own](/api/export)

<svg onload="window.taken = 5"><a xlink:href="javascript:window.taken=6">six</a></svg>
<div style="position:fixed;inset:0" onclick="window.taken=7" class="scrim" id="main">seven</div>

$\\href{javascript:window.taken=8}{eight}$
$\\includegraphics{https://example.org/nine.png}$ after."""
BROKEN = """Broken **bold and `code and $x^{2 and \\(y and

```python
def f(:
| a | b
|---
- [ ] > # 1. <b

$$\\frac{1}{$$ and $\\undefinedcommand{z}$ end of it."""
RIGHT_TO_LEFT = "Look: \u202eevil\u202c and \u2066isolated\u2069, عربي then English, done."


@pytest.fixture(scope="module")
def hostile(mull_up: MullUp) -> MullUp:
    models = mull_up.home / "models"
    for name, text in (
        ("markup", MARKUP),
        ("broken", BROKEN),
        ("bidi", RIGHT_TO_LEFT),
        ("lines", "Line " + "x" * 20_000 + " over."),
    ):
        write_scripted_model(models / name, thinking=f"{name}: {text}", answer=text)
    return mull_up


@pytest.mark.parametrize(("size", "language"), [("desktop", "en"), ("phone", "ko")])
def test_markup_in_an_answer_runs_nothing_and_fetches_nothing(
    visit: Go, hostile: MullUp, size: str, language: str
) -> None:
    v = visit(size=size, language=language)
    v.model("markup")
    v.ask("<script>window.taken = 9</script>")
    answer = v.done()
    answer.get_by_role("button", expanded=False).click()  # the thinking is as hostile
    expect(answer).to_contain_text("after.")
    assert v.page.evaluate("window.taken") is None
    inside = v.page.locator("article")
    for what in ("script", "iframe", "style", "form", "input", "img[src^=http]", "[onclick]"):
        expect(inside.locator(what)).to_have_count(0)
    links = inside.locator("a").evaluate_all("all => all.map(a => a.protocol)")
    assert set(links) <= {"https:", "http:", "mailto:"}, links
    expect(v.page.locator("#main")).to_have_count(1)
    expect(v.composer).to_be_visible()


def test_broken_markdown_and_latex_are_shown_as_far_as_they_go(visit: Go, hostile: MullUp) -> None:
    v = visit()
    v.model("broken")
    v.ask("Break it")
    expect(v.done()).to_contain_text("def f(:")
    expect(v.composer).to_be_enabled()


def test_text_of_the_other_direction_stays_within_its_block(visit: Go, hostile: MullUp) -> None:
    v = visit()
    v.model("bidi")
    v.ask("\u202eturn around")
    answer = v.done()
    expect(answer).to_contain_text("done.")
    lefts = v.page.evaluate(
        "['.composer', '.sidebar', 'article .actions'].map(s =>"
        " getComputedStyle(document.querySelector(s)).direction)"
    )
    assert lefts == ["ltr"] * 3
    listed = v.page.locator("aside a[href^='/c/']").first
    assert listed.evaluate("e => getComputedStyle(e.querySelector('bdi') ?? e).unicodeBidi") in (
        "isolate",
        "isolate-override",
        "plaintext",
    )


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_a_line_without_end_does_not_widen_the_page(visit: Go, hostile: MullUp, size: str) -> None:
    v = visit(size=size)
    v.model("lines")
    v.ask("y" * 1000)
    expect(v.done()).to_contain_text("over.")
    wide = v.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    assert wide <= 0
    reading = v.page.locator(".scroller").evaluate("e => e.scrollWidth - e.clientWidth")
    assert reading <= 1


# --- files ----------------------------------------------------------------------------------------


def pdf(stream: bytes, pages: int = 1) -> bytes:
    """A small PDF whose pages all show the same deflated stream."""
    packed = zlib.compress(stream, 9)
    kids = " ".join(f"{4 + i} 0 R" for i in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode(),
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed),
    ]
    font = b"<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 3 0 R /Resources %s >>"
    objects += [page % font] * pages
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, 2)
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer << /Size %d /Root 1 0 R >>\n" % (len(objects) + 1))
    out.write(b"startxref\n%d\n%%%%EOF" % start)
    return out.getvalue()


def attach(v: Visit, path: Path) -> None:
    v.page.locator("input[type=file]").set_input_files(path)


def test_the_text_of_a_pdf_is_read(visit: Go, tmp_path: Path) -> None:
    (tmp_path / "letter.pdf").write_bytes(pdf(b"BT /F 9 Tf 9 9 Td (Dear reader of PDFs) Tj ET"))
    v = visit()
    v.model("plain")
    attach(v, tmp_path / "letter.pdf")
    v.ask("What does it say?")
    v.done()
    kept = v.server.ask("/api/conversations/" + v.page.url.rsplit("/", 1)[1])
    file = v.server.ask("/api/files/" + kept["messages"][0]["files"][0]["id"])
    assert "Dear reader of PDFs" in file["text"]


@pytest.mark.parametrize("bomb", ["inflating", "not a PDF"])
def test_a_pdf_bomb_is_refused_in_its_place_and_the_server_lives(
    visit: Go, tmp_path: Path, bomb: str
) -> None:
    content = {
        "inflating": lambda: pdf(b"BT /F 9 Tf (" + b"x" * 200_000_000 + b") Tj ET"),
        "not a PDF": lambda: b"%PDF-1.7\n" + b"\0" * 1000,
    }[bomb]()
    (tmp_path / "bomb.pdf").write_bytes(content)
    v = visit()
    v.expects("400")
    v.expects("413")
    v.expects("422")
    attach(v, tmp_path / "bomb.pdf")
    expect(v.page.get_by_role("alert")).to_be_visible(timeout=30_000)
    assert v.server.ask("/health")["status"] == "ok"


def test_a_pdf_of_endless_pages_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "bomb.pdf").write_bytes(pdf(b"BT /F 9 Tf (x) Tj ET " * 50_000, pages=3000))
    with pytest.raises(RequestError, match="took too long"):
        list(process.read("pdf", tmp_path / "bomb.pdf", seconds=1.0, max_bytes=1 << 20))


def test_an_import_that_inflates_without_end_is_refused(visit: Go, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "chatgpt.zip", "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("conversations.json", "w", force_zip64=True) as file,
    ):
        for _ in range(110):  # more than the 96 MB that are read of one
            file.write(b" " * 1_000_000)
    v = visit("/settings")
    v.expects("400")
    v.expects("413")
    attach(v, tmp_path / "chatgpt.zip")
    expect(v.page.get_by_role("alert")).to_be_visible(timeout=30_000)
    assert v.server.ask("/health")["status"] == "ok"

"""The built page: its files, and its index.html for every address that only the page knows.

Scripts and styles go out gzipped, for whoever reads the page over a slow line.
"""

from __future__ import annotations

import functools
import gzip
import mimetypes
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response

from mull.serve.errors import ApiError

# What is never the page's, however wrong the rest of the address is.
_NOT_THE_PAGE = ("v1", "api", "health", "metrics", "docs", "beta")
_FOREVER = "public, max-age=31536000, immutable"
_SQUEEZED = (".js", ".css")


def install(app: FastAPI, folder: Path) -> None:
    """Serve the page in `folder`, where it has been built."""
    root = folder.resolve()

    @app.get("/{path:path}", include_in_schema=False)
    def page(request: Request, path: str) -> Response:
        if path.split("/")[0] in _NOT_THE_PAGE:
            raise ApiError(404, f"there is nothing at /{path[:200]}")
        file = _file_at(root, path)
        if file is not None:
            # Names under assets/ change with their content.
            is_asset = path.startswith("assets/")
            headers = {"Cache-Control": _FOREVER if is_asset else "no-cache"}
            if not is_asset or file.suffix not in _SQUEEZED:
                return FileResponse(file, headers=headers)
            headers["Vary"] = "Accept-Encoding"
            if "gzip" not in request.headers.get("accept-encoding", ""):
                return FileResponse(file, headers=headers)
            headers["Content-Encoding"] = "gzip"
            kind = mimetypes.guess_type(file.name)[0]
            return Response(_gzipped(file, file.stat().st_mtime_ns), 200, headers, kind)
        index = _file_at(root, "index.html")
        is_page = "text/html" in request.headers.get("accept", "") or not path
        if path.startswith("assets/") or not is_page:
            raise ApiError(404, f"there is nothing at /{path[:200]}")
        if index is None:
            return PlainTextResponse("mull is running; its page has not been built (make web).\n")
        return FileResponse(index, headers={"Cache-Control": "no-cache"})


@functools.lru_cache(maxsize=64)
def _gzipped(file: Path, changed: int) -> bytes:
    """The file's content, compressed once for each of its versions."""
    del changed
    return gzip.compress(file.read_bytes(), mtime=0)


def _file_at(root: Path, path: str) -> Path | None:
    """The file of this name within the folder, and nothing outside of it."""
    if "\0" in path or len(path) > 1000:
        return None
    file = (root / path).resolve()
    return file if file.is_relative_to(root) and file.is_file() else None

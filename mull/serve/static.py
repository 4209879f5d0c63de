"""The built page: its files, and its index.html for every address that only the page knows."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response

from mull.serve.errors import ApiError

# What is never the page's, however wrong the rest of the address is.
_NOT_THE_PAGE = ("v1", "api", "health", "metrics", "docs", "beta")
_FOREVER = "public, max-age=31536000, immutable"


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
            caching = _FOREVER if path.startswith("assets/") else "no-cache"
            return FileResponse(file, headers={"Cache-Control": caching})
        index = _file_at(root, "index.html")
        is_page = "text/html" in request.headers.get("accept", "") or not path
        if path.startswith("assets/") or not is_page:
            raise ApiError(404, f"there is nothing at /{path[:200]}")
        if index is None:
            return PlainTextResponse("mull is running; its page has not been built (make web).\n")
        return FileResponse(index, headers={"Cache-Control": "no-cache"})


def _file_at(root: Path, path: str) -> Path | None:
    """The file of this name within the folder, and nothing outside of it."""
    if "\0" in path or len(path) > 1000:
        return None
    file = (root / path).resolve()
    return file if file.is_relative_to(root) and file.is_file() else None

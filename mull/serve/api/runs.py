"""/api/runs: training runs, live, with their measures, samples and reports."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response

from mull.serve.api import run_files
from mull.serve.api.fields import AnOwner, page_of

router = APIRouter()
Line = Annotated[int, Query(ge=0, le=2**53)]
# A report is a page of its own: no script, no request, no place in our origin.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@router.get("/runs")
def list_runs(owner: AnOwner) -> dict[str, Any]:
    return page_of(run_files.all_runs())


@router.get("/runs/{id}")
def get_run(id: str, owner: AnOwner) -> dict[str, Any]:
    return run_files.describe(id, run_files.folder_of(id))


@router.get("/runs/{id}/metrics")
def metrics(id: str, owner: AnOwner, after: Line = 0) -> dict[str, Any]:
    return _rows(id, run_files.METRICS, after)


@router.get("/runs/{id}/samples")
def samples(id: str, owner: AnOwner, after: Line = 0) -> dict[str, Any]:
    return _rows(id, run_files.SAMPLES, after)


@router.get("/runs/{id}/report")
def report(id: str, owner: AnOwner) -> Response:
    file = run_files.file_in(run_files.folder_of(id), run_files.REPORT)
    headers = {
        "Content-Security-Policy": REPORT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return FileResponse(file, media_type="text/html; charset=utf-8", headers=headers)


def _rows(id: str, name: str, after: int) -> dict[str, Any]:
    folder = run_files.folder_of(id)
    if not (folder / name).exists():
        return {"rows": [], "next": 0}
    return run_files.rows(run_files.file_in(folder, name), after)

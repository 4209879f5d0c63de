"""What a running server is made of, and how a route gets at it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import FastAPI, Request

from mull.serve.answers import RunningAnswers
from mull.serve.metrics import Metrics
from mull.serve.models import ModelPool
from mull.serve.settings import Settings
from mull.serve.status import Status


@dataclass
class Serving:
    settings: Settings
    pool: ModelPool
    answers: RunningAnswers
    metrics: Metrics
    status: Status
    started: float = field(default_factory=time.time)


def serving(request: Request) -> Serving:
    """For routes: `parts: Serving = Depends(serving)`."""
    return serving_of(request.app)


def serving_of(app: FastAPI) -> Serving:
    parts = app.state.serving
    assert isinstance(parts, Serving)
    return parts

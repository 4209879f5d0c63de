"""Every error as clients expect it: {"error": {message, type, param, code}} and a true status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mull.errors import (
    MullError,
    QueueFullError,
    RequestError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    TextError,
    WeightsError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
MAX_MESSAGE = 1000


class ApiError(Exception):
    """Raised anywhere below a route; becomes the response. `retry_after`: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:MAX_MESSAGE]
        self.code = code
        self.param = param
        self.type = type or _TYPES.get(status, "server_error")
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error; of one that nobody expected, nothing but that it was."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=1)
    if isinstance(error, RequestError | TextError):
        code = "context_length_exceeded" if "tokens, but at most" in str(error) else None
        return ApiError(400, str(error), code=code)
    if isinstance(error, WeightsError):
        return ApiError(503, str(error), code="model_unavailable")
    if isinstance(error, StoreBusyError):
        return ApiError(503, str(error), code="store_busy", retry_after=2)
    if isinstance(error, StoreError):
        is_full = isinstance(error, StoreFullError)
        return ApiError(507 if is_full else 503, str(error), code="store_unavailable")
    if isinstance(error, MullError):
        return ApiError(500, str(error), code="generation_failed")
    return ApiError(500, "the server failed at this request; its log says why", code="internal")


def error_response(path: str, error: ApiError) -> Response:
    body = anthropic_body(error) if path.startswith("/v1/messages") else error.body
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """The same in the form of Anthropic's API."""
    kind = {402: "billing_error", 422: "invalid_request_error", 500: "api_error"}.get(
        error.status, error.type
    )
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def validation_error(details: Any) -> ApiError:
    """The first thing that is wrong with a request's fields, in one line; 400 for broken JSON."""
    first: Mapping[str, Any] = details[0] if details else {}
    place = [str(part) for part in first.get("loc", ()) if part != "body"]
    param = ".".join(place)[:200] or None
    if first.get("type") == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    message = str(first.get("msg", "is not what it must be"))[:300]
    return ApiError(422, f"{param or 'the body'}: {message}", param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Let the app answer every error in this form."""

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, as_api_error(error))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(request.url.path, validation_error(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = ApiError(error.status_code, str(error.detail))
        response = error_response(request.url.path, told)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ApiError, on_error)
    app.add_exception_handler(MullError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)

"""Errors as application/problem+json (RFC 9457) with a stable code, never with a library's message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vidlex.service.errors import InvalidParameter, InvalidRequest, MethodNotAllowed, NotFound, VidlexError
from vidlex.service.http.disconnect import ClientLeft
from vidlex.service.http.methods import allow_header
from vidlex.service.schemas.base import problem_items

_log = structlog.get_logger("vidlex.http")

PROBLEM_TYPE = "application/problem+json"
CODE_KEY = "vidlex_problem_code"  # in the ASGI scope
REQUEST_ID_KEY = "vidlex_request_id"
AT_END_KEY = "vidlex_at_end"  # an ExitStack that is closed when the request ends


def problem_of(error: VidlexError, request_id: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
        **error.extra,
    }
    if error.retry_after_seconds is not None:
        body["retry_after_ms"] = error.retry_after_seconds * 1000
    return body


class ProblemResponse(Response):
    media_type = PROBLEM_TYPE

    def __init__(self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(body, ensure_ascii=True), status_code=body["status"], headers=headers)
        self.code = str(body["code"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CODE_KEY] = self.code
        await super().__call__(scope, receive, send)


def error_response(error: VidlexError, request_id: str) -> Response:
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.internal or error.status >= 500:
        _log.warning("request_refused", code=error.code, detail=str(error), internal=error.internal)
    return ProblemResponse(problem_of(error, request_id), headers)


def internal_error_response(request_id: str) -> Response:
    error = VidlexError("An unexpected error occurred; the log has it under this request_id")
    return ProblemResponse(problem_of(error, request_id))


def request_id_of(request: Request) -> str:
    return str(request.scope.get(REQUEST_ID_KEY, ""))


async def _on_vidlex_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, VidlexError)
    return error_response(error, request_id_of(request))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        problem: VidlexError = NotFound("Unknown path; GET /openapi.json lists all paths")
    elif error.status_code == 405:
        problem = MethodNotAllowed(
            "Method not allowed on this path; see the Allow header", headers=allow_header(request.scope)
        )
    else:
        problem = InvalidRequest(internal=repr(error))
    return error_response(problem, request_id_of(request))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    raw = list(error.errors())
    if any(item["type"] == "json_invalid" for item in raw):
        return error_response(InvalidRequest("The body is not valid JSON"), request_id_of(request))
    # loc begins with the kind of parameter ("query", "path"), which is not part of the pointer
    items = problem_items([{**item, "loc": item["loc"][1:]} for item in raw])
    detail = "; ".join(f"{item['pointer']}: {item['detail']}" for item in items[:3])
    return error_response(InvalidParameter(detail, errors=items), request_id_of(request))


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=ClientLeft.status)


def install(app: FastAPI) -> None:
    app.add_exception_handler(ClientLeft, _on_client_left)
    app.add_exception_handler(VidlexError, _on_vidlex_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)

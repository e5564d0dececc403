"""/openapi.json as the service behaves: every error of each operation, by status, with its codes, as problem+json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vidlex.service.errors import (
    DeadlineExceeded,
    EncodeFailed,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InvalidParameter,
    InvalidRequest,
    LabelExists,
    LabelTextInvalid,
    ModelConflict,
    ModelLoading,
    NotFound,
    Overloaded,
    ParentCycle,
    ParentNotFound,
    PreconditionFailed,
    QuotaExceeded,
    RateLimited,
    ResolutionTooLarge,
    RevisionNotReached,
    Stopping,
    StoreUnavailable,
    Unauthorized,
    UndecodableVideo,
    UnsupportedMedia,
    UploadTimeout,
    UploadTooLarge,
    VideoTooLong,
    VidlexError,
)
from vidlex.service.http.guard import PUBLIC, wanted_scope
from vidlex.service.http.problems import PROBLEM_TYPE

Errors = tuple[type[VidlexError], ...]

_ANYWHERE: Errors = (InvalidRequest, Unauthorized, Forbidden, RateLimited, Stopping, VidlexError)
_STORED: Errors = (StoreUnavailable, ModelLoading, Overloaded)
_BODY: Errors = (InvalidParameter, UploadTimeout, UploadTooLarge, UnsupportedMedia)
_TEXT: Errors = (LabelTextInvalid, EncodeFailed)
_PARENT: Errors = (ParentNotFound, ParentCycle, PreconditionFailed)
_ONCE: Errors = (IdempotencyInFlight, IdempotencyKeyReused)
_VIDEO: Errors = (UndecodableVideo, VideoTooLong, ResolutionTooLarge)
ERRORS: dict[tuple[str, str], Errors] = {
    ("post", "/labels"): (*_BODY, *_TEXT, *_STORED, *_PARENT, *_ONCE, LabelExists, NotFound, QuotaExceeded),
    ("get", "/labels"): (*_STORED, InvalidParameter, LabelTextInvalid, NotFound, RevisionNotReached),
    ("get", "/labels/{label_id}"): (*_STORED, InvalidParameter, NotFound, RevisionNotReached),
    ("patch", "/labels/{label_id}"): (*_BODY, *_TEXT, *_STORED, *_PARENT, LabelExists, NotFound),
    ("delete", "/labels/{label_id}"): (*_STORED, InvalidParameter, NotFound, PreconditionFailed),
    ("post", "/classify"): (*_BODY, *_TEXT, *_VIDEO, *_STORED, NotFound, RevisionNotReached, DeadlineExceeded),
    ("get", "/labels/{label_id}/card"): (
        *_STORED,
        *_TEXT,
        InvalidParameter,
        NotFound,
        RevisionNotReached,
    ),
    ("post", "/labels:preview"): (*_BODY, *_TEXT, *_STORED, NotFound, RevisionNotReached),
    ("post", "/keys"): (*_BODY, *_STORED),
    ("get", "/keys"): _STORED,
    ("delete", "/keys/{key_id}"): (*_STORED, NotFound),
    ("get", "/models"): _STORED,
    ("post", "/models:prepare"): (*_BODY, *_STORED, ModelConflict),
    ("post", "/models:activate"): (*_STORED, ModelConflict),
    ("post", "/models:rollback"): (*_STORED, ModelConflict),
    ("post", "/models:drop"): (*_BODY, *_STORED, ModelConflict, NotFound),
    ("get", "/models:diff"): (
        *_STORED,
        EncodeFailed,
        InvalidParameter,
        ModelConflict,
        NotFound,
        RevisionNotReached,
    ),
}
"""Beside those that can come anywhere. A test calls every operation and finds what is missing here."""


_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of this service. `X-API-Key: KEY` does as well.",
    }
}


def install(app: FastAPI) -> None:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.add_api_route("/v1/openapi.json", document, include_in_schema=False)


def _corrected(schema: dict[str, Any]) -> dict[str, Any]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            for status in ("422", "default"):  # FastAPI's own, which never leaves this service
                responses.pop(status, None)
            responses |= _problems((*_ANYWHERE, *ERRORS.get((method, path), ())))
            operation.update(_access(method, path))
    schema.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema


def _access(method: str, path: str) -> dict[str, Any]:
    """Which key an operation wants. The last choice is none at all: a service that was started without keys is open."""
    if path in PUBLIC:
        return {"security": []}
    return {"security": [*({name: []} for name in _SCHEMES), {}], "x-scope": wanted_scope(method.upper(), path)}


def _problems(errors: Sequence[type[VidlexError]]) -> dict[str, Any]:
    """The responses of some errors, by status."""
    found: dict[str, Any] = {}
    for status in sorted({error.status for error in errors}):
        here = [error for error in errors if error.status == status]
        codes = sorted({error.code for error in here})
        problem = {"allOf": [{"$ref": "#/components/schemas/ProblemView"}, {"properties": {"code": {"enum": codes}}}]}
        found[str(status)] = {
            "description": "; ".join(f"{error.code}: {error.title}" for error in dict.fromkeys(here)),
            "content": {PROBLEM_TYPE: {"schema": problem}},
        }
        if all(error.retry_after_seconds is not None for error in here):
            seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}
            found[str(status)]["headers"] = {"Retry-After": {**seconds, "required": True}}
    return found

"""Errors in the OpenAPI document, with one shared response per status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidlex.service.errors import (
    ByteQuotaExceeded,
    DeadlineExceeded,
    EncodeFailed,
    FeatureGenerationMissing,
    FeedbackConflict,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InvalidParameter,
    InvalidRequest,
    JobConflict,
    JsonTooComplex,
    KeptVideoDamaged,
    LabelCorrupt,
    LabelExists,
    LabelTextInvalid,
    LastAdminKey,
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
    ShareExceeded,
    Stopping,
    StorageFull,
    StoreDenied,
    StoreFull,
    StoreLost,
    StoreReadOnly,
    StoreUnavailable,
    TooManyConnections,
    Unauthorized,
    UndecodableVideo,
    UnsupportedMedia,
    UploadTimeout,
    UploadTooLarge,
    UriTooLong,
    UrlRefused,
    VideoTooLong,
    VidlexError,
    VolatileStore,
    WebhookConflict,
    WebhookSecretMissing,
)
from vidlex.service.http.openapi.headers import header_refs
from vidlex.service.http.problems import PROBLEM_TYPE

Errors = tuple[type[VidlexError], ...]

_PUBLIC: Errors = (Forbidden, VidlexError, InvalidRequest, UriTooLong)
_KEY: Errors = (*_PUBLIC, Unauthorized, RateLimited, ModelLoading)
_STORE: Errors = (StoreUnavailable, StoreDenied, StoreFull, StoreLost, StoreReadOnly, VolatileStore)
_COMMON: Errors = (*_KEY, *_STORE, TooManyConnections, Stopping, StorageFull, Overloaded, ShareExceeded)
_BODY: Errors = (InvalidParameter, JsonTooComplex, UploadTimeout, UploadTooLarge, UnsupportedMedia)
_TEXT: Errors = (LabelTextInvalid, EncodeFailed)
_PARENT: Errors = (ParentNotFound, ParentCycle, PreconditionFailed)
_IDEMPOTENCY: Errors = (IdempotencyInFlight, IdempotencyKeyReused)
_QUOTA: Errors = (QuotaExceeded, ByteQuotaExceeded)
_VIDEO: Errors = (UndecodableVideo, VideoTooLong, ResolutionTooLarge)
_READ: Errors = (InvalidParameter, NotFound, RevisionNotReached)
_LABEL: Errors = (LabelCorrupt, NotFound)

_NEW_JOB: Errors = (IdempotencyKeyReused, UrlRefused, WebhookSecretMissing, ByteQuotaExceeded)

# By operationId.
ERRORS: dict[str, Errors] = {
    "create_labels": (*_COMMON, *_BODY, *_TEXT, *_PARENT, *_IDEMPOTENCY, LabelExists, NotFound, *_QUOTA),
    "list_labels": (*_COMMON, *_READ, LabelTextInvalid),
    "get_label": (*_COMMON, *_READ, *_LABEL),
    "update_label": (*_COMMON, *_BODY, *_TEXT, *_PARENT, *_LABEL, LabelExists, ByteQuotaExceeded),
    "delete_label": (*_COMMON, *_LABEL, InvalidParameter, PreconditionFailed),
    "get_label_card": (*_COMMON, *_READ, *_LABEL, *_TEXT),
    "preview_labels": (*_COMMON, *_BODY, *_TEXT, NotFound, RevisionNotReached),
    "classify_video": (
        *(*_COMMON, *_BODY, *_TEXT, *_VIDEO, NotFound, RevisionNotReached, DeadlineExceeded),
        ByteQuotaExceeded,  # of jobs
    ),
    "create_job": (
        *(*_COMMON, *_BODY, UndecodableVideo, IdempotencyKeyReused, UrlRefused),
        *(WebhookSecretMissing, ByteQuotaExceeded),
    ),
    "list_jobs": (*_COMMON, InvalidParameter),
    "get_job": (*_COMMON, InvalidParameter, NotFound),
    "cancel_job": (*_COMMON, InvalidParameter, NotFound),
    "retry_job": (*_COMMON, InvalidParameter, NotFound, JobConflict, ByteQuotaExceeded),
    "get_job_result": (*_COMMON, InvalidParameter, NotFound, JobConflict),
    "get_job_output": (*_COMMON, InvalidParameter, NotFound, JobConflict),
    "get_job_errors": (*_COMMON, InvalidParameter, NotFound, JobConflict),
    "export_job": (*_COMMON, InvalidParameter, NotFound, JobConflict),
    "stream_job_events": (*_COMMON, InvalidParameter, NotFound),
    "list_videos": (*_COMMON, InvalidParameter),
    "get_video": (*_COMMON, InvalidParameter, NotFound, KeptVideoDamaged),
    "delete_video": (*_COMMON, InvalidParameter, NotFound),
    "get_video_thumbnail": (*_COMMON, InvalidParameter, NotFound, KeptVideoDamaged),
    "get_video_features": (*_COMMON, InvalidParameter, NotFound, KeptVideoDamaged, FeatureGenerationMissing),
    "search_videos": (
        *(*_COMMON, *_BODY, *_TEXT, *_READ, LabelCorrupt),
        *(FeatureGenerationMissing, KeptVideoDamaged),
    ),
    "backfill_videos": (*_COMMON, *_BODY, *_READ, *_NEW_JOB, FeatureGenerationMissing),
    "reencode_videos": (*_COMMON, *_BODY, *_READ, *_NEW_JOB, KeptVideoDamaged),
    "get_video_generations": (*_COMMON, *_READ, KeptVideoDamaged),
    "list_label_videos": (*_COMMON, *_READ, LabelCorrupt, KeptVideoDamaged),
    "get_calibration": (*_COMMON, *_READ),
    "put_calibration": (*_COMMON, *_BODY, *_TEXT, ModelConflict, NotFound, RevisionNotReached),
    "delete_calibration": (*_COMMON, *_READ),
    "create_feedback": (*_COMMON, *_BODY, NotFound, LabelTextInvalid, ByteQuotaExceeded),
    "list_feedback": (*_COMMON, *_LABEL, InvalidParameter),
    "delete_feedback": (*_COMMON, InvalidParameter, NotFound),
    "list_judged_labels": (*_COMMON, InvalidParameter, NotFound),
    "get_fit": (*_COMMON, *_LABEL, InvalidParameter),
    "apply_threshold": (*_COMMON, *_LABEL, InvalidParameter, PreconditionFailed, FeedbackConflict, ByteQuotaExceeded),
    "revert_threshold": (*_COMMON, *_LABEL, InvalidParameter, PreconditionFailed, FeedbackConflict, ByteQuotaExceeded),
    "list_threshold_versions": (*_COMMON, *_LABEL, InvalidParameter),
    "create_webhook_secret": (*_COMMON, InvalidParameter, WebhookConflict),
    "list_webhook_secrets": (*_COMMON, InvalidParameter),
    "delete_webhook_secret": (*_COMMON, InvalidParameter, NotFound),
    "list_deliveries": (*_COMMON, InvalidParameter),
    "get_delivery": (*_COMMON, InvalidParameter, NotFound),
    "replay_delivery": (*_COMMON, InvalidParameter, NotFound),
    "replay_deliveries": (*_COMMON, *_BODY),
    "list_endpoints": (*_COMMON, InvalidParameter),
    "enable_endpoint": (*_COMMON, *_BODY, NotFound),
    "test_webhook": (*_COMMON, *_BODY, UrlRefused, WebhookConflict, WebhookSecretMissing),
    "get_models": _COMMON,
    "prepare_model": (*_COMMON, *_BODY, ModelConflict),
    "activate_model": (*_COMMON, ModelConflict),
    "rollback_model": (*_COMMON, ModelConflict),
    "drop_model": (*_COMMON, *_BODY, ModelConflict, NotFound),
    "diff_models": (*_COMMON, *_READ, EncodeFailed, ModelConflict),
    "create_key": (*_COMMON, *_BODY),
    "list_keys": _COMMON,
    "revoke_key": (*_COMMON, LastAdminKey, NotFound),
    "get_liveness": _PUBLIC,
    "get_readiness": _PUBLIC,
    "get_metrics": _KEY,
}

_NAMES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    408: "RequestTimeout",
    409: "Conflict",
    412: "PreconditionFailed",
    413: "ContentTooLarge",
    414: "UriTooLong",
    415: "UnsupportedMediaType",
    422: "UnprocessableContent",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
    507: "InsufficientStorage",
}
_EXTRA_MEMBERS: dict[type[VidlexError], dict[str, Any]] = {
    InvalidParameter: {"errors": [{"pointer": "/name", "detail": "is missing"}]},
    LabelExists: {"existing_id": "lbl_000000020000wn88xex5bvdb"},
    RevisionNotReached: {"current_revision": 7},
    ShareExceeded: {"limit": "requests"},
    UploadTooLarge: {"max_bytes": 536_870_912},
}


def error_codes(operation_id: str) -> list[str]:
    return sorted({error.code for error in ERRORS[operation_id]})


def error_refs(operation_id: str) -> dict[str, Any]:
    statuses = {error.status for error in ERRORS[operation_id]}
    return {str(status): {"$ref": f"#/components/responses/{_NAMES[status]}"} for status in statuses}


def response_components() -> dict[str, Any]:
    errors = sorted({error for errors in ERRORS.values() for error in errors}, key=lambda error: error.code)
    components = {}
    for status, name in _NAMES.items():
        components[name] = _response(status, [error for error in errors if error.status == status])
    return components


def _response(status: int, errors: Sequence[type[VidlexError]]) -> dict[str, Any]:
    names = ["X-Request-Id", *(["WWW-Authenticate"] if status == 401 else ["RateLimit", "RateLimit-Policy"])]
    if status == 415:
        names.append("Accept-Encoding")
    if any(error.retry_after_seconds is not None for error in errors):
        names.append("Retry-After")
    codes = "\n".join(f"- `{error.code}`: {error.title}." for error in errors)
    examples = {error.code: {"summary": error.title, "value": example_problem(error)} for error in errors}
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": f"The `code` is one of:\n\n{codes}",
        **header_refs(*names),
        "content": {PROBLEM_TYPE: {"schema": schema, "examples": examples}},
    }


def example_problem(error: type[VidlexError]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.title,
        "code": error.code,
        "request_id": "0eebd98abb12c582eadd684670a3c118",
        **_EXTRA_MEMBERS.get(error, {}),
    }
    if error.retry_after_seconds is not None:
        body["retry_after_ms"] = error.retry_after_seconds * 1000
    return body

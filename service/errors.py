"""All errors that reach a client, with their HTTP status.

``str(error)`` is sent to the client as ``detail``: it must not contain paths, addresses or messages of libraries.
``internal`` is for the log only.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)  # of an OSError


class VidlexError(Exception):
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_seconds: int | None = None

    def __init__(
        self,
        detail: str = "",
        *,
        internal: str = "",
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,  # further members of the problem document, such as existing_id
    ) -> None:
        super().__init__(detail or self.title)
        self.internal = internal
        self.headers = dict(headers or {})
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds
        self.extra = extra


class InvalidRequest(VidlexError):
    code, status, title = "malformed", 400, "Malformed request"


class InvalidParameter(VidlexError):
    code, status, title = "invalid_parameter", 422, "Invalid parameter"


class Unauthorized(VidlexError):
    code, status, title = "unauthorized", 401, "An API key is required"


class Forbidden(VidlexError):
    code, status, title = "forbidden", 403, "This request is not allowed"


class NotFound(VidlexError):
    code, status, title = "not_found", 404, "Not found"


class MethodNotAllowed(VidlexError):
    code, status, title = "method_not_allowed", 405, "Method not allowed"


class UploadTimeout(VidlexError):
    code, status, title = "upload_timeout", 408, "The upload took too long"


class LabelExists(VidlexError):
    code, status, title = "label_exists", 409, "A label with this name exists"

    def __init__(self, detail: str, *, existing_id: str) -> None:
        super().__init__(detail, existing_id=existing_id)
        self.existing_id = existing_id


class RevisionNotReached(VidlexError):
    code, status, title = "revision_not_reached", 409, "This replica has not reached the requested revision"

    def __init__(self, detail: str, *, current_revision: int) -> None:
        super().__init__(detail, current_revision=current_revision)


class ModelConflict(VidlexError):
    code, status, title = "model_conflict", 409, "The state of the models does not allow this"


class JobConflict(VidlexError):
    code, status, title = "job_conflict", 409, "The state of the job does not allow this"


class WebhookSecretMissing(VidlexError):
    code, status, title = "webhook_secret_missing", 409, "The namespace has no webhook secret; create one first"


class WebhookConflict(VidlexError):
    code, status, title = "webhook_conflict", 409, "The state of the webhooks does not allow this"


class FeatureGenerationMissing(VidlexError):
    code, status, title = "features_of_other_model", 409, "The kept features are of another model; re-encode the videos"


class FeedbackConflict(VidlexError):
    code, status, title = "feedback_conflict", 409, "The judgements or the label do not allow this"


class LastAdminKey(VidlexError):
    code, status, title = "last_admin_key", 409, "No other API key could manage the keys"


class IdempotencyInFlight(VidlexError):
    code, status, title = "idempotency_in_flight", 409, "A request with this Idempotency-Key is in progress"
    retry_after_seconds = 1


class PreconditionFailed(VidlexError):
    code, status, title = "precondition_failed", 412, "The label has changed"


class UploadTooLarge(VidlexError):
    code, status, title = "upload_too_large", 413, "The upload is too large"


class JsonTooComplex(VidlexError):
    code, status, title = "json_too_complex", 413, "The JSON has too many values or levels"


class UriTooLong(VidlexError):
    code, status, title = "uri_too_long", 414, "The path or the query is too long"


class UnsupportedMedia(VidlexError):
    code, status, title = "unsupported_media", 415, "Unsupported media type"


class VideoError(VidlexError):
    """Permanent: retrying does not help."""

    status = 422


class UndecodableVideo(VideoError):
    code, title = "undecodable_video", "The video cannot be decoded"


class VideoTooLong(VideoError):
    code, title = "video_too_long", "The video is too long"


class ResolutionTooLarge(VideoError):
    code, title = "resolution_too_large", "The video's resolution is too large"


class UrlRefused(VidlexError):
    code, status, title = "url_refused", 422, "The service may not open this URL"


class FetchFailed(VidlexError):
    code, status, title = "fetch_failed", 422, "The URL could not be read"


class LabelTextInvalid(VidlexError):
    code, status, title = "label_text_invalid", 422, "Invalid label text"


class ParentNotFound(VidlexError):
    code, status, title = "parent_not_found", 422, "Parent not found"


class ParentCycle(VidlexError):
    code, status, title = "parent_cycle", 422, "The parents form a cycle"


class IdempotencyKeyReused(VidlexError):
    code, status, title = "idempotency_key_reused", 422, "This Idempotency-Key was used for another request"


class QuotaExceeded(VidlexError):
    code, status, title = "quota_exceeded", 403, "The label quota is exhausted"


class ByteQuotaExceeded(VidlexError):
    code, status, title = "byte_quota_exceeded", 403, "The namespace's quota of bytes is exhausted"


class Overloaded(VidlexError):
    code, status, title = "overloaded", 429, "The service is overloaded"
    retry_after_seconds = 1


class TooManyConnections(VidlexError):
    code, status, title = "too_many_connections", 429, "Too many connections"
    retry_after_seconds = 1


class ShareExceeded(Overloaded):
    """``limit`` names what the client has too much of; others are still served."""

    code, title = "share_exceeded", "This client uses its share of the service"


class RateLimited(VidlexError):
    code, status, title = "rate_limited", 429, "Too many requests with this API key"
    retry_after_seconds = 1


class NoApiKeys(VidlexError):
    code, status, title = (
        "no_api_keys",
        503,
        "The service listens on a public address without API keys: create one with `vidlex keys create --direct "
        "--scope admin`, set VIDLEX_API_KEYS_FILE, or pass --insecure",
    )


class DeadlineExceeded(VidlexError):
    code, status, title = "deadline_exceeded", 504, "The deadline cannot be met"


class EncodeFailed(VidlexError):
    code, status, title = "encode_failed", 503, "The encoder failed on this request"
    retry_after_seconds = 1


class StoreUnavailable(VidlexError):
    code, status, title = "store_unavailable", 503, "The label store does not answer"
    retry_after_seconds = 2


class StoreLost(StoreUnavailable):
    code, title = "store_lost", "The label store has lost its data, or is another one than before"


class StoreReadOnly(StoreUnavailable):
    code, title = "store_read_only", "The label store accepts no writes"


class StoreDenied(StoreUnavailable):
    code, title = "store_access_denied", "The label store refuses this service's password or rights"


class StoreFull(StoreUnavailable):
    code, status, title = "store_full", 507, "The label store has no space left"


class VolatileStore(StoreUnavailable):
    code, title = "store_volatile", "The label store may lose labels"


class LabelCorrupt(VidlexError):
    code, status, title = "label_corrupt", 503, "The stored record of this label is damaged"
    retry_after_seconds = 60


class KeptVideoDamaged(VidlexError):
    code, status, title = "kept_video_damaged", 503, "What is kept of this video is damaged"
    retry_after_seconds = 60


class StorageFull(VidlexError):
    code, status, title = "storage_full", 507, "The service has no space left on its disk"


class ModelLoading(VidlexError):
    code, status, title = "model_loading", 503, "The model is loading"
    retry_after_seconds = 2


class Stopping(VidlexError):
    code, status, title = "stopping", 503, "The service is stopping"
    retry_after_seconds = 2

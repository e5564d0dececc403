"""Every error that reaches a client, and the only table from error to HTTP status.

    VidlexError
    ├── InvalidRequest        400 malformed
    ├── InvalidParameter      422 invalid_parameter
    ├── Unauthorized          401 unauthorized          (WWW-Authenticate)
    ├── Forbidden             403 forbidden             (a foreign web page, or a key that may not do this)
    ├── NotFound              404 not_found
    ├── UploadTimeout         408 upload_timeout
    ├── LabelExists           409 label_exists          (carries existing_id)
    ├── RevisionNotReached    409 revision_not_reached  (carries current_revision)
    ├── IdempotencyInFlight   409 idempotency_in_flight (Retry-After)
    ├── PreconditionFailed    412 precondition_failed   (If-Match: the label has changed since)
    ├── ModelConflict         409 model_conflict        (the models' state does not allow it now)
    ├── UploadTooLarge        413 upload_too_large
    ├── UnsupportedMedia      415 unsupported_media
    ├── VideoError            422
    │   ├── UndecodableVideo      undecodable_video
    │   ├── VideoTooLong          video_too_long
    │   └── ResolutionTooLarge    resolution_too_large
    ├── LabelTextInvalid      422 label_text_invalid
    ├── ParentNotFound        422 parent_not_found
    ├── ParentCycle           422 parent_cycle
    ├── IdempotencyKeyReused  422 idempotency_key_reused
    ├── QuotaExceeded         403 quota_exceeded        (waiting does not help: not 429)
    ├── Overloaded            429 overloaded            (Retry-After)
    ├── RateLimited           429 rate_limited          (Retry-After)
    ├── DeadlineExceeded      504 deadline_exceeded
    ├── EncodeFailed          503 encode_failed         (Retry-After)
    ├── StoreUnavailable      503 store_unavailable     (Retry-After)
    ├── ModelLoading          503 model_loading         (Retry-After)
    └── Stopping              503 stopping              (Retry-After, Connection: close)

``str(error)`` is what the client reads as ``detail``: write it for a stranger, with no path, address or native
message in it. What only the operator may see goes to ``internal`` and from there to the log.
Imports nothing of ours, and neither torch nor fastapi.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VidlexError(Exception):
    """Base of all errors with a stable ``code``."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_seconds: int | None = None

    def __init__(self, detail: str = "", *, internal: str = "", **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.internal = internal
        self.extra = extra
        """Further members of the problem document, such as ``existing_id``."""


class InvalidRequest(VidlexError):
    code, status, title = "malformed", 400, "The request could not be understood"


class InvalidParameter(VidlexError):
    code, status, title = "invalid_parameter", 422, "A parameter has a value that is not allowed"


class Unauthorized(VidlexError):
    code, status, title = "unauthorized", 401, "An API key is needed"


class Forbidden(VidlexError):
    code, status, title = "forbidden", 403, "This request is not allowed"


class NotFound(VidlexError):
    code, status, title = "not_found", 404, "There is no such thing"


class UploadTimeout(VidlexError):
    code, status, title = "upload_timeout", 408, "The upload took too long"


class LabelExists(VidlexError):
    code, status, title = "label_exists", 409, "A label of this name exists"

    def __init__(self, detail: str, *, existing_id: str) -> None:
        super().__init__(detail, existing_id=existing_id)
        self.existing_id = existing_id


class RevisionNotReached(VidlexError):
    code, status, title = "revision_not_reached", 409, "This replica has not reached the wanted revision"

    def __init__(self, detail: str, *, current_revision: int) -> None:
        super().__init__(detail, current_revision=current_revision)


class ModelConflict(VidlexError):
    code, status, title = "model_conflict", 409, "The loaded models do not allow this now"


class IdempotencyInFlight(VidlexError):
    code, status, title = "idempotency_in_flight", 409, "A request with this Idempotency-Key is being worked on"
    retry_after_seconds = 1


class PreconditionFailed(VidlexError):
    code, status, title = "precondition_failed", 412, "The label has changed since"


class UploadTooLarge(VidlexError):
    code, status, title = "upload_too_large", 413, "The upload is too large"


class UnsupportedMedia(VidlexError):
    code, status, title = "unsupported_media", 415, "This kind of file is not supported"


class VideoError(VidlexError):
    """The file was accepted as a video but cannot be used: permanent, retrying does not help."""

    status = 422


class UndecodableVideo(VideoError):
    code, title = "undecodable_video", "The video cannot be decoded"


class VideoTooLong(VideoError):
    code, title = "video_too_long", "The video is too long"


class ResolutionTooLarge(VideoError):
    code, title = "resolution_too_large", "The video's resolution is too large"


class LabelTextInvalid(VidlexError):
    code, status, title = "label_text_invalid", 422, "The label's text is not allowed"


class ParentNotFound(VidlexError):
    code, status, title = "parent_not_found", 422, "A parent does not exist"


class ParentCycle(VidlexError):
    code, status, title = "parent_cycle", 422, "The parents form a cycle"


class IdempotencyKeyReused(VidlexError):
    code, status, title = "idempotency_key_reused", 422, "This Idempotency-Key was used for another request"


class QuotaExceeded(VidlexError):
    code, status, title = "quota_exceeded", 403, "The quota of labels is used up"


class Overloaded(VidlexError):
    code, status, title = "overloaded", 429, "Too much work is waiting"
    retry_after_seconds = 1


class RateLimited(VidlexError):
    code, status, title = "rate_limited", 429, "Too many requests with this API key"
    retry_after_seconds = 1


class NoApiKeys(VidlexError):
    """Ends the start: nobody could use the service, or everybody on the network."""

    code, status, title = (
        "no_api_keys",
        503,
        "The service listens on a public address and there is no API key: make one with `vidlex keys create --direct "
        "--scope admin`, name a file of keys (VIDLEX_API_KEYS_FILE), or say --insecure",
    )


class DeadlineExceeded(VidlexError):
    code, status, title = "deadline_exceeded", 504, "The answer would come later than asked for"


class EncodeFailed(VidlexError):
    code, status, title = "encode_failed", 503, "The encoder failed on this request"
    retry_after_seconds = 1


class StoreUnavailable(VidlexError):
    code, status, title = "store_unavailable", 503, "The label store does not answer"
    retry_after_seconds = 2


class ModelLoading(VidlexError):
    code, status, title = "model_loading", 503, "The model is being loaded"
    retry_after_seconds = 2


class Stopping(VidlexError):
    code, status, title = "stopping", 503, "The service is stopping"
    retry_after_seconds = 2

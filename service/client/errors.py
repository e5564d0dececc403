"""Exceptions of `Client` and `AsyncClient`: one class per family of the service's stable codes.

Code that reacts to one fault looks at ``code``; code that reacts to a kind of fault catches its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class VidlexClientError(Exception):
    """``code`` is stable. ``status`` is that of the HTTP answer, None if there was none."""

    default_code: ClassVar[str] = "client_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.status = status
        self.problem: Mapping[str, Any] | None = problem  # as the service sent it, with further members

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The arguments by name are not in ``args``.
        return _restored, (type(self), self.detail, self.code, self.status, self.problem)

    @property
    def request_id(self) -> str | None:
        """In the service's log too."""
        found = (self.problem or {}).get("request_id")
        return found if isinstance(found, str) else None

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The invalid members: ``pointer`` and ``detail`` of each. Empty with most codes."""
        found = (self.problem or {}).get("errors")
        return [dict(item) for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def retry_after_seconds(self) -> float | None:
        found = (self.problem or {}).get("retry_after_ms")
        return found / 1000 if isinstance(found, int | float) else None


def _restored(
    kind: type[VidlexClientError], detail: str, code: str, status: int | None, problem: Mapping[str, Any] | None
) -> VidlexClientError:
    return kind(detail, code=code, status=status, problem=problem)


class NoAnswer(VidlexClientError):
    """The service was not reached, or its answer did not arrive."""

    default_code = "no_answer"


class ConnectionFailed(NoAnswer):
    """``was_connected``: the connection broke, so that the request may have been executed."""

    default_code = "connection_failed"
    was_connected = False


class TlsFailed(NoAnswer):
    """The service's certificate is not accepted, or no encrypted connection comes about."""

    default_code = "tls_failed"


class TimedOut(NoAnswer):
    """The request may have been executed."""

    default_code = "timed_out"


class UnexpectedAnswer(VidlexClientError):
    """What answers is no Vidlex service, or a version of it that this client does not know."""

    default_code = "unexpected_answer"


class FileNotReadable(VidlexClientError):
    """Of this machine; nothing was classified."""

    default_code = "file_not_readable"


class ConfigurationInvalid(VidlexClientError):
    """An argument of the client or one of its variables cannot be used."""

    default_code = "client_configuration"


class RequestInvalid(VidlexClientError):
    """Repeating the same request does not help. Also the class of unknown codes with a status of 4xx."""


class NotAuthorized(VidlexClientError):
    """There is no API key, or it is wrong, revoked or expired."""


class NotAllowed(VidlexClientError):
    """The API key's scope or namespace does not allow the request."""


class QuotaExceeded(NotAllowed):
    """Of labels or bytes of the namespace."""


class NotFound(VidlexClientError):
    pass


class Conflict(VidlexClientError):
    """The state of the service does not allow the request (now)."""


class LabelExists(Conflict):
    @property
    def existing_id(self) -> str | None:
        found = (self.problem or {}).get("existing_id")
        return found if isinstance(found, str) else None


class PreconditionFailed(Conflict):
    """Another change came first."""


class LabelInvalid(RequestInvalid):
    """The text or the parents of a label."""


class VideoInvalid(RequestInvalid):
    """The file is no video, or none that the service accepts."""


class UrlInvalid(RequestInvalid):
    """A URL that the service may not open, or that it could not read."""


class TooLarge(RequestInvalid):
    """The upload, the JSON or the address."""


class Busy(VidlexClientError):
    """The service, or this client's share of it, is taken for longer than the client waits."""


class Unavailable(VidlexClientError):
    """The service, its model or its store cannot answer now."""


class DeadlineExceeded(VidlexClientError):
    pass


class ServiceFailed(VidlexClientError):
    """A fault of the service. Also the class of unknown codes with a status of 5xx."""


class JobFailed(VidlexClientError):
    """A job ended without a result. A job that failed by an error of its video raises that error's class instead."""

    default_code = "job_failed"


class JobNotFinished(VidlexClientError):
    """A job was not finished within the time for which it was waited for. It goes on."""

    default_code = "job_not_finished"


CLASS_OF_CODE: dict[str, type[VidlexClientError]] = {
    code: kind
    for kind, codes in (
        (
            RequestInvalid,
            ("malformed", "invalid_parameter", "method_not_allowed", "idempotency_key_reused", "upload_timeout"),
        ),
        (NotAuthorized, ("unauthorized",)),
        (NotAllowed, ("forbidden",)),
        (QuotaExceeded, ("quota_exceeded", "byte_quota_exceeded")),
        (NotFound, ("not_found",)),
        (Conflict, ("revision_not_reached", "model_conflict", "last_admin_key", "idempotency_in_flight")),
        (Conflict, ("job_conflict", "webhook_secret_missing", "features_of_other_model", "feedback_conflict")),
        (Conflict, ("webhook_conflict",)),
        (LabelExists, ("label_exists",)),
        (PreconditionFailed, ("precondition_failed",)),
        (LabelInvalid, ("label_text_invalid", "parent_not_found", "parent_cycle")),
        (VideoInvalid, ("undecodable_video", "video_too_long", "resolution_too_large", "unsupported_media")),
        (UrlInvalid, ("url_refused", "fetch_failed")),
        (TooLarge, ("upload_too_large", "json_too_complex", "uri_too_long")),
        (Busy, ("overloaded", "too_many_connections", "share_exceeded", "rate_limited")),
        (
            Unavailable,
            (
                *("no_api_keys", "encode_failed", "model_loading", "stopping", "label_corrupt", "storage_full"),
                "kept_video_damaged",
                *("store_unavailable", "store_lost", "store_read_only", "store_access_denied", "store_full"),
                "store_volatile",
            ),
        ),
        (DeadlineExceeded, ("deadline_exceeded",)),
        (ServiceFailed, ("internal_error",)),
    )
    for code in codes
}

_CLASS_OF_STATUS: dict[int, type[VidlexClientError]] = {
    401: NotAuthorized,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    429: Busy,
    502: Unavailable,
    503: Unavailable,
}


def error_of(problem: Mapping[str, Any], status: int) -> VidlexClientError:
    """Of a problem document, also of one that a proxy made or that is empty."""
    code = problem.get("code")
    code = code if isinstance(code, str) else f"http_{status}"
    kind = CLASS_OF_CODE.get(code) or _CLASS_OF_STATUS.get(status)
    kind = kind or (ServiceFailed if status >= 500 else RequestInvalid)
    detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    return kind(str(detail), code=code, status=status, problem=dict(problem))

"""What web pages of other origins may send and read, if VIDLEX_CORS_ORIGINS allows their origin."""

from __future__ import annotations

from typing import Any

from vidlex.service.http.openapi.headers import NAMESPACE_HEADER, RESPONSE_HEADERS

OPTIONS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    "allow_headers": (
        "Authorization",
        "X-API-Key",
        "Content-Type",
        NAMESPACE_HEADER,
        "Idempotency-Key",
        "If-Match",
        "If-None-Match",
        "Last-Event-ID",
        "Prefer",
        "X-Vidlex-Deadline-Ms",
        "X-Request-Id",
    ),
    "expose_headers": (*RESPONSE_HEADERS, "Allow"),
    "allow_credentials": False,  # API keys are sent in headers, never in cookies
}

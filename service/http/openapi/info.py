from __future__ import annotations

from typing import Any

INFO: dict[str, Any] = {
    "title": "Vidlex",
    "summary": "Video tagging with an open vocabulary",
    "description": """\
Register labels as plain text, send a video, receive the labels that apply to it.

**Access.** Send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`. A service on loopback requires none
until the first key is created. Scopes: `read`, `write`, `admin`; each includes the ones before it.

**Namespaces.** Each namespace is a separate vocabulary. The header `X-Vidlex-Namespace` selects it, unless the API key
is bound to one.

**Methods.** HEAD works on every path that has GET. OPTIONS, and 405 `method_not_allowed`, list a path's methods in
`Allow`. Unknown or repeated query parameters and unknown members of a JSON body are refused.

**Bodies.** JSON is UTF-8, with or without a byte order mark; integers may be written as `0.0` or `1e3`. A body with a
`Content-Encoding` (such as gzip) is refused with 415 and `Accept-Encoding: identity`.

**Errors.** `application/problem+json` (RFC 9457) with a stable `code`. The codes of an operation are listed in
`x-error-codes`. 429 and 503 carry `Retry-After` and are worth retrying.

**Consistency.** A write returns the vocabulary's `revision`. A read with that `min_revision` sees the write on every
replica.

**Units.** Scores are 0 to 1. Times are integers in milliseconds.
""",
    "contact": {"name": "Vidlex maintainers"},
    "license_info": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
    "servers": [
        {"url": "/", "description": "The service that sent this document."},
        {"url": "/v1", "description": "The same paths with the version of the interface."},
    ],
    "tags": [
        {"name": "labels", "description": "The vocabulary: register, list, change and remove labels."},
        {"name": "classify", "description": "Find the labels of a video."},
        {"name": "jobs", "description": "The same, acknowledged first and done later; batches; events as they happen."},
        {"name": "videos", "description": "Videos that are kept: their features, never the video itself."},
        {"name": "calibration", "description": "Make scores comparable, from unlabelled videos of one's own domain."},
        {"name": "feedback", "description": "Judge labels of videos, and fit labels' thresholds to the judgements."},
        {"name": "webhooks", "description": "Signed reports of what has happened, and what became of them."},
        {"name": "models", "description": "Replace the served model without downtime. Requires the scope `admin`."},
        {"name": "keys", "description": "API keys. Requires the scope `admin`."},
        {"name": "health", "description": "Health checks and metrics."},
    ],
}

SECURITY_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this service, `vdx_...`."},
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same API key in another header. Send only one of the two.",
    },
}

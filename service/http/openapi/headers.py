from __future__ import annotations

from typing import Any

from vidlex.service.bounds import NAMESPACE_PATTERN, NAMESPACE_RULE

NAMESPACE_HEADER = "X-Vidlex-Namespace"
REVISION_HEADER = "X-Vidlex-Revision"  # after a write, in responses without a label

PARAMETERS: dict[str, dict[str, Any]] = {
    NAMESPACE_HEADER: {
        "name": NAMESPACE_HEADER,
        "in": "header",
        "description": f"Namespace of the request: {NAMESPACE_RULE}. Default: the API key's, else the settings'.",
        "schema": {"type": "string", "pattern": f"^{NAMESPACE_PATTERN}$", "examples": ["zoo"]},
    }
}
# ``openapi_extra`` of routes that call ``namespace_of``.
NAMESPACE_PARAMETER = {"parameters": [{"$ref": f"#/components/parameters/{NAMESPACE_HEADER}"}]}

_STRING = {"type": "string"}
RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "Identifies the request in the service's log: its `X-Request-Id` if valid, else random.",
        "required": True,
        "schema": _STRING | {"pattern": "^[A-Za-z0-9._:-]{1,128}$", "examples": ["0eebd98abb12c582eadd684670a3c118"]},
    },
    "RateLimit": {
        "description": "Requests left to the API key (`r`) and seconds until its bucket is full (`t`). Absent if it "
        "has no limit.",
        "schema": _STRING | {"examples": ['"key";r=199;t=1']},
    },
    "RateLimit-Policy": {
        "description": "Size of a burst of requests with the API key (`q`) and seconds in which it refills (`w`).",
        "schema": _STRING | {"examples": ['"key";q=200;w=2']},
    },
    "Retry-After": {
        "description": "Seconds after which to retry. Always sent with 429 and 503.",
        "schema": {"type": "integer", "minimum": 1, "examples": [1]},
    },
    "Accept-Encoding": {
        "description": "Content codings that are accepted: none. Sent if the request has a `Content-Encoding`.",
        "schema": {"const": "identity"},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "required": True,
        "schema": _STRING | {"examples": ['Bearer realm="vidlex"']},
    },
    "ETag": {
        "description": "Entity tag of the label or job, for `If-Match` (labels) and `If-None-Match`.",
        "schema": _STRING | {"pattern": '^"[!#-~]*"$', "examples": ['"2-1a22d5fcb30"']},
    },
    "Location": {
        "description": "Path of what was created.",
        "schema": _STRING | {"format": "uri-reference", "examples": ["/labels/lbl_000000020000wn88xex5bvdb"]},
    },
    "Preference-Applied": {
        "description": "The preference of the request's `Prefer` that was obeyed.",
        "schema": _STRING | {"examples": ["respond-async"]},
    },
    "Idempotency-Replayed": {
        "description": "The response is that of an earlier request with the same `Idempotency-Key`.",
        "schema": {"const": "true"},
    },
    REVISION_HEADER: {
        "description": "The vocabulary's revision after the write; usable as `min_revision`.",
        "required": True,
        "schema": {"type": "integer", "format": "int64", "minimum": 0, "examples": [3]},
    },
}


def header_refs(*names: str) -> dict[str, Any]:
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}

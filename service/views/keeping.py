from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidlex.service.bounds import MAX_CLIENT_ID_CHARS, MAX_URL_CHARS
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.videos.keeping import KeepOptions


def keep_options(params: ClassifyParams, *, uri: str | None = None) -> KeepOptions | None:
    """None unless the video is to be kept. ``uri``: where it was read from, if the client names no other.

    A query may be a secret, and a presigned URL ends: such an address is not kept. Raises InvalidParameter.
    """
    if not params.keep:
        return None
    known = None if uri is None or "?" in uri or len(uri) > MAX_URL_CHARS else uri
    return KeepOptions(
        keep_seconds=params.keep_seconds,
        client_id=params.client_id,
        metadata=params.metadata,
        thumbnails=params.thumbnails,
        uri=params.uri if params.uri is not None else known,
    ).checked()


def params_of_line(params: ClassifyParams, custom_id: str, metadata: Mapping[str, Any] | None) -> ClassifyParams:
    """Of a line of a batch: where they name no others, its own id and metadata are those of the kept video."""
    changes: dict[str, Any] = {}
    if params.keep and params.client_id is None and len(custom_id) <= MAX_CLIENT_ID_CHARS and custom_id.isprintable():
        changes["client_id"] = custom_id
    if params.keep and metadata and not params.metadata:
        changes["metadata"] = dict(metadata)
    return params.model_copy(update=changes) if changes else params

"""A video that is to be tagged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VideoSource:
    """``uri`` is an absolute path or a URI, as it stands in the row of the result."""

    uri: str
    client_id: str | None = None  # of a list file with a column ``id``
    metadata: Mapping[str, str] = field(default_factory=dict)  # further columns of a list file
    version: str | None = None  # of the content, where a listing says it: "SIZE:TIME" or "SIZE:ETAG"

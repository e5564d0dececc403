"""Bounds of user input that several rooms check or document."""

from __future__ import annotations

NAMESPACE_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"
NAMESPACE_RULE = "1 to 64 of a-z 0-9 _ -, the first a letter or digit"
FINGERPRINT_PATTERN = r"[!-~]{1,200}"

MAX_NAME_CHARS = 128
"""Of a label's display name or alias, after NFKC."""
MAX_ALIASES = 16
MAX_CATEGORIES = 32
MAX_PARENTS = 16
MAX_METADATA_BYTES = 16_384
"""Of the metadata's compact JSON in UTF-8."""
MAX_METADATA_LEVELS = 32
"""Of nested objects and lists in the metadata, which a response contains a few levels deeper."""

MAX_METADATA_KEYS = 1000
"""Of all objects in the metadata."""
MAX_JSON_LEVELS = 64
"""Of a request's body."""
MAX_JSON_VALUES = 50_000
"""Of a request's body, other than a batch of labels."""
MAX_BATCH_JSON_VALUES = 400_000
MAX_PAGE_BYTES = 2 << 20
"""After which a list of labels ends early."""
MAX_BATCH_ANSWER_BYTES = 4 << 20
"""Of the metadata in the answer to a batch of labels."""
MAX_SCORED_LABELS = 100_000
"""In the answer to a video."""
MAX_CLASSIFICATION_BYTES = 16 << 20
"""After which the labels of the answer to a video end early."""
MAX_PATH_BYTES = 4096
MAX_QUERY_BYTES = 16_384
URL_HOST_PATTERN = r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:]+"
"""A host that URLs of clients may name, `*.` and a name for those below it, or `*`."""
MAX_URL_CHARS = 4096
"""Of a URL that the service opens for a client."""
MAX_CLIENT_ID_CHARS = 256
"""Of a client's own id of a kept video."""
MAX_KEEP_SECONDS = 3_200_000_000
"""About a hundred years."""

MAX_BATCH_LABELS = 1000
MAX_PREVIEWS = 32
MAX_CANDIDATES = 1000
MAX_LABEL_IDS = 30_000
DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 1000
MAX_FILTER_CHARS = 200
"""Of a query parameter that filters labels."""
DEFAULT_MAX_LABELS = 1_000_000
"""Per namespace."""
DEFAULT_MAX_NAMESPACE_BYTES = 2**30
"""Of the names, categories and metadata of a namespace's labels."""

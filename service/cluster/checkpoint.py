"""What earlier runs have done, small enough to be on every node: 16 bytes per row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vidlex.service.bulk.known import source_key
from vidlex.service.bulk.results import TagResult

_DIGEST_BYTES = 16  # of 10 million rows, two have the same digest with a probability of 1e-25


class DoneRows:
    """A ``KnownResults`` that knows which rows there are, by URI and version of the file, but not what they say.

    Its results have neither a receipt nor a failure: they are not to be written again. A version None is that of a file
    that could not be read.
    """

    def __init__(self, rows: Iterable[tuple[str, str | None]] = ()) -> None:
        digests = b"".join(_digest(uri, version) for uri, version in rows)
        self._sorted: NDArray[np.void] = np.unique(np.frombuffer(digests, dtype=[("a", ">u8"), ("b", ">u8")]))

    def __len__(self) -> int:
        return len(self._sorted)

    def has_source(self, uri: str, version: str | None) -> bool:
        if not len(self._sorted):
            return False
        wanted = np.frombuffer(_digest(uri, version), dtype=self._sorted.dtype)[0]
        place = int(np.searchsorted(self._sorted, wanted))
        return place < len(self._sorted) and bool(self._sorted[place] == wanted)

    def of_source(self, uri: str, version: str | None) -> TagResult | None:
        return TagResult(uri) if self.has_source(uri, version) else None

    def of_content(self, result_id: str) -> TagResult | None:
        return None


def _digest(uri: str, version: str | None) -> bytes:
    return source_key(uri, version, num_bytes=_DIGEST_BYTES)

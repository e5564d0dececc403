"""What tags one file: the pieces of the service in this process, or a running service."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import TagResult, result_id_of


@dataclass(frozen=True)
class EngineIdentity:
    """Of what scores: equal identities give equal scores."""

    model_id: str
    fingerprint: str
    vocabulary: str  # digest of labels (names, ids, thresholds, categories) and of the calibration
    vocabulary_revision: int | None
    num_labels: int

    def result_id(self, sha256: str, options: TagOptions) -> str:
        return result_id_of(sha256, self.fingerprint, self.vocabulary, options.digest_text)


@dataclass(frozen=True)
class BusyShares:
    """Busy seconds of each part since the engine was opened, and how many of it there are."""

    decode_seconds: float
    num_decoders: int
    device_seconds: float
    num_devices: int


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine. ``uri`` is what the result names."""

    path: Path
    uri: str
    sha256: str
    num_bytes: int
    client_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class TagEngine(Protocol):
    """Thread-safe. ``close`` last."""

    @property
    def identity(self) -> EngineIdentity: ...

    @property
    def concurrency(self) -> int:
        """Calls of ``tag`` at a time that keep every part busy."""

    def tag(self, file: LocalFile, options: TagOptions, cancelled: threading.Event) -> TagResult:
        """Blocks. A file that cannot be tagged is a result with its failure.

        Raises EngineUnavailable if no file can be tagged (any more).
        """

    def busy(self) -> BusyShares | None:
        """None where it is not known."""

    def close(self) -> None: ...


class EngineUnavailable(Exception):
    """The service cannot be reached or refuses the key, or the encoder has stopped: the run ends, nothing is lost."""

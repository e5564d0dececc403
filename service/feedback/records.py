"""Judgements of users, the versions of a threshold that follow from them, and their JSON in the store.

Times are Unix time in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from vidlex.service.errors import StoreUnavailable

JUDGEMENT_PREFIX, VERSION_PREFIX = "jdg", "fit"  # of ids, see ids.py
ScoredBy = Literal["service", "client"]
VersionKind = Literal["fit", "revert"]
RecordT = TypeVar("RecordT")


@dataclass(frozen=True, kw_only=True)
class NewJudgement:
    """One of ``video_id`` (kept) and ``sha256``, one of ``label_id`` and ``label``; of a segment if it has times.

    ``score``: the one that the client saw, of the model ``fingerprint`` and the ``calibration``; None: not known.
    """

    right: bool  # the label applies
    video_id: str | None = None
    sha256: str | None = None
    label_id: str | None = None
    label: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    score: float | None = None
    fingerprint: str | None = None
    calibration: str | None = None  # fingerprint; None: the model's own scores
    note: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The newest one of a video or segment and a label. ``label_name``: what the label was called, for another name is
    another vector. ``score`` is that of ``fingerprint`` and ``calibration`` at the time, computed by ``scored_by``."""

    id: str
    label_id: str
    label_name: str
    sha256: str
    right: bool
    client: str  # id of an API key, else an address
    created_at_ms: int
    video_id: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    score: float | None = None
    scored_by: ScoredBy | None = None
    fingerprint: str | None = None
    calibration: str | None = None
    note: str = ""
    source: str = ""

    @property
    def subject(self) -> str:
        """What is judged: equal content is one video, with whatever id it is kept."""
        return self.sha256 if self.start_ms is None else f"{self.sha256}:{self.start_ms}-{self.end_ms}"


@dataclass(frozen=True, kw_only=True)
class ThresholdVersion:
    """A change of a label's threshold by this feature. Thresholds of None are the model's default."""

    id: str
    kind: VersionKind
    label_id: str
    label_name: str
    threshold_before: float | None
    threshold: float | None
    fingerprint: str  # of the model
    calibration: str | None
    client: str  # who applied it; "auto": the service
    created_at_ms: int
    fit: dict[str, Any] | None = None  # of a fit: what it was based on
    reverts: str | None = None  # of a revert: the version that it took back


def to_json(record: Judgement | ThresholdVersion) -> str:
    """Members of None and empty texts are left out."""
    values = {name: value for name, value in asdict(record).items() if value is not None and value != ""}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def judgement_from_json(raw: bytes) -> Judgement:
    return _from_json(Judgement, raw)


def version_from_json(raw: bytes) -> ThresholdVersion:
    """Raises StoreUnavailable for a damaged record."""
    return _from_json(ThresholdVersion, raw)


def _from_json(kind: type[RecordT], raw: bytes) -> RecordT:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        data = json.loads(raw)
        # What is left out is empty or None; members of a newer version are ignored.
        empty = {"client": "", "threshold_before": None, "threshold": None, "calibration": None}
        return kind(**{k: v for k, v in (empty | data).items() if k in names})
    except (ValueError, TypeError) as error:
        raise StoreUnavailable("A record of feedback is damaged", internal=repr(error)) from error

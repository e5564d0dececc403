"""What people changed in another program, as judgements for ``POST /feedback``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vidlex.service.exports.tagged import TaggedVideo


class NotCorrections(ValueError):
    """The file is not one that this program reads corrections from."""


@dataclass(frozen=True)
class Correction:
    """Whether a label applies to a video, or to a part of it (both times in milliseconds)."""

    name: str
    right: bool
    video_id: str | None = None
    sha256: str | None = None
    label_id: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    score: float | None = None  # as the model gave it, with the next two
    fingerprint: str | None = None
    calibration: str | None = None

    def judgement(self, source: str) -> dict[str, Any]:
        """As ``POST /feedback`` takes it. ``source`` names the program."""
        is_kept = self.video_id is not None
        members = {
            "video_id": self.video_id,
            "sha256": None if is_kept else self.sha256,
            "label_id": self.label_id,
            "label": self.name if self.label_id is None else None,
            "right": self.right,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "score": self.score,
            "fingerprint": self.fingerprint,
            "calibration": self.calibration,
            "source": source,
        }
        return {name: value for name, value in members.items() if value is not None}


@dataclass(frozen=True)
class Predicted:
    """What a video's entry in the other program says about the labels that it was given with."""

    video_id: str | None
    sha256: str | None
    fingerprint: str | None
    calibration: str | None
    labels: Mapping[str, Mapping[str, Any]]  # by name: id, score, matched

    @classmethod
    def of(cls, video: TaggedVideo) -> Predicted:
        labels = {
            label.name: {"id": label.id, "score": label.score, "matched": label.matched} for label in video.labels
        }
        return cls(video.video_id, video.sha256, video.fingerprint, video.calibration, labels)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Predicted:
        """Of ``vars`` of such an object."""
        return cls(
            video_id=data.get("video_id"),
            sha256=data.get("sha256"),
            fingerprint=data.get("fingerprint"),
            calibration=data.get("calibration"),
            labels=data.get("labels") or {},
        )

    def judge(self, name: str, right: bool, start_ms: int | None = None, end_ms: int | None = None) -> Correction:
        label = self.labels.get(name, {})
        score = label.get("score") if start_ms is None else None
        return Correction(
            name=name,
            right=right,
            video_id=self.video_id,
            sha256=self.sha256,
            label_id=label.get("id"),
            start_ms=start_ms,
            end_ms=end_ms,
            score=score,
            fingerprint=self.fingerprint if score is not None else None,
            calibration=self.calibration if score is not None else None,
        )

    def judge_all(self, chosen: Iterable[str]) -> list[Correction]:
        """Chosen labels are right; those that the model had matched and no one chose are wrong."""
        names = dict.fromkeys(chosen)
        missing = [name for name, label in self.labels.items() if label.get("matched") and name not in names]
        return [self.judge(name, True) for name in names] + [self.judge(name, False) for name in missing]

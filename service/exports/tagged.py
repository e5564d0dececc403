"""What the formats need of a tagged video, from an answer of ``POST /classify`` or a row of a bulk run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

MAX_LINE_BYTES = 64 << 20
_ROUNDING = 1e-6  # of a time in frames


class NotAResult(ValueError):
    """The file holds neither answers of ``POST /classify`` nor rows of ``vidlex tag``."""


@dataclass(frozen=True)
class TaggedStretch:
    start_ms: int
    end_ms: int
    score: float


@dataclass(frozen=True)
class TaggedName:
    id: str | None
    name: str
    score: float
    matched: bool
    stretches: Sequence[TaggedStretch] = ()


@dataclass(frozen=True)
class TaggedVideo:
    """Times in milliseconds from the first frame."""

    uri: str
    sha256: str
    duration_ms: int
    width: int
    height: int
    fps: float
    model_id: str
    fingerprint: str
    calibration: str | None
    labels: Sequence[TaggedName]  # highest score first
    video_id: str | None = None  # of a kept video

    @property
    def matched(self) -> list[TaggedName]:
        return [label for label in self.labels if label.matched]

    def stretches(self, label: TaggedName) -> Sequence[TaggedStretch]:
        """The whole video for a matched label without any."""
        return label.stretches or (TaggedStretch(0, self.duration_ms, label.score),)

    def frames(self, stretch: TaggedStretch) -> tuple[int, int]:
        """The first and the last frame of a stretch, at least one; the first frame of the video is 1."""
        last = max(1, self._frame(self.duration_ms) - 1)
        start = min(self._frame(stretch.start_ms), last)
        return start, min(max(start, self._frame(stretch.end_ms) - 1), last)

    def _frame(self, time_ms: int) -> int:
        return int(time_ms * self.fps / 1000 + _ROUNDING) + 1


def from_json(data: Any, uri: str | None = None) -> TaggedVideo:
    """``uri`` names the video of an answer of ``POST /classify``, which does not know it. Raises NotAResult."""
    try:
        return _from_classification(data, uri) if data.get("object") == "video.classification" else _from_row(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAResult(f"this is no result of Vidlex: {type(error).__name__}: {error}") from error


def read_results(file: TextIO, uri: str | None = None) -> Iterator[TaggedVideo]:
    """One JSON value, a list of them or JSON lines. Videos that could not be tagged are left out. Raises NotAResult."""
    line = file.readline(MAX_LINE_BYTES)
    while line.isspace():
        line = file.readline(MAX_LINE_BYTES)
    try:
        json.loads(line)
    except (ValueError, RecursionError):  # one value over several lines
        values = _parse(line + file.read(MAX_LINE_BYTES))
        for value in values if isinstance(values, list) else [values]:
            if not _has_failed(value):
                yield from_json(value, uri)
        return
    while line:
        values = _parse(line) if line.strip() else []
        for value in values if isinstance(values, list) else [values]:
            if not _has_failed(value):
                yield from_json(value, uri)
        line = file.readline(MAX_LINE_BYTES)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotAResult("this is no JSON, or it is too long") from error


def _has_failed(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("error_code"))


def _from_classification(data: Mapping[str, Any], uri: str | None) -> TaggedVideo:
    video = data["video"]
    return TaggedVideo(
        uri=uri if uri is not None else str(data.get("uri") or video["sha256"]),
        sha256=str(video["sha256"]),
        duration_ms=int(video["duration_ms"]),
        width=int(video["width"]),
        height=int(video["height"]),
        fps=float(video["fps"]),
        model_id=str(data["model"]["id"]),
        fingerprint=str(data["model"]["fingerprint"]),
        calibration=data.get("calibration"),
        labels=[_label(label) for label in data["labels"]],
        video_id=data.get("video_id"),
    )


def _from_row(data: Mapping[str, Any]) -> TaggedVideo:
    receipt = data["receipt"]
    return TaggedVideo(
        uri=str(data["uri"]),
        sha256=str(data["sha256"]),
        duration_ms=int(data["duration_ms"]),
        width=int(data["width"]),
        height=int(data["height"]),
        fps=float(data["fps"]),
        model_id=str(receipt["model_id"]),
        fingerprint=str(receipt["fingerprint"]),
        calibration=receipt.get("calibration"),
        labels=[_label(label) for label in data["labels"]],
        video_id=data.get("video_id"),
    )


def _label(data: Mapping[str, Any]) -> TaggedName:
    return TaggedName(
        id=data.get("id"),
        name=str(data["name"]),
        score=float(data["score"]),
        matched=bool(data["matched"]),
        stretches=[
            TaggedStretch(int(stretch["start_ms"]), int(stretch["end_ms"]), float(stretch["score"]))
            for stretch in data.get("stretches") or ()
        ],
    )

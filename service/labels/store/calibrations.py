"""Calibrations of a namespace's scores, one per encoder, as the store keeps them; the model knows what they mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

CalibrationSource = Literal["videos", "recent"]


class CalibrationCorrupt(ValueError): ...


@dataclass(frozen=True)
class Calibration:
    fingerprint: str  # of this calibration
    source: CalibrationSource
    num_videos: int
    created_at_ms: int
    has_platt: bool  # whether labelled videos were used
    values: dict[str, Any]  # JSON values of the model's calibration


def calibration_to_json(calibration: Calibration) -> str:
    return json.dumps(asdict(calibration), separators=(",", ":"))


def calibration_from_json(raw: bytes) -> Calibration:
    """Raises CalibrationCorrupt."""
    try:
        data = json.loads(raw)
        return Calibration(**{field.name: data[field.name] for field in fields(Calibration)})
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationCorrupt(f"it cannot be read: {error!r}") from error

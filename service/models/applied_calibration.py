"""A stored calibration in the form that the label index applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.model.calibration.domain import CalibrationError, DomainCalibration
from vidlex.model.scoring import Scorer
from vidlex.service.labels.index.slot_affine import LabelCalibration
from vidlex.service.labels.store.calibrations import Calibration

_log = structlog.get_logger("vidlex.models")


@dataclass(frozen=True, eq=False)
class AppliedCalibration:
    domain: DomainCalibration
    stored: Calibration

    @property
    def fingerprint(self) -> str:
        return self.stored.fingerprint

    @property
    def centre(self) -> NDArray[np.float32]:
        return self.domain.statistics.mean * np.float32(self.domain.mean_weight)

    def affine(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.domain.affine(vectors)


def to_apply(stored: Calibration | None, *, dim: int) -> AppliedCalibration | None:
    """A stored calibration that this version cannot apply is reported and not applied."""
    if stored is None:
        return None
    try:
        domain = DomainCalibration.from_dict(stored.values)
        if domain.dim == dim:
            return AppliedCalibration(domain, stored)
        problem = f"it has {domain.dim} dimensions, the model {dim}"
    except CalibrationError as error:
        problem = str(error)
    _log.error("calibration_ignored", fingerprint=stored.fingerprint, reason=problem)
    return None


def as_applied(calibration: LabelCalibration | None) -> AppliedCalibration | None:
    return cast("AppliedCalibration | None", calibration)  # those of an index are all made by ``to_apply``


def fingerprint_of(calibration: AppliedCalibration | None) -> str | None:
    return None if calibration is None else calibration.fingerprint


def scorer_of(own: Scorer, calibration: AppliedCalibration | None) -> Scorer:
    return own if calibration is None else calibration.domain.scorer or own

"""A default calibration in a checkpoint: entry ``calibration`` of ``config.json``, and two tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.domain import DefaultCalibration, LabelBank, Reference
from vidlex.model.calibration.statistics import DomainStatistics

PREFIX = "calibration."
MEAN = "calibration.mean"  # [D]
BASIS = "calibration.basis"  # [r, D]


@dataclass(frozen=True)
class StoredCalibration:
    num_videos: int
    residual: float
    reference_mean: float
    reference_std: float
    bank_mean: float | None = None  # these three, or none of them
    bank_std_of_means: float | None = None
    bank_std: float | None = None
    mean_weight: float = 1.0


def to_stored(calibration: DefaultCalibration) -> tuple[StoredCalibration, dict[str, NDArray[np.float32]]]:
    statistics, reference = calibration.statistics, calibration.reference
    bank = calibration.bank
    entry = StoredCalibration(
        statistics.num_videos,
        statistics.residual,
        reference.mean,
        reference.std,
        bank_mean=None if bank is None else bank.mean,
        bank_std_of_means=None if bank is None else bank.std_of_means,
        bank_std=None if bank is None else bank.std,
        mean_weight=calibration.mean_weight,
    )
    return entry, {MEAN: statistics.mean, BASIS: statistics.basis}


def from_stored(entry: StoredCalibration, tensors: Mapping[str, NDArray[np.floating[Any]]]) -> DefaultCalibration:
    """Raises KeyError for a missing tensor, ValueError for a wrong one."""
    mean, basis = (np.ascontiguousarray(tensors[name], np.float32) for name in (MEAN, BASIS))
    statistics = DomainStatistics(mean, basis, entry.residual, entry.num_videos)
    reference = Reference(entry.reference_mean, entry.reference_std)
    numbers = (entry.bank_mean, entry.bank_std_of_means, entry.bank_std)
    known = [number for number in numbers if number is not None]
    bank = LabelBank(*known) if len(known) == 3 else None
    return DefaultCalibration(statistics, reference, bank, entry.mean_weight)

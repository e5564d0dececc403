"""From a label's similarity to one that is comparable with every other label's.

    adjusted = reference_mean + reference_std * (similarity - mean) / std

where mean and std are those of the label's similarity over a domain's videos (``statistics.py``), and the reference is
the mean and std of an ordinary label in the units that the scorer was fitted to. ``scorer.probability(adjusted)`` is
then the label's probability.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.scoring import Calibration, Scorer

FORMAT = 1
_NUMBERS = ("mean_weight", "offset", "spread_weight", "constant", "min_variance")


class CalibrationError(ValueError): ...


@dataclass(frozen=True)
class Reference:
    """Mean and standard deviation of an ordinary label's similarity, in the units that a scorer was fitted to."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(f"a reference needs a finite mean and a positive std, got {self}")


@dataclass(frozen=True)
class LabelBank:
    """How the similarities of a fixed bank of ordinary labels are distributed over the domain."""

    mean: float  # of the labels' means
    std_of_means: float
    std: float  # root of the labels' mean variance


@dataclass(frozen=True, eq=False)
class DomainCalibration:
    """Of a label whose similarity has mean ``m`` and variance ``v`` in the statistics:

        mean = mean_weight m + offset,    variance = spread_weight v + constant, at least min_variance

    Raises ValueError unless all numbers are finite, and the variance positive.
    """

    statistics: DomainStatistics  # of the domain
    mean_weight: float = 1.0
    offset: float = 0.0
    spread_weight: float = 1.0
    constant: float = 0.0
    min_variance: float = 1e-12
    reference: Reference = Reference()
    scorer: Scorer | None = None  # of adjusted similarities; None: the model's own
    bank: LabelBank | None = None

    def __post_init__(self) -> None:
        numbers = (self.mean_weight, self.offset, self.spread_weight, self.constant, self.min_variance)
        if not all(np.isfinite(numbers)) or min(self.spread_weight, self.constant) < 0 or self.min_variance <= 0:
            raise ValueError(f"a calibration needs finite numbers and positive variances, got {numbers}")

    @property
    def dim(self) -> int:
        return self.statistics.dim

    def moments(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std [V] that labels [V, D' >= D] are adjusted by; see DomainStatistics.moments."""
        mean, variance = self.statistics.moments(vectors)
        variance = np.maximum(self.spread_weight * variance + self.constant, self.min_variance)
        return self.mean_weight * mean + self.offset, np.sqrt(variance)

    def affine(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift [V] such that ``adjusted = scale * similarity + shift``."""
        mean, std = self.moments(vectors)
        scale = self.reference.std / std
        return scale.astype(np.float32), (self.reference.mean - scale * mean).astype(np.float32)

    def adjust(self, similarity: NDArray[np.floating[Any]], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of similarities [..., V] with labels [V, D]."""
        scale, shift = self.affine(vectors)
        adjusted: NDArray[np.float32] = np.asarray(similarity, np.float32) * scale + shift
        return adjusted

    def fingerprint(self, model_fingerprint: str) -> str:
        """16 hex digits over everything that determines a probability, given the model."""
        text = json.dumps([model_fingerprint, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "statistics": self.statistics.to_dict(),
            **{name: getattr(self, name) for name in _NUMBERS},
            "reference": asdict(self.reference),
            "scorer": None if self.scorer is None else asdict(self.scorer),
            "bank": None if self.bank is None else asdict(self.bank),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DomainCalibration:
        """Raises CalibrationError."""
        try:
            if data["format"] != FORMAT:
                raise CalibrationError(f"unknown format {data['format']!r}; this version reads format {FORMAT}")
            scorer, bank = data["scorer"], data["bank"]
            return cls(
                statistics=DomainStatistics.from_dict(data["statistics"]),
                **{name: float(data[name]) for name in _NUMBERS},
                reference=Reference(**data["reference"]),
                scorer=None
                if scorer is None
                else Scorer(scorer["logit_scale"], scorer["logit_bias"], Calibration(**scorer["calibration"])),
                bank=None if bank is None else LabelBank(**bank),
            )
        except CalibrationError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"not a calibration: {error!r}") from error


@dataclass(frozen=True)
class DefaultCalibration:
    """What a checkpoint ships: statistics of videos or photos like those that its scorer was fitted to.

    They do not change its own scores. A domain's calibration keeps the level of ``reference``, and labels that are
    close to everything are known without one.
    """

    statistics: DomainStatistics
    reference: Reference
    bank: LabelBank | None = None
    # at most this much of a label's mean in a domain is subtracted; less than 1 where labels have a learned bias, which
    # is most of their mean and says how common they are
    mean_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mean_weight <= 1:
            raise ValueError(f"mean_weight must be between 0 and 1, got {self.mean_weight}")


def bank_of(statistics: DomainStatistics, vectors: NDArray[np.float32]) -> LabelBank:
    """``vectors`` [K, D]: of ``bank.BANK``."""
    means, variances = statistics.moments(vectors)
    return LabelBank(float(means.mean()), float(means.std()), float(np.sqrt(variances.mean())))


def reference_of(statistics: DomainStatistics, vectors: NDArray[np.float32]) -> Reference:
    """``vectors`` [K, D]: of ``bank.BANK``."""
    bank = bank_of(statistics, vectors)
    return Reference(bank.mean, bank.std)

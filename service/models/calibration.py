"""Fits a namespace's calibration to statistics of its videos, and tells what it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.bank import BANK
from vidlex.model.calibration.domain import CalibrationError, LabelBank
from vidlex.model.calibration.fit import check_num_videos, fit_domain
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.scoring import Calibration as Platt
from vidlex.model.scoring import Scorer
from vidlex.service.errors import InvalidParameter, ModelConflict, VidlexError
from vidlex.service.labels.store.calibrations import Calibration, CalibrationSource
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.applied_calibration import AppliedCalibration, as_applied
from vidlex.service.models.served_model import ModelFacts, Vocabulary

# A label is a hub if its mean similarity lies this many standard deviations of ordinary labels' means above theirs: one
# of hundreds of labels.
HUB_DISTANCE = 2.5
_HUB_SCORE = 0.5


@dataclass(frozen=True)
class LabelEffect:
    """Shares of the domain's videos that match, if a label's similarities are normally distributed."""

    label: IndexedLabel
    mean: float  # of the similarity
    std: float
    share_before: float
    share_after: float
    is_hub: bool


def calibration_of(vocabulary: Vocabulary) -> AppliedCalibration | None:
    return as_applied(vocabulary.index.calibration)


def fit(
    vocabulary: Vocabulary, statistics: DomainStatistics, source: CalibrationSource, platt: tuple[float, float] | None
) -> AppliedCalibration:
    """``platt``: slope and intercept, fitted to labelled videos on the logits of this calibration without it.

    Raises InvalidParameter, StoreUnavailable, and what ``Labeler.encode`` raises.
    """
    facts = vocabulary.facts
    try:
        check_num_videos(statistics.num_videos)
        results = vocabulary.labeler.encode(BANK)
        vectors = [result for result in results if not isinstance(result, VidlexError)]
        if len(vectors) < len(BANK):
            raise next(result for result in results if isinstance(result, VidlexError))
        domain = fit_domain(statistics, np.stack(vectors), facts.scorer, facts.calibration)
    except CalibrationError as error:
        raise InvalidParameter(f"The calibration is not possible: {error}") from None
    if platt is not None:
        domain = replace(domain, scorer=replace(domain.scorer or facts.scorer, calibration=Platt(*platt)))
    stored = Calibration(
        fingerprint=domain.fingerprint(facts.fingerprint),
        source=source,
        num_videos=statistics.num_videos,
        created_at_ms=time.time_ns() // 1_000_000,
        has_platt=platt is not None,
        values=domain.to_dict(),
    )
    return AppliedCalibration(domain, stored)


def parse_statistics(values: dict[str, Any], fingerprint: str, facts: ModelFacts) -> DomainStatistics:
    """``values``: of ``DomainStatistics.to_dict``; ``fingerprint``: of the model that encoded the videos.

    Raises ModelConflict for another model than the served one, InvalidParameter.
    """
    if fingerprint != facts.fingerprint:
        raise ModelConflict(f"The statistics are of model {fingerprint}; {facts.fingerprint} is served")
    try:
        statistics = DomainStatistics.from_dict(values)
        if statistics.dim != facts.dim:
            raise ValueError(f"expected {facts.dim} dimensions, got {statistics.dim}")
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidParameter(
            "The statistics are not valid", errors=[{"pointer": "/statistics", "detail": str(error)[:200]}]
        ) from None
    return statistics


def label_effects(vocabulary: Vocabulary, calibration: AppliedCalibration, max_labels: int) -> list[LabelEffect]:
    """Hubs first, then the labels whose share of matching videos changes most."""
    facts, domain = vocabulary.facts, calibration.domain
    effects = []
    for labels, vectors in vocabulary.index.batches():
        means, variances = domain.statistics.moments(vectors)
        stds = np.sqrt(variances)
        thresholds = np.array([facts.threshold_of(label) for label in labels])
        before = _share_above(thresholds, facts.scorer, means, stds)
        scale, shift = domain.affine(vectors)
        after = _share_above(thresholds, domain.scorer or facts.scorer, means * scale + shift, stds * scale)
        hubs = _are_hubs(domain.bank, means)
        effects += [
            LabelEffect(
                label, float(means[i]), float(stds[i]),
                share_before=float(before[i]), share_after=float(after[i]), is_hub=bool(hubs[i]),
            )
            for i, label in enumerate(labels)
        ]  # fmt: skip
        effects.sort(key=lambda e: (not e.is_hub, -abs(e.share_after - e.share_before), e.label.name))
        del effects[max_labels:]
    return effects


def hub_warnings(vocabulary: Vocabulary, vectors: Sequence[NDArray[np.float32]]) -> list[tuple[str, str] | None]:
    """(code, detail) for labels [D] close to every video of the calibrated domain, else of those the model knows."""
    facts, applied = vocabulary.facts, calibration_of(vocabulary)
    known = facts.calibration if applied is None else applied.domain
    if known is None or not vectors:
        return [None] * len(vectors)
    bank = known.bank
    means, _ = known.statistics.moments(np.stack(vectors))
    scores = facts.scorer.probability(means)
    warnings: list[tuple[str, str] | None] = []
    for mean, score, is_hub in zip(means.tolist(), scores.tolist(), _are_hubs(bank, means).tolist(), strict=True):
        if is_hub and bank is not None:
            ordinary = f"{bank.mean:.3f} +- {bank.std_of_means:.3f}"
            detail = f"It is close to nearly every video (mean similarity {mean:.3f}, ordinary labels {ordinary})"
            warnings.append(("hub_label", f"{detail}: its score tells videos apart poorly"))
        elif applied is None and score > _HUB_SCORE:
            warnings.append(
                ("hub_label", f"Its score on an average video is {score:.2f}: it matches nearly everything")
            )
        else:
            warnings.append(None)
    return warnings


def _are_hubs(bank: LabelBank | None, means: NDArray[np.float64]) -> NDArray[np.bool_]:
    hubs: NDArray[np.bool_] = means > (np.inf if bank is None else bank.mean + HUB_DISTANCE * bank.std_of_means)
    return hubs


def _share_above(
    thresholds: NDArray[np.float64], scorer: Scorer, means: NDArray[np.float64], stds: NDArray[np.float64]
) -> NDArray[np.float64]:
    unique, inverse = np.unique(thresholds, return_inverse=True)
    bounds = np.array([scorer.similarity(float(threshold)) for threshold in unique])[inverse]
    z = (bounds - means) / np.maximum(stds, 1e-12)
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z.tolist()])

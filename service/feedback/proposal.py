"""From the judgements of a label to the threshold that they propose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vidlex.service.feedback.estimates import Judged, Quality, cross_validated, quality
from vidlex.service.feedback.fitting import (
    PlattFit,
    Threshold,
    even_threshold,
    fit_platt,
    logit_of,
    precise_threshold,
    tells_apart,
)
from vidlex.service.feedback.records import Judgement, ThresholdVersion
from vidlex.service.feedback.scores import Scale
from vidlex.service.labels.store.records import Label

MIN_VIDEOS_OF_EACH = 3  # right ones, and wrong ones

FitStatus = Literal["ready", "too_few", "one_sided", "not_separable", "target_not_reached"]


@dataclass(frozen=True)
class JudgementCounts:
    num_judgements: int
    num_right: int  # of the usable ones
    num_wrong: int
    num_other_scale: int  # with a score of another model or calibration only
    num_other_name: int  # from before the label was renamed
    num_unscored: int

    @property
    def num_usable(self) -> int:
        return self.num_right + self.num_wrong


@dataclass(frozen=True, eq=False)
class Proposal:
    """There is a threshold if ``status`` is ready. ``before``: of the threshold in use, if anything is usable."""

    label: Label
    scale: Scale
    status: FitStatus
    counts: JudgementCounts
    min_judgements: int
    threshold_before: float  # in use: the label's, else the model's default
    target_precision: float | None
    fit: PlattFit | None = None
    threshold: Threshold | None = None
    before: Quality | None = None
    after: Quality | None = None  # on the judgements that it was fitted to
    cross_validated: Quality | None = None  # on judgements that it was not fitted to; None with a target precision
    applied: ThresholdVersion | None = None  # whose threshold the label has
    is_stale: bool = False  # ``applied`` was fitted to scores of another model, calibration or name

    @property
    def id(self) -> str:
        """Changes with the threshold and with what it is for."""
        value = None if self.threshold is None else self.threshold.value
        text = repr((self.label.id, self.scale, self.counts, value, self.target_precision))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_beyond_uncertainty(self) -> bool:
        """Whether the threshold in use lies outside the interval of the proposed one."""
        threshold = self.threshold
        if threshold is None or threshold.low is None or threshold.high is None:
            return False
        return not threshold.low <= self.threshold_before <= threshold.high


def propose(
    label: Label,
    scale: Scale,
    judgements: Sequence[Judgement],
    *,
    default_threshold: float,
    min_judgements: int,
    target_precision: float | None,
    applied: ThresholdVersion | None,
) -> Proposal:
    """``judgements`` have the newest score that is known of each."""
    usable = [judgement for judgement in judgements if scale.is_of(judgement)]
    num_right = sum(judgement.right for judgement in usable)
    others = [judgement for judgement in judgements if not scale.is_of(judgement)]
    num_other_name = sum(judgement.label_name != label.name for judgement in others)
    num_unscored = sum(judgement.score is None for judgement in others if judgement.label_name == label.name)
    counts = JudgementCounts(
        len(judgements),
        num_right,
        len(usable) - num_right,
        num_other_scale=len(others) - num_other_name - num_unscored,
        num_other_name=num_other_name,
        num_unscored=num_unscored,
    )
    threshold_before = default_threshold if label.threshold is None else label.threshold
    judged = Judged(
        np.array([judgement.score for judgement in usable], np.float64),
        np.array([judgement.right for judgement in usable], np.bool_),
        [judgement.sha256 for judgement in usable],
    )
    fit = threshold = None
    status = _status(judged, min_judgements)
    if status == "ready":
        fit = fit_platt(logit_of(judged.scores), judged.is_right)
        if target_precision is None:
            threshold = even_threshold(fit, judged.scores)
        else:
            threshold = precise_threshold(fit, judged.scores, target_precision)
        if threshold is None:
            status = "target_not_reached" if tells_apart(fit, judged.scores) else "not_separable"
    is_even = threshold is not None and target_precision is None
    return Proposal(
        label,
        scale,
        status,
        counts,
        min_judgements,
        threshold_before,
        target_precision,
        fit,
        threshold,
        before=quality(judged, threshold_before) if usable else None,
        after=None if threshold is None else quality(judged, threshold.value),
        cross_validated=cross_validated(judged, threshold_before) if is_even else None,
        applied=applied,
        is_stale=applied is not None and Scale(applied.fingerprint, applied.calibration, applied.label_name) != scale,
    )


def _status(judged: Judged, min_judgements: int) -> FitStatus:
    if len(judged) < min_judgements:
        return "too_few"
    right, wrong = (
        {video for video, is_right in zip(judged.videos, judged.is_right.tolist(), strict=True) if is_right is kind}
        for kind in (True, False)
    )
    return "ready" if min(len(right), len(wrong)) >= MIN_VIDEOS_OF_EACH else "one_sided"

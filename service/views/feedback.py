"""Feedback as bodies of answers."""

from __future__ import annotations

from dataclasses import asdict

from vidlex.service.feedback.estimates import Quality
from vidlex.service.feedback.feedback import AddedFeedback
from vidlex.service.feedback.proposal import Proposal
from vidlex.service.feedback.records import Judgement, ThresholdVersion
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.schemas.base import WarningView
from vidlex.service.schemas.classify import ModelView
from vidlex.service.schemas.feedback import (
    FeedbackView,
    FitView,
    JudgedLabelView,
    JudgementView,
    QualityView,
    ThresholdVersionView,
    VersionFitView,
)


def judgement_view(judgement: Judgement) -> JudgementView:
    return JudgementView(
        id=judgement.id,
        label_id=judgement.label_id,
        label=judgement.label_name,
        right=judgement.right,
        sha256=judgement.sha256,
        video_id=judgement.video_id,
        start_ms=judgement.start_ms,
        end_ms=judgement.end_ms,
        score=judgement.score,
        scored_by=judgement.scored_by,
        fingerprint=judgement.fingerprint,
        calibration=judgement.calibration,
        note=judgement.note,
        source=judgement.source,
        created_at_ms=judgement.created_at_ms,
    )


def feedback_view(added: AddedFeedback, min_judgements: int) -> FeedbackView:
    return FeedbackView(
        judgements=[judgement_view(judgement) for judgement in added.judgements],
        labels=[
            judged_label_view(label_id, name, added.counts[label_id], min_judgements)
            for label_id, name in added.labels.items()
        ],
        applied=[version_view(version) for version in added.applied],
    )


def judged_label_view(label_id: str, name: str, count: int, min_judgements: int) -> JudgedLabelView:
    return JudgedLabelView(label_id=label_id, label=name, num_judgements=count, min_judgements=min_judgements)


def version_view(version: ThresholdVersion) -> ThresholdVersionView:
    return ThresholdVersionView(
        id=version.id,
        kind=version.kind,
        label_id=version.label_id,
        label=version.label_name,
        threshold_before=version.threshold_before,
        threshold=version.threshold,
        fingerprint=version.fingerprint,
        calibration=version.calibration,
        client=version.client,
        created_at_ms=version.created_at_ms,
        reverts=version.reverts,
        fit=None if version.fit is None else VersionFitView.model_validate(version.fit),
    )


def fit_view(proposal: Proposal, facts: ModelFacts) -> FitView:
    counts, threshold, fit = proposal.counts, proposal.threshold, proposal.fit
    return FitView(
        label_id=proposal.label.id,
        label=proposal.label.name,
        status=proposal.status,
        proposal=proposal.id,
        model=ModelView(id=facts.id, fingerprint=facts.fingerprint),
        calibration=proposal.scale.calibration,
        min_judgements=proposal.min_judgements,
        num_judgements=counts.num_judgements,
        num_right=counts.num_right,
        num_wrong=counts.num_wrong,
        num_other_scale=counts.num_other_scale,
        num_other_name=counts.num_other_name,
        num_unscored=counts.num_unscored,
        threshold_before=proposal.threshold_before,
        threshold=None if threshold is None else threshold.value,
        low=None if threshold is None else threshold.low,
        high=None if threshold is None else threshold.high,
        beyond_uncertainty=proposal.is_beyond_uncertainty,
        target_precision=proposal.target_precision,
        slope=None if fit is None else fit.slope,
        intercept=None if fit is None else fit.intercept,
        before=_quality(proposal.before),
        after=_quality(proposal.after),
        cross_validated=_quality(proposal.cross_validated),
        applied=None if proposal.applied is None else version_view(proposal.applied),
        stale=proposal.is_stale,
        warnings=[WarningView(code=code, detail=detail) for code, detail in _warnings(proposal)],
    )


def _quality(quality: Quality | None) -> QualityView | None:
    return None if quality is None else QualityView.model_validate(asdict(quality))


def _warnings(proposal: Proposal) -> list[tuple[str, str]]:
    counts, found = proposal.counts, []
    if proposal.before is not None:
        detail = "Precision and recall are those of the judged videos, which people chose: no random sample"
        found.append(("judged_videos", detail))
    if proposal.is_stale:
        detail = "The label's fitted threshold is for scores of another model, calibration or name; fit it again"
        found.append(("threshold_stale", detail))
    if proposal.threshold is not None and proposal.threshold.is_at_edge:
        detail = "The threshold is the lowest or the highest judged score: nothing is known beyond it"
        found.append(("at_edge", detail))
    if counts.num_other_scale:
        detail = f"{counts.num_other_scale} judgements have no score of the served model and calibration"
        found.append(("other_scale", detail))
    if counts.num_other_name:
        detail = f"{counts.num_other_name} judgements are from before the label was renamed"
        found.append(("renamed", detail))
    return found

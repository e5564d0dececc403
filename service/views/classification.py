from __future__ import annotations

from collections.abc import Sequence

from vidlex.service.bounds import MAX_CLASSIFICATION_BYTES, MAX_SCORED_LABELS
from vidlex.service.classification.classifier import Classification
from vidlex.service.classification.matching import ClassifyOptions, ScoredLabel
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.base import WarningView
from vidlex.service.schemas.classify import (
    ClassificationView,
    ClassifyParams,
    CoverageView,
    ModelView,
    ScoredLabelView,
    SegmentView,
    StretchView,
    UsageView,
    VideoView,
)
from vidlex.service.views.receipts import receipt_view

_NUM_RANKED = MAX_SCORED_LABELS + 1  # one more tells that some were left out
# At least what they take in the answer, without texts.
_LABEL_BYTES, _SEGMENT_BYTES, _STRETCH_BYTES = 256, 72, 96


def classify_options(params: ClassifyParams) -> ClassifyOptions:
    return ClassifyOptions(
        label_ids=params.label_ids,
        candidate_labels=params.candidate_labels,
        include_categories=params.include_categories,
        exclude_categories=params.exclude_categories,
        min_score=params.min_score,
        top_k=min(params.top_k or _NUM_RANKED, _NUM_RANKED),
        num_frames=params.num_frames,
        frame_policy=params.frame_policy,
        aggregate_by=params.aggregate_by,
        segment_ms=params.segment_ms,
        start_ms=params.start_ms,
        end_ms=params.end_ms,
        min_revision=params.min_revision,
    )


def classification_view(
    result: Classification,
    params: ClassifyParams,
    vocabulary: Vocabulary,
    *,
    service: str,
    video_id: str | None = None,
) -> ClassificationView:
    """``service``: its name and version. ``video_id``: of the kept video.

    Labels beyond MAX_SCORED_LABELS and MAX_CLASSIFICATION_BYTES are left out.
    """
    features, times = result.features, result.times
    labels = _that_fit(result)
    warnings = [*result.warnings]
    if len(labels) < len(result.labels):
        detail = f"The answer has {len(labels)} labels; those with lower scores were left out"
        warnings.append(("labels_left_out", detail))
    video = features.video
    return ClassificationView(
        video=VideoView(
            sha256=result.sha256,
            duration_ms=video.duration_ms,
            start_ms=video.start_ms,
            width=video.width,
            height=video.height,
            fps=video.fps,
            codec=video.codec,
            bytes=video.num_bytes,
        ),
        coverage=CoverageView(
            frame_policy=features.frame_policy,
            frames_requested=len(features.timestamps_ms),
            frames_decoded=len(set(features.timestamps_ms)),
            frames_failed=features.num_failed,
            frames_blank=features.num_blank,
            timestamps_ms=list(features.timestamps_ms),
        ),
        labels=[_scored_label_view(scored, result) for scored in labels],
        model=ModelView(id=result.facts.id, fingerprint=result.facts.fingerprint),
        calibration=result.calibration,
        vocabulary_revision=result.revision,
        video_id=video_id,
        usage=UsageView(
            decode_ms=_ms(times.decode_seconds),
            encode_ms=_ms(times.encode_seconds),
            match_ms=_ms(times.match_seconds),
            queue_ms=_ms(times.queue_seconds),
            cached=result.cached,
        ),
        warnings=[WarningView(code=code, detail=detail) for code, detail in warnings],
        receipt=receipt_view(result, params, vocabulary, service=service),
    )


def _that_fit(result: Classification) -> Sequence[ScoredLabel]:
    num_bytes = 0
    for number, scored in enumerate(result.labels[:MAX_SCORED_LABELS]):
        texts = (scored.name, *(scored.label.categories if scored.label is not None else ()))
        num_bytes += _LABEL_BYTES + sum(len(text.encode()) for text in texts)
        num_bytes += _SEGMENT_BYTES * len(scored.segment_scores) + _STRETCH_BYTES * len(scored.stretches)
        if number and num_bytes > MAX_CLASSIFICATION_BYTES:
            return result.labels[:number]
    return result.labels[:MAX_SCORED_LABELS]


def _scored_label_view(scored: ScoredLabel, result: Classification) -> ScoredLabelView:
    label = scored.label
    return ScoredLabelView(
        id=None if label is None else label.id,
        name=scored.name,
        score=scored.score,
        similarity=scored.similarity,
        threshold=scored.threshold,
        matched=scored.matched,
        categories=[] if label is None else list(label.categories),
        segments=[
            SegmentView(start_ms=segment.start_ms, end_ms=segment.end_ms, score=score)
            for segment, score in zip(result.features.segments, scored.segment_scores, strict=False)
        ],
        stretches=[
            StretchView(start_ms=stretch.start_ms, end_ms=stretch.end_ms, score=stretch.score, peak_ms=stretch.peak_ms)
            for stretch in scored.stretches
        ],
    )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))

"""Receipts: two answers with the same one have the same scores."""

from __future__ import annotations

import hashlib
import json

from vidlex.service.classification.classifier import Classification
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.classify import ClassifyParams, ReceiptView


def receipt_view(
    result: Classification, params: ClassifyParams, vocabulary: Vocabulary, *, service: str
) -> ReceiptView:
    """Of requests that mean the same, such as with and without ``start_ms: 0``, the receipts are the same."""
    features, facts = result.features, result.facts
    duration_ms = features.video.duration_ms
    has_cells = params.aggregate_by == "segments" and features.frame_policy != "shots"
    receipt = ReceiptView(
        id="",
        service=service,
        sha256=result.sha256,
        decoder=features.decoder,
        model=facts.fingerprint,
        encoder=facts.encoder,
        calibration=result.calibration,
        namespace=vocabulary.namespace,
        vocabulary_revision=result.revision,
        label_vectors="float32" if params.candidate_labels is not None else vocabulary.index.storage,
        aggregate_by=params.aggregate_by,
        frame_policy=features.frame_policy,
        num_frames=params.num_frames or facts.num_frames,
        segment_ms=params.segment_ms if has_cells else None,
        start_ms=params.start_ms or 0,
        end_ms=min(params.end_ms or duration_ms, duration_ms),
        timestamps_sha256=_digest(list(features.timestamps_ms)),
        frames_failed=features.num_failed,
    )
    return receipt.model_copy(update={"id": receipt_id(receipt)})


def receipt_id(receipt: ReceiptView) -> str:
    return _digest(receipt.model_dump(exclude={"id"}))


def _digest(value: object) -> str:
    # Without floats and with ASCII keys this is the canonical form of RFC 8785.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

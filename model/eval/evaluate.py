"""``vidlex eval``: a classifier against a manifest of real files, decoded and scored as the service does it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.classifier import Classifier
from model.data.manifest import Entry, read_manifest
from model.eval.calibration import expected_calibration_error
from model.eval.metrics import f1_at, summarise
from model.video.decode import decode_frames
from model.video.limits import DecodeError


@dataclass(frozen=True, eq=False)
class Scores:
    """What a classifier said of a dataset."""

    labels: tuple[str, ...]
    similarities: NDArray[np.float32]
    """[B, V]"""
    targets: NDArray[np.bool_]
    """[B, V]"""
    known: NDArray[np.bool_]
    """[B, V]: pairs whose truth is known."""
    skipped: tuple[str, ...]
    """Videos that could not be decoded, by name."""


def score(
    classifier: Classifier,
    manifest: Path,
    labels: Sequence[str] | None = None,
    *,
    num_frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Decode and score every video of ``manifest`` against ``labels`` (default: every label that occurs in it).

    A video that is missing or broken is counted in ``skipped``, never fatal. Raises ManifestError for a bad manifest,
    ValueError when nothing could be scored.
    """
    entries = list(read_manifest(manifest))
    vocabulary = tuple(labels) if labels else tuple(sorted({n for e in entries for n in e.positives + e.negatives}))
    label_features = classifier.encode_labels(vocabulary)  # [V, D]
    rows: list[NDArray[np.float32]] = []
    kept: list[Entry] = []
    skipped: list[str] = []
    for done, entry in enumerate(entries, start=1):
        try:
            batch = decode_frames(
                manifest.parent / entry.video,
                geometry=classifier.geometry,
                num_frames=num_frames or classifier.num_frames,
                start_ms=entry.start_ms,
                end_ms=entry.end_ms,
            )
        except (DecodeError, OSError):
            skipped.append(entry.video)
        else:
            rows.append(classifier.encode_video([batch.frames])[0])
            kept.append(entry)
        if progress is not None:
            progress(done, len(entries))
    if not kept:
        raise ValueError(f"none of the {len(entries)} videos of {manifest} could be decoded")
    place = {name: i for i, name in enumerate(vocabulary)}
    targets = np.zeros((len(kept), len(vocabulary)), bool)
    known = np.zeros_like(targets)
    for i, entry in enumerate(kept):
        targets[i, [place[n] for n in entry.positives if n in place]] = True
        known[i, [place[n] for n in entry.positives + entry.negatives if n in place]] = True
        known[i] |= entry.closed
    return Scores(vocabulary, np.stack(rows) @ label_features.T, targets, known, tuple(skipped))


def report(classifier: Classifier, scores: Scores, kinds: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Figures of a dataset: overall, by kind of label, at the shipped threshold, and how calibrated it is."""
    logits = classifier.scorer.logit(scores.similarities)
    probabilities = classifier.scorer.probability(scores.similarities)
    known = scores.known
    result: dict[str, Any] = {
        "model": classifier.id,
        "fingerprint": classifier.fingerprint,
        "machine": f"{platform.machine()}, {classifier.device}",
        **summarise(logits, scores.targets, known),
        "f1_at_default_threshold": f1_at(probabilities[known], scores.targets[known], classifier.default_threshold),
        "default_threshold": classifier.default_threshold,
        "expected_calibration_error": expected_calibration_error(probabilities[known], scores.targets[known]),
        "skipped_videos": list(scores.skipped),
    }
    if kinds:
        result["by_kind"] = {}
        for kind in sorted(set(kinds.values())):
            columns = np.array([kinds.get(name) == kind for name in scores.labels])
            if scores.targets[:, columns].any():
                result["by_kind"][kind] = summarise(logits[:, columns], scores.targets[:, columns], known[:, columns])
    return result

"""``vidlex eval``: score the videos of a manifest as the service does, and report metrics."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.domain import DomainCalibration
from vidlex.model.classifier import Classifier
from vidlex.model.data.dataset import DatasetError, Unlabelled
from vidlex.model.data.manifest import Entry, ManifestError, read_manifest, select_split
from vidlex.model.data.rareact import read_ratings
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError
from vidlex.model.eval.bootstrap import bootstrap_intervals
from vidlex.model.eval.calibration import expected_calibration_error, reliability
from vidlex.model.eval.metrics import f1_at, federated_average_precision, per_label, summarise
from vidlex.model.eval.rareact import rareact_metrics
from vidlex.model.eval.thresholds import threshold_loss
from vidlex.model.scoring import Scorer

ALL_SPLITS = "all"


@dataclass(frozen=True, eq=False)
class Scores:
    labels: tuple[str, ...]
    similarities: NDArray[np.float32]  # [B, V] as calibrated
    scorer: Scorer  # of these
    targets: NDArray[np.bool_]  # [B, V]
    known: NDArray[np.bool_]  # [B, V]: whether the truth is known
    skipped: tuple[str, ...]  # videos that could not be decoded
    native_ids: tuple[str | None, ...]  # [B]


def score(
    classifier: Classifier,
    manifest: Path,
    labels: Sequence[str] | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
    unlabelled: Unlabelled = "unknown",
    split: str | None = None,
    num_frames: int | None = None,
    calibration: DomainCalibration | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Decode and score every video of ``manifest`` against ``labels`` (default: all labels in the manifest).

    ``prompts``: texts to encode in place of the label names. ``unlabelled``: see ``vidlex.model.data.dataset``.
    ``split``: of the entries to score, or "all"; None only if they have one split. Missing and broken videos are
    skipped. Raises ManifestError for an invalid manifest, ValueError if no video could be scored.
    """
    entries = read_entries(manifest, split)
    vocabulary = tuple(labels) if labels else tuple(sorted({n for e in entries for n in e.positives + e.negatives}))
    label_features = classifier.encode_labels([(prompts or {}).get(name, name) for name in vocabulary])  # [V, D]
    rows: list[NDArray[np.float32]] = []
    scored: list[Entry] = []
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
            scored.append(entry)
        if progress is not None:
            progress(done, len(entries))
    if not scored:
        raise ValueError(f"none of the {len(entries)} videos of {manifest} could be decoded")
    column = {name: i for i, name in enumerate(vocabulary)}
    targets = np.zeros((len(scored), len(vocabulary)), bool)
    known = np.zeros_like(targets)
    for i, entry in enumerate(scored):
        targets[i, [column[n] for n in entry.positives if n in column]] = True
        known[i, [column[n] for n in entry.positives + entry.negatives if n in column]] = True
        known[i] |= entry.closed or unlabelled == "absent"
    similarities = np.stack(rows) @ label_features.T
    if calibration is not None:
        similarities = calibration.adjust(similarities, label_features)
    return Scores(
        vocabulary,
        similarities,
        classifier.scorer if calibration is None else calibration.scorer or classifier.scorer,
        targets,
        known,
        tuple(skipped),
        tuple(entry.native_id for entry in scored),
    )


def read_entries(manifest: Path, split: str | None) -> list[Entry]:
    """Those that ``score`` takes. Raises ManifestError."""
    entries = list(read_manifest(manifest))
    if split is not None and split != ALL_SPLITS:
        return select_split(entries, split, manifest)
    splits = Counter(entry.split for entry in entries if entry.split is not None)
    if split is None and len(splits) > 1:
        found = ", ".join(f"{name} ({num})" for name, num in sorted(splits.items()))
        raise ManifestError(f"{manifest} has entries of several splits, {found}: choose one with --split, or all")
    return entries


def check_vocabulary(entries: Sequence[Entry], names: Collection[str], source: Path) -> None:
    """``source``: the file of ``names``. Raises DatasetError if an entry has another label."""
    for entry in entries:
        for name in entry.positives + entry.negatives:
            if name not in names:
                raise DatasetError(f"{entry.video} has the label {name!r}, which is not in {source}")


def report(classifier: Classifier, scores: Scores, kinds: Mapping[str, str] | None = None) -> dict[str, Any]:
    logits = scores.scorer.logit(scores.similarities)
    probabilities = scores.scorer.probability(scores.similarities)
    known = scores.known
    result: dict[str, Any] = {
        "model": classifier.id,
        "fingerprint": classifier.fingerprint,
        "machine": f"{platform.machine()}, {classifier.device}",
        **summarise(logits, scores.targets, known),
        "intervals_95": bootstrap_intervals(logits, scores.targets, known),
        "f1_at_default_threshold": f1_at(probabilities[known], scores.targets[known], classifier.default_threshold),
        "default_threshold": classifier.default_threshold,
        "expected_calibration_error": expected_calibration_error(probabilities[known], scores.targets[known]),
        "reliability": reliability(probabilities[known], scores.targets[known]),
        "skipped_videos": list(scores.skipped),
    }
    if len({kinds.get(name) for name in scores.labels} if kinds else ()) > 1:
        label_kinds = [(kinds or {}).get(name, "none") for name in scores.labels]
        result["thresholds"] = threshold_loss(logits, scores.targets, known, label_kinds)
    if kinds:
        result["by_kind"] = {}
        for kind in sorted(set(kinds.values())):
            columns = np.array([kinds.get(name) == kind for name in scores.labels])
            if (scores.targets & known)[:, columns].any():
                result["by_kind"][kind] = summarise(logits[:, columns], scores.targets[:, columns], known[:, columns])
    return result


def label_table(scores: Scores, kinds: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    rows = per_label(scores.scorer.logit(scores.similarities), scores.targets, scores.known)
    return [
        {"label": name, "kind": (kinds or {}).get(name), **row} for name, row in zip(scores.labels, rows, strict=True)
    ]


def protocol_metrics(scores: Scores, folder: Path, protocol: str) -> dict[str, Any]:
    logits = scores.scorer.logit(scores.similarities)
    if protocol == "tao":
        value, num_labels = federated_average_precision(logits, scores.targets, scores.known)
        return {"federated_map": value, "num_judged_labels": num_labels}
    if protocol == "rareact":
        rows = {name: i for i, name in enumerate(scores.native_ids) if name is not None}
        return rareact_metrics(read_ratings(folder / "rareact.csv"), rows, scores.labels, logits)
    raise ValueError(f"unknown protocol {protocol!r}: tao or rareact")

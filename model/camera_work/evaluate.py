"""How well a classifier names camera work, by words alone, on windows over real videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.camera_work.labels import COLUMN, MOTION_LABELS, MotionLabel
from vidlex.model.camera_work.windows import Window, draw_windows, read_real_videos
from vidlex.model.classifier import Classifier
from vidlex.model.eval.bootstrap import bootstrap_intervals
from vidlex.model.eval.calibration import expected_calibration_error
from vidlex.model.eval.metrics import per_label, summarise


def evaluate_camera_work(
    classifier: Classifier,
    videos_folder: Path,
    *,
    num_windows: int = 396,
    num_frames: int | None = None,
    seed: int = 0,
    labels: Sequence[MotionLabel] = MOTION_LABELS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Names, held-out wordings, and names on the middle frame alone, which must be at chance.

    ``videos_folder``: videos of fixed cameras. Windows are drawn for each label in turn; the label's prevalence, which
    is the AUPR of random scores, is reported with its AUPR.
    """
    columns = [COLUMN[label.key] for label in labels]
    texts = {
        "name": [label.name for label in labels],
        **{f"held_out_{i}": [label.held_out[i] for label in labels] for i in range(2)},
    }
    features = {way: classifier.encode_labels(names) for way, names in texts.items()}  # [V, D]
    windows = draw_windows(
        read_real_videos(videos_folder),
        num_windows=num_windows,
        num_frames=num_frames or classifier.num_frames,
        image_size=classifier.geometry.image_size,
        seed=seed,
        keys=[label.key for label in labels],
    )
    videos, single, present, known = [], [], [], []
    for done, window in enumerate(windows, start=1):
        whole, middle = _encode(classifier, window)
        videos.append(whole)
        single.append(middle)
        present.append(window.truth.present[columns])
        known.append(window.truth.known[columns])
        if progress is not None:
            progress(done, num_windows)
    targets, mask = np.stack(present), np.stack(known)
    result: dict[str, Any] = {"model": classifier.id, "num_windows": num_windows, "num_labels": len(labels)}
    similarities = {way: np.stack(videos) @ feature.T for way, feature in features.items()}
    similarities["single_frame"] = np.stack(single) @ features["name"].T
    for way, values in similarities.items():
        logits = classifier.scorer.logit(values)
        result[way] = summarise(logits, targets, mask)
        result[way]["macro_chance"] = _macro_chance(targets, mask)
        result[way]["intervals_95"] = bootstrap_intervals(logits, targets, mask)
        probabilities = classifier.scorer.probability(values)
        result[way]["expected_calibration_error"] = expected_calibration_error(probabilities[mask], targets[mask])
    rows = {way: per_label(classifier.scorer.logit(values), targets, mask) for way, values in similarities.items()}
    result["labels"] = [_row(label, i, rows) for i, label in enumerate(labels)]
    return result


def _encode(classifier: Classifier, window: Window) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    middle = len(window.frames) // 2
    features = classifier.encode_video([window.frames, window.frames[middle : middle + 1]])
    return features[0], features[1]


def _macro_chance(targets: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    shares = [targets[mask[:, v], v].mean() for v in range(targets.shape[1]) if (targets & mask)[:, v].any()]
    return float(np.mean(shares))


def _row(label: MotionLabel, index: int, rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    first = rows["name"][index]
    total = first["num_positives"] + first["num_negatives"]
    return {
        "label": label.name,
        "num_positives": first["num_positives"],
        "chance": first["num_positives"] / total if total else None,
        **{f"aupr_{way}": ways[index]["aupr"] for way, ways in rows.items()},
    }

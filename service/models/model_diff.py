"""Compares two models on the same recent videos, each with its own label vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.applied_calibration import as_applied, scorer_of
from vidlex.service.models.recent_videos import Frames
from vidlex.service.models.served_model import ModelFacts, Vocabulary


@dataclass(frozen=True)
class LabelShift:
    """Means are over the videos; a rank of 0 is the highest."""

    label: IndexedLabel
    mean_score_old: float
    mean_score_new: float
    mean_score_shift: float
    num_gained: int  # videos that only the new model matches
    num_lost: int  # videos that only the old model matches
    mean_rank_shift: float


@dataclass(frozen=True)
class ModelDiff:
    old: ModelFacts
    new: ModelFacts
    num_videos: int
    num_labels: int  # encoded by both models
    resized: bool  # some frames were resized to a model's input size
    rank_correlations: list[float | None]  # one per video; None where a model scores all labels equally
    shifts: list[LabelShift]  # largest absolute score shift first


@dataclass(frozen=True, eq=False)
class _Scores:
    labels: Sequence[IndexedLabel]
    scores: NDArray[np.float64]  # [B, n]
    adjusted: NDArray[np.float64]  # [B, n] similarities, as calibrated
    resized: bool


def compare_models(old: Vocabulary, new: Vocabulary, videos: Sequence[Frames], *, max_labels: int) -> ModelDiff:
    """The ``max_labels`` largest score and rank shifts of the labels that both models have.

    Ranks and Spearman's correlation (Pearson's over ranks, ties at their mean rank) are computed on adjusted
    similarities, which order a model's labels as its scores do. Raises what ``Engine.encode_video`` raises.
    """
    common_ids = {label.id for label in old.index.search(_no_video(old)).labels}
    common_ids &= {label.id for label in new.index.search(_no_video(new)).labels}
    before, after = _score(old, videos, common_ids), _score(new, videos, common_ids)
    # A label may be removed between the two searches: only those in both results are compared.
    rows = {label.id: row for row, label in enumerate(after.labels)}
    pairs = [(row, rows[label.id]) for row, label in enumerate(before.labels) if label.id in rows]
    old_rows = np.array([pair[0] for pair in pairs], dtype=np.intp)
    new_rows = np.array([pair[1] for pair in pairs], dtype=np.intp)
    labels = [before.labels[row] for row in old_rows]
    old_scores, new_scores = before.scores[:, old_rows], after.scores[:, new_rows]
    old_ranks = _ranks(before.adjusted[:, old_rows])
    new_ranks = _ranks(after.adjusted[:, new_rows])
    shifts = []
    if videos:
        mean_shifts = (new_scores - old_scores).mean(axis=0)
        order = sorted(range(len(labels)), key=lambda n: (-abs(mean_shifts[n]), labels[n].name))
        for n in order[:max_labels]:
            label = labels[n]
            matched_old = old_scores[:, n] >= old.facts.threshold_of(label)
            matched_new = new_scores[:, n] >= new.facts.threshold_of(label)
            shifts.append(
                LabelShift(
                    label,
                    mean_score_old=float(old_scores[:, n].mean()),
                    mean_score_new=float(new_scores[:, n].mean()),
                    mean_score_shift=float(mean_shifts[n]),
                    num_gained=int((matched_new & ~matched_old).sum()),
                    num_lost=int((matched_old & ~matched_new).sum()),
                    mean_rank_shift=float((new_ranks[:, n] - old_ranks[:, n]).mean()),
                )
            )
    return ModelDiff(
        old.facts,
        new.facts,
        num_videos=len(videos),
        num_labels=len(labels),
        resized=before.resized or after.resized,
        rank_correlations=[_correlation(a, b) for a, b in zip(old_ranks, new_ranks, strict=True)],
        shifts=shifts,
    )


def _no_video(vocabulary: Vocabulary) -> NDArray[np.float32]:
    return np.zeros((0, vocabulary.facts.dim), np.float32)


def _score(vocabulary: Vocabulary, videos: Sequence[Frames], label_ids: set[str]) -> _Scores:
    size = vocabulary.facts.geometry.image_size
    features = [vocabulary.engine.encode_video(_resize(frames, size)).vector for frames in videos]
    stacked = np.stack(features) if features else _no_video(vocabulary)
    matches = vocabulary.index.search(stacked, label_ids=label_ids, fingerprint=vocabulary.facts.fingerprint)
    scorer = scorer_of(vocabulary.facts.scorer, as_applied(matches.calibration))
    scores = np.asarray(scorer.probability(matches.adjusted), dtype=np.float64)
    return _Scores(
        matches.labels, scores, matches.adjusted.astype(np.float64), any(frames.shape[1] != size for frames in videos)
    )


def _resize(frames: Frames, size: int) -> Frames:
    if frames.shape[1:3] == (size, size):
        return frames
    images = [Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.empty(values.shape)  # 0 is the highest value; equal values share their mean rank
    for row, numbers in enumerate(values):
        _, group, sizes = np.unique(-numbers, return_inverse=True, return_counts=True)
        last = np.cumsum(sizes)
        ranks[row] = (last - (sizes + 1) / 2)[group]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))

"""What would change if another model served: both on the same kept frames, each with its own vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.service.labels.store.records import Label
from vidlex.service.models.recent_videos import Frames
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.models import LabelShiftView, ModelDiffView


@dataclass(frozen=True, eq=False)
class _Scores:
    """One model's answers: n labels, and per video [B, n] the scores and the similarities."""

    labels: Sequence[Label]
    scores: NDArray[np.float64]
    similarity: NDArray[np.float64]
    resized: bool


def compare_models(old: Vocabulary, new: Vocabulary, videos: Sequence[Frames], *, max_labels: int) -> ModelDiffView:
    """Score shifts and rank moves over the labels that both have; ``max_labels`` of the largest shift are told.

    Ranks and Spearman's correlation (Pearson's over ranks, ties at their mean rank) are taken on similarities, which
    order a model's labels as its scores do. Raises what the engine raises.
    """
    both = {label.id for label in old.index.search(_no_video(old)).labels}
    both &= {label.id for label in new.index.search(_no_video(new)).labels}
    before, after = _scores(old, videos, both), _scores(new, videos, both)
    # Searched apart, a label may be gone from one in between: what both have is compared, in the order of ids.
    rows = {label.id: row for row, label in enumerate(after.labels)}
    pairs = [(row, rows[label.id]) for row, label in enumerate(before.labels) if label.id in rows]
    take_old = np.array([pair[0] for pair in pairs], dtype=np.intp)
    take_new = np.array([pair[1] for pair in pairs], dtype=np.intp)
    labels = [before.labels[row] for row in take_old]
    old_scores, new_scores = before.scores[:, take_old], after.scores[:, take_new]
    old_ranks = _ranks(before.similarity[:, take_old])
    new_ranks = _ranks(after.similarity[:, take_new])
    shifts = (new_scores - old_scores).mean(axis=0) if len(videos) else np.zeros(len(labels))
    order = sorted(range(len(labels)), key=lambda n: (-abs(shifts[n]), labels[n].name))
    if not len(videos):
        order = []
    views = []
    for n in order[:max_labels]:
        label = labels[n]
        was = old_scores[:, n] >= (old.facts.default_threshold if label.threshold is None else label.threshold)
        now = new_scores[:, n] >= (new.facts.default_threshold if label.threshold is None else label.threshold)
        views.append(
            LabelShiftView(
                id=label.id,
                name=label.name,
                mean_shift=float(shifts[n]),
                mean_score_old=float(old_scores[:, n].mean()),
                mean_score_new=float(new_scores[:, n].mean()),
                num_gained=int((now & ~was).sum()),
                num_lost=int((was & ~now).sum()),
                mean_rank_move=float((new_ranks[:, n] - old_ranks[:, n]).mean()),
            )
        )
    return ModelDiffView(
        old=old.facts.fingerprint,
        new=new.facts.fingerprint,
        num_videos=len(videos),
        num_labels=len(labels),
        resized=before.resized or after.resized,
        rank_correlation=[_correlation(a, b) for a, b in zip(old_ranks, new_ranks, strict=True)],
        labels=views,
    )


def _no_video(vocabulary: Vocabulary) -> NDArray[np.float32]:
    return np.zeros((0, vocabulary.facts.dim), np.float32)


def _scores(vocabulary: Vocabulary, videos: Sequence[Frames], label_ids: set[str]) -> _Scores:
    size = vocabulary.facts.geometry.image_size
    features = [vocabulary.engine.encode_video(_resized(frames, size)).vector for frames in videos]
    stacked = np.stack(features) if features else _no_video(vocabulary)
    found = vocabulary.index.search(stacked, label_ids=label_ids, fingerprint=vocabulary.facts.fingerprint)
    similarity = found.similarity.astype(np.float64)
    scores = np.asarray(vocabulary.facts.scorer.probability(found.similarity), dtype=np.float64)
    return _Scores(found.labels, scores, similarity, any(frames.shape[1] != size for frames in videos))


def _resized(frames: Frames, size: int) -> Frames:
    if frames.shape[1:3] == (size, size):
        return frames
    pictures = [Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B, n] to ranks along the row: 0 is the highest value, equal values share their mean rank."""
    ranks = np.empty(values.shape)
    for row, numbers in enumerate(values):
        _, group, sizes = np.unique(-numbers, return_inverse=True, return_counts=True)
        last = np.cumsum(sizes)
        ranks[row] = (last - (sizes + 1) / 2)[group]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))

"""Losses, label sampling and the hold to CLIP, against values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from vidlex.model.text.clip_text import ClipText
from vidlex.model.train.baseline import asymmetric_loss
from vidlex.model.train.export import fit_scorer
from vidlex.model.train.extensions.clip_hold import (
    ClipKnowledge,
    label_distillation_loss,
    video_distillation_loss,
)
from vidlex.model.train.label_sampling import sample_labels
from vidlex.model.train.losses import weighted_bce
from vidlex.model.train.validation import check_validation, metrics_by_kind


def test_weighted_bce_by_hand() -> None:
    """A positive at p = 1/2 and a negative at p = 1/2 with weight 3 * 2: (ln 2 + 6 ln 2) / 1 positive."""
    loss = weighted_bce(torch.zeros(1, 2), torch.tensor([[1, 0]]), torch.tensor([1.0, 3.0]), negative_weight=2.0)
    assert float(loss) == pytest.approx(7 * 0.693147, abs=1e-5)


def test_sampled_labels_include_all_positives_and_are_importance_weighted() -> None:
    targets = torch.zeros(4, 50, dtype=torch.int8)
    targets[0, 7] = targets[2, 9] = 1
    always = torch.zeros(50, dtype=torch.bool)
    always[49] = True
    index, weights = sample_labels(targets, 13, always, torch.Generator().manual_seed(0))
    assert {7, 9, 49} <= set(index.tolist()) and len(index) == len(set(index.tolist())) == 13
    assert index.tolist() == sorted(index.tolist())
    weight_of = dict(zip(index.tolist(), weights.tolist(), strict=True))
    assert weight_of[7] == weight_of[9] == weight_of[49] == 1.0
    assert sum(weight_of.values()) == pytest.approx(50)  # 10 drawn stand for 47
    index, weights = sample_labels(targets, 500, always, torch.Generator().manual_seed(0))
    assert len(index) == 50 and weights.eq(1).all()


def test_sampled_labels_include_positive_pairs_and_are_otherwise_unbiased() -> None:
    targets = torch.zeros(4, 60, dtype=torch.int8)
    targets[0, :20] = targets[1, 40:42] = 1
    always = torch.zeros(60, dtype=torch.bool)
    when_positive = torch.zeros(60, dtype=torch.bool)
    when_positive[40:50] = True
    total = torch.zeros(60)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        index, weights = sample_labels(targets, 17, always, generator, all_positives=False, when_positive=when_positive)
        assert {40, 41} <= set(index.tolist()) and len(index) == 10 + 15 + 2  # 15 free places
        total[index] += weights
    mean = total / 400
    assert mean[40] == mean[41] == 1
    assert mean.sub(1).abs().max() < 0.4 and mean.mean() == pytest.approx(1, abs=1e-3)


def test_sampled_pairs_share_a_noun_with_the_batch() -> None:
    """Labels 0..19 are no pairs; 20..39 are pairs of noun 5, 40..59 of noun 6. The batch shows pair 20."""
    targets = torch.zeros(4, 60, dtype=torch.int8)
    targets[0, 3] = targets[0, 20] = 1
    pair_nouns = torch.full((60,), -1)
    pair_nouns[20:40], pair_nouns[40:60] = 5, 6
    total = torch.zeros(60)
    for seed in range(400):
        index, weights = sample_labels(
            targets, 14, torch.zeros(60, dtype=torch.bool), torch.Generator().manual_seed(seed), groups=pair_nouns
        )
        assert {3, 20} <= set(index.tolist()) and len(index) == 2 + 6 + 6  # half of the free places are pairs
        total[index] += weights
    mean = total / 400
    assert mean[3] == mean[20] == 1 and mean[40:].eq(0).all()
    assert mean[:40].sub(1).abs().max() < 0.4 and mean[:40].mean() == pytest.approx(1, abs=1e-3)


def test_video_distillation_loss_by_hand() -> None:
    """Only the component of a change along the names counts: (2 * 0.5)^2 for one of two names, over two videos."""
    change = torch.tensor([[0.5, 0.0, 9.0], [0.0, 0.0, 7.0]])
    texts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert float(video_distillation_loss(change, texts, torch.tensor(2.0), 2)) == pytest.approx(0.25)
    parts = [video_distillation_loss(change[i : i + 1], texts, torch.tensor(2.0), 2) for i in range(2)]
    assert float(sum(parts)) == pytest.approx(0.25)


def test_label_distillation_loss_by_hand() -> None:
    """Only the component of a change along the videos counts, times the label's weight: 0.5 * (2 * 3)^2 of 2 x 3."""
    change = torch.tensor([[3.0, 9.0], [3.0, 0.0], [0.0, 8.0]])
    videos = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = torch.tensor([0.5, 0.0, 1.0])
    assert float(label_distillation_loss(change, videos, weights, torch.tensor(2.0), 6)) == pytest.approx(3.0)
    by_video = [label_distillation_loss(change, videos[i : i + 1], weights, torch.tensor(2.0), 6) for i in range(2)]
    by_label = [
        label_distillation_loss(change[i : i + 1], videos, weights[i : i + 1], torch.tensor(2.0), 6) for i in range(3)
    ]
    assert float(sum(by_video)) == pytest.approx(3.0) == float(sum(by_label))


def test_weight_of_a_label_is_the_lift_of_a_labels_videos() -> None:
    class Names:
        device = torch.device("cpu")

        def encode(self, names: Sequence[str]) -> Tensor:
            of = {"known": [0.0, 2.0], "unknown": [1.0, 0.0], "partly": [1.0, 1.0], "never shown": [0.0, -1.0]}
            return torch.tensor([of[name] for name in names])

    features = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]), dim=1)
    labels = ("known", "unknown", "partly", "never shown")
    kinds = {"known": "thing", "unknown": "word", "partly": "thing", "never shown": "thing"}
    targets = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.int8)
    known = ClipKnowledge.fit(cast(ClipText, Names()), labels, kinds, features, targets)
    assert known.texts[0].tolist() == [0, 1] and known.texts.norm(dim=1).allclose(torch.ones(4))
    height = features[:, 1]
    expected = float((height[2:].mean() - height.mean()) / height.std()) / 2
    assert float(known.weights[0]) == pytest.approx(expected, abs=1e-6) and 0.4 < expected < 0.5
    assert float(known.weights[1]) == 0  # positive in all videos, so there is no lift
    assert float(known.weights[3]) == pytest.approx(float(known.weights[[0, 2]].mean()))


def test_labels_on_a_finished_branch_are_not_held_if_pairs_and_little_known_labels() -> None:
    known = ClipKnowledge(torch.randn(4, 3), torch.tensor([0.9, 0.5, 0.2, 1.0]))
    of_label_stage = known.on_finished_branch(torch.tensor([False, False, False, True]))
    assert of_label_stage.weights.tolist() == pytest.approx([0.8, 0, 0, 0])
    assert of_label_stage.texts is known.texts and float(known.weights[3]) == 1


def masked_example() -> tuple[Tensor, Tensor]:
    """Logits and targets [40, 6]; a third of the pairs are unknown."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, 6, generator=generator)
    targets = torch.randint(-1, 2, (40, 6), generator=generator).to(torch.int8)
    return logits, targets


@pytest.mark.parametrize("name", ["weighted_bce", "asymmetric_loss"])
def test_unknown_pairs_have_no_part_in_a_loss(name: str) -> None:
    """Their gradient is exactly zero, and the loss is that of the known pairs of each label on its own."""
    logits, targets = masked_example()
    weights = torch.rand(6) + 0.5

    def loss_of(logits: Tensor, targets: Tensor, weights: Tensor, num_positives: Tensor | None = None) -> Tensor:
        if name == "weighted_bce":
            return weighted_bce(logits, targets, weights, 0.7, num_positives)
        return asymmetric_loss(logits, targets, weights, num_positives)

    logits.requires_grad_()
    loss = loss_of(logits, targets, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[targets == -1].eq(0).all() and logits.grad[targets == 1].lt(0).all()
    num_positives = (targets == 1).sum()
    by_label = []
    for label in range(6):
        known = targets[:, label] != -1
        part = logits.detach()[known, label : label + 1], targets[known, label : label + 1]
        by_label.append(loss_of(*part, weights[label : label + 1], num_positives))
    assert loss.item() == pytest.approx(float(sum(by_label)), rel=1e-5)


def test_labels_unknown_in_the_whole_batch_are_not_drawn() -> None:
    targets = torch.zeros(4, 30, dtype=torch.int8)
    targets[0, 3] = 1
    targets[:, 10:20] = -1
    targets[1, 12] = 0
    always = torch.zeros(30, dtype=torch.bool)
    always[15] = True
    index, _ = sample_labels(targets, 100, always, torch.Generator().manual_seed(0))
    assert index.tolist() == [*range(10), 12, *range(20, 30)]


def test_metrics_calibration_and_threshold_ignore_unknown_pairs() -> None:
    """As if the unknown pairs did not exist, whatever their logits are."""
    logits, targets = masked_example()
    names, kinds = tuple("abcdef"), {"a": "x", "b": "x", "c": "y", "d": "z"}
    targets[:, 3] = targets[:, 3].clamp_max(0)  # a kind without a positive
    moved = torch.where(targets == -1, torch.tensor(1000.0), logits)
    found = metrics_by_kind(moved, targets, names, kinds)
    assert found.keys() == {"micro_aupr", "aupr_x", "aupr_y"}
    known = (targets != -1).numpy()
    truth = (targets == 1).numpy()
    assert found["micro_aupr"] == pytest.approx(average_precision_score(truth[known], logits.numpy()[known]))
    of_x = known[:, :2]
    expected = average_precision_score(truth[:, :2][of_x], logits.numpy()[:, :2][of_x])
    assert found["aupr_x"] == pytest.approx(expected)

    log_scale, bias = torch.tensor(1.0), torch.tensor(0.0)
    scorer, threshold = fit_scorer(log_scale, bias, (moved, targets))
    flat = logits[targets != -1][:, None], targets[targets != -1][:, None]
    assert fit_scorer(log_scale, bias, flat) == (scorer, threshold)


@pytest.mark.parametrize(
    ("num_positives", "num_negatives", "message"),
    [(9, 50, "9 known positive"), (50, 9, "9 known negative"), (0, 50, "0 known positive"), (10, 10, "")],
)
def test_validation_needs_ten_known_pairs_of_each_class(num_positives: int, num_negatives: int, message: str) -> None:
    targets = torch.full((30, 4), -1, dtype=torch.int8)
    targets.view(-1)[:num_positives] = 1
    targets.view(-1)[num_positives : num_positives + num_negatives] = 0
    if not message:
        check_validation(targets)
    else:
        with pytest.raises(ValueError, match=f"the 30 validation videos have {message} labels"):
            check_validation(targets)
    with pytest.raises(ValueError, match="no validation videos"):
        check_validation(targets[:0])

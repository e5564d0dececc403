"""The losses and the labels of a step, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.text.clip_text import ClipText
from vidlex.model.train.clip_regulariser import Held, hold
from vidlex.model.train.losses import label_hold, video_hold, weighted_bce
from vidlex.model.train.task import sample_labels


def test_loss_by_hand() -> None:
    """One positive at p = 1/2, one negative at p = 1/2 weighed 3 * 2: (ln 2 + 6 ln 2) / 1 positive."""
    loss = weighted_bce(torch.zeros(1, 2), torch.tensor([[True, False]]), torch.tensor([1.0, 3.0]), negative_weight=2.0)
    assert float(loss) == pytest.approx(7 * 0.693147, abs=1e-5)


def test_sampled_labels_hold_all_positives_and_weigh_for_those_left_out() -> None:
    targets = torch.zeros(4, 50, dtype=torch.bool)
    targets[0, 7] = targets[2, 9] = True
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


def test_labels_that_are_read_when_true_and_the_rest_is_an_unbiased_draw() -> None:
    targets = torch.zeros(4, 60, dtype=torch.bool)
    targets[0, :20] = targets[1, 40:42] = True
    always = torch.zeros(60, dtype=torch.bool)
    when_true = torch.zeros(60, dtype=torch.bool)
    when_true[40:50] = True
    total = torch.zeros(60)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        index, weights = sample_labels(targets, 17, always, generator, all_positives=False, when_true=when_true)
        assert {40, 41} <= set(index.tolist()) and len(index) == 10 + 15 + 2  # of what is left, 15
        total[index] += weights
    mean = total / 400
    assert mean[40] == mean[41] == 1
    assert mean.sub(1).abs().max() < 0.4 and mean.mean() == pytest.approx(1, abs=1e-3)


def test_of_the_pairs_a_step_reads_those_of_its_own_things() -> None:
    """Labels 0..19 are no pairs; 20..39 pair thing 5 and 40..59 thing 6 with 20 motions. The batch shows pair 20."""
    targets = torch.zeros(4, 60, dtype=torch.bool)
    targets[0, 3] = targets[0, 20] = True
    thing = torch.full((60,), -1)
    thing[20:40], thing[40:60] = 5, 6
    total = torch.zeros(60)
    for seed in range(400):
        index, weights = sample_labels(
            targets, 14, torch.zeros(60, dtype=torch.bool), torch.Generator().manual_seed(seed), thing=thing
        )
        assert {3, 20} <= set(index.tolist()) and len(index) == 2 + 6 + 6  # half of what is left are pairs
        total[index] += weights
    mean = total / 400
    assert mean[3] == mean[20] == 1 and mean[40:].eq(0).all()
    assert mean[:40].sub(1).abs().max() < 0.4 and mean[:40].mean() == pytest.approx(1, abs=1e-3)


def test_video_hold_by_hand() -> None:
    """Only what the names see of a change counts: (2 * 0.5)^2 for one of two names, over two videos."""
    change = torch.tensor([[0.5, 0.0, 9.0], [0.0, 0.0, 7.0]])
    texts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert float(video_hold(change, texts, torch.tensor(2.0), 2)) == pytest.approx(0.25)
    parts = [video_hold(change[i : i + 1], texts, torch.tensor(2.0), 2) for i in range(2)]
    assert float(sum(parts)) == pytest.approx(0.25)


def test_label_hold_by_hand() -> None:
    """Only what the videos see of a change counts, and only for labels that CLIP knows: 0.5 * (2 * 3)^2 of 2 x 3."""
    change = torch.tensor([[3.0, 9.0], [3.0, 0.0], [0.0, 8.0]])
    videos = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    known = torch.tensor([0.5, 0.0, 1.0])
    assert float(label_hold(change, videos, known, torch.tensor(2.0), 6)) == pytest.approx(3.0)
    by_video = [label_hold(change, videos[i : i + 1], known, torch.tensor(2.0), 6) for i in range(2)]
    by_label = [label_hold(change[i : i + 1], videos, known[i : i + 1], torch.tensor(2.0), 6) for i in range(3)]
    assert float(sum(by_video)) == pytest.approx(3.0) == float(sum(by_label))


def test_what_clip_knows_is_how_far_it_lifts_a_labels_videos() -> None:
    class Names:
        device = torch.device("cpu")

        def encode(self, names: Sequence[str]) -> Tensor:
            of = {"known": [0.0, 2.0], "unknown": [1.0, 0.0], "partly": [1.0, 1.0], "never shown": [0.0, -1.0]}
            return torch.tensor([of[name] for name in names])

    features = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]), dim=1)
    labels = ("known", "unknown", "partly", "never shown")
    kinds = {"known": "thing", "unknown": "word", "partly": "thing", "never shown": "thing"}
    targets = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    held = hold(cast(ClipText, Names()), labels, kinds, features, targets)
    assert held.texts[0].tolist() == [0, 1] and held.texts.norm(dim=1).allclose(torch.ones(4))
    height = features[:, 1]
    expected = float((height[2:].mean() - height.mean()) / height.std()) / 2
    assert float(held.known[0]) == pytest.approx(expected, abs=1e-6) and 0.4 < expected < 0.5
    assert float(held.known[1]) == 0  # true everywhere: it tells nothing apart
    assert float(held.known[3]) == pytest.approx(float(held.known[[0, 2]].mean()))


def test_where_labels_settle_pairs_are_free_and_names_that_clip_hardly_knows() -> None:
    held = Held(torch.randn(4, 3), torch.tensor([0.9, 0.5, 0.2, 1.0]))
    settling = held.settling(["noun", "noun", "keyword", "pair"])
    assert settling.known.tolist() == pytest.approx([0.8, 0, 0, 0])
    assert settling.texts is held.texts and float(held.known[3]) == 1

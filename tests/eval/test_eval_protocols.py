"""Masked metrics, intervals, thresholds per kind and the official protocols, against hand-computed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score
from typer.testing import CliRunner

from support.annotations import rareact_csv
from vidlex.model.data import rareact
from vidlex.model.data.rareact import Rating
from vidlex.model.emoji.writer import write_mp4
from vidlex.model.eval.bootstrap import bootstrap_intervals
from vidlex.model.eval.calibration import expected_calibration_error, reliability
from vidlex.model.eval.metrics import average_precision, federated_average_precision, peak_f1, per_label, summarise
from vidlex.model.eval.rareact import class_groups, mean_sampled_ap, mean_weighted_ap, rareact_metrics
from vidlex.model.eval.thresholds import threshold_loss
from vidlex.service.cli import app

grid = st.tuples(st.integers(1, 5), st.integers(1, 4))


@st.composite
def masked_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, targets and a mask, [B, V]."""
    shape = draw(grid)
    scores = draw(arrays(np.float64, shape, elements=st.integers(-4, 4).map(float)))
    return scores, draw(arrays(bool, shape)), draw(arrays(bool, shape))


@settings(deadline=None)
@given(masked_scores())
def test_masked_metrics_equal_scikit_learn(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, targets, known = drawn
    if not (targets & known).any():
        return
    metrics = summarise(scores, targets, known)
    flat = average_precision_score(targets[known], scores[known])
    assert metrics["micro_aupr"] == pytest.approx(flat, abs=1e-12)
    columns = [v for v in range(targets.shape[1]) if (targets & known)[:, v].any()]
    parts = [(targets[known[:, v], v], scores[known[:, v], v]) for v in columns]
    macro = np.mean([average_precision_score(*part) for part in parts])
    assert metrics["macro_aupr"] == pytest.approx(macro, abs=1e-12)
    peaks = [max(f1_score(y, s >= t) for t in np.unique(s)) for y, s in parts]
    assert metrics["macro_peak_f1"] == pytest.approx(np.mean(peaks), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.floats(0.1, 3)), min_size=1, max_size=30))
def test_weighted_average_precision_equals_scikit_learn(rows: list[tuple[int, bool, float]]) -> None:
    scores, truth, weights = (np.array(column) for column in zip(*rows, strict=True))
    if truth.any():
        expected = average_precision_score(truth, scores, sample_weight=weights)
        assert average_precision(scores, truth, weights) == pytest.approx(expected, abs=1e-12)


def test_intervals_contain_the_metric_and_narrow_with_more_videos() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((400, 20)) < 0.1
    scores = rng.normal(0, 1, truth.shape) + 1.5 * truth
    wide = bootstrap_intervals(scores[:40], truth[:40], num_resamples=300)
    narrow = bootstrap_intervals(scores, truth, num_resamples=300)
    assert narrow == bootstrap_intervals(scores, truth, num_resamples=300)
    assert narrow != bootstrap_intervals(scores, truth, num_resamples=300, seed=1)
    for name, exact in (("micro_aupr", average_precision(scores, truth)), ("micro_peak_f1", peak_f1(scores, truth)[0])):
        low, high = narrow[name]
        assert low < exact < high
        assert high - low < 0.6 * (wide[name][1] - wide[name][0])


def test_interval_of_two_videos() -> None:
    """One video has AP 1, the other 1/2; both together 5/6."""
    scores = np.array([[4.0, 1.0], [2.0, 3.0]])
    truth = np.array([[1, 0], [1, 0]], bool)
    assert average_precision(scores, truth) == pytest.approx(5 / 6)
    low, high = bootstrap_intervals(scores, truth, num_resamples=200)["micro_aupr"]
    assert (low, high) == pytest.approx((0.5, 1.0))


def test_threshold_loss_of_two_kinds() -> None:
    """Nouns score high, actions low: a single threshold includes a wrong noun or excludes an action."""
    scores = np.array([[0.9, 0.3], [0.5, 0.2]])
    truth = np.array([[1, 1], [0, 0]], bool)
    result = threshold_loss(scores, truth, None, ["noun", "action"])
    assert result["single_f1"] == pytest.approx(0.8) and result["per_kind_f1"] == 1.0
    assert result["loss"] == pytest.approx(0.2)
    assert result["per_kind_logit"] == {"noun": 0.9, "action": 0.3}


@settings(deadline=None)
@given(masked_scores())
def test_thresholds_per_kind_equal_an_exhaustive_search(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, targets, known = drawn
    if not (targets & known).any():
        return
    kinds = ["a" if v % 2 else "b" for v in range(scores.shape[1])]
    result = threshold_loss(scores, targets, known, kinds)
    best = 0.0
    for first in (*np.unique(scores), np.inf):
        for second in (*np.unique(scores), np.inf):
            limit = np.array([first if kind == "a" else second for kind in kinds])
            predicted = scores >= limit
            hits = (predicted & targets & known).sum()
            best = max(best, 2 * hits / ((targets & known).sum() + (predicted & known).sum()))
    assert result["per_kind_f1"] == pytest.approx(best, abs=1e-12)
    assert result["single_f1"] <= result["per_kind_f1"] + 1e-12


def test_reliability_of_two_bins() -> None:
    rows = reliability(np.array([0.1, 0.3, 0.9, 1.0]), np.array([False, True, True, True]), num_bins=2)
    assert [row["num_pairs"] for row in rows] == [2, 2]
    assert rows[0]["probability"] == pytest.approx(0.2) and rows[0]["frequency"] == pytest.approx(0.5)
    error = expected_calibration_error(np.array([0.1, 0.3, 0.9, 1.0]), np.array([0, 1, 1, 1], bool), num_bins=2)
    assert error == pytest.approx((0.3 * 2 + 0.05 * 2) / 4)


def test_federated_average_precision_ignores_unknown_pairs() -> None:
    # Label 0 on videos 0 to 2 (video 3, its highest score, is unknown): AP (1 + 2/3) / 2. Label 1 has no verified
    # negative and label 2 no positive: neither is judged.
    scores = np.array([[0.8, 0.1, 0.5], [0.6, 0.2, 0.4], [0.7, 0.3, 0.3], [0.9, 0.4, 0.2]])
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], bool)
    known = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0]], bool)
    assert federated_average_precision(scores, truth, known) == (pytest.approx((1 + 2 / 3) / 2), 1)
    rows = per_label(scores, truth, known)
    assert [(row["num_positives"], row["num_negatives"]) for row in rows] == [(2, 1), (2, 0), (0, 2)]
    with pytest.raises(ValueError, match="no label"):
        federated_average_precision(scores, truth, np.zeros_like(known))


def ratings(tmp_path: Path) -> list[Rating]:
    path = tmp_path / "rareact.csv"
    path.write_text(rareact_csv())
    return rareact.read_ratings(path)


def test_rareact_class_groups(tmp_path: Path) -> None:
    # Cut laptop (0): rows 0 and 9 are positive; 2 negative; 1 and 7 hard; of the positives of other classes, 3 (cut
    # phone) shares the verb and 4 (wash laptop) the noun: hard. Cut phone (1): 4 shares neither: negative.
    groups = class_groups(ratings(tmp_path))
    assert [sorted(g) for g in groups[0]] == [[0, 9], [2], [1, 3, 4, 7]]
    assert [sorted(g) for g in groups[1]] == [[3], [4, 5], [0, 6, 9]]
    assert groups[3][0] == [] and sorted(groups[3][1]) == [0, 3, 4, 8, 9]


def test_rareact_weighted_and_sampled_ap(tmp_path: Path) -> None:
    # Class 0, ranked: row 0 (+, video A, weight 1/2), 1 (hard, the only row of A in its group, 1), 9 (+, A, 1/2):
    # AP = 1/2 * 1 + 1/2 * (1 / 2) = 3/4. Classes 1 and 2 are ranked correctly: 1. Mean of the three with a positive.
    rows = ratings(tmp_path)
    predictions = np.zeros((10, 4))
    predictions[[0, 1, 9], 0] = 3, 2, 1
    predictions[3, 1] = predictions[4, 2] = 1
    assert mean_weighted_ap(rows, predictions) == (pytest.approx((3 / 4 + 1 + 1) / 3), 3)
    # Sampled: the positive is row 0 (AP 1) or row 9 (after the hard negative: 1/2).
    sampled = mean_sampled_ap(rows, predictions, num_samples=400)
    assert sampled == pytest.approx((3 / 4 + 2) / 3, abs=0.03)
    assert sampled == mean_sampled_ap(rows, predictions, num_samples=400)


def test_rareact_metrics_from_segment_scores(tmp_path: Path) -> None:
    rows = ratings(tmp_path)
    actions = sorted({r.action for r in rows})
    segments = {rareact.native_id(*r.segment): 0 for r in rows if r.video[1] != "D"}
    segments = {name: i for i, name in enumerate(segments)}
    truth = rareact.segment_truth(rows)
    scores = np.zeros((len(segments), len(actions)))
    for segment, labels in truth.items():
        if (name := rareact.native_id(*segment)) in segments:
            scores[segments[name]] = [labels.get(action, False) for action in actions]
    metrics = rareact_metrics(rows, segments, actions, scores)
    assert metrics["mwap"] == metrics["msap"] == 1.0
    assert (metrics["num_rows"], metrics["num_rows_without_video"], metrics["num_classes"]) == (8, 2, 3)
    with pytest.raises(ValueError, match="1 are not among the labels"):
        rareact_metrics(rows, segments, actions[1:], scores[:, 1:])


def test_eval_command_reports_the_protocol_tables_and_plots(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text(rareact_csv())
    (tmp_path / "videos").mkdir()
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    for letter, colour in zip("ABC", colours, strict=True):
        frames = colour[None, :, None, None].expand(480, 3, 32, 32)
        write_mp4(frames, tmp_path / "videos" / f"-{letter * 10}.mp4")
    build = ["data", "build", "rareact", "--annotations", str(source), "--videos", str(tmp_path / "videos")]
    done = CliRunner().invoke(app, [*build, "--out", str(tmp_path / "out"), "--num-rows", "0", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["num_missing_videos"] == 1
    command = ["eval", str(tmp_path / "out/manifest.jsonl"), "--model", "dummy", "--tables", str(tmp_path / "tables")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert metrics["official_rareact"]["num_rows"] == 8 and metrics["official_rareact"]["num_classes"] == 3
    assert set(metrics["by_kind"]) == {"action", "verb", "noun"} and metrics["thresholds"]["loss"] >= 0
    assert len((tmp_path / "tables/labels.csv").read_text().splitlines()) == 1 + metrics["num_labels"]
    for name in ("reliability.png", "curves.png"):
        assert (tmp_path / "tables" / name).read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, command).exit_code == 0

"""/calibration with the dummy model: stored, applied to every score, named in every answer, survives a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from support.serving import add, assert_problem, classify, colour_video, serving
from vidlex.model.calibration.bank import BANK
from vidlex.model.calibration.domain import DefaultCalibration, DomainCalibration, Reference, bank_of
from vidlex.model.calibration.fit import fit_domain
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.dummy import COLOURS, DummyClassifier

DUMMY = DummyClassifier()
RED, GREEN, BLUE = np.eye(3, dtype=np.float32)


def videos_of(*colours: np.ndarray, num: int = 40, spread: float = 0.2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.stack([colours[i % len(colours)] for i in range(num)]) + spread * rng.random((num, 3))
    unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


REDDISH = DomainStatistics.of(videos_of(RED))


def body(statistics: DomainStatistics = REDDISH, **changes: Any) -> dict[str, Any]:
    values = {"model": DUMMY.fingerprint, **statistics.to_dict()}
    return {"source": "statistics", "statistics": values | changes}


def expected(statistics: DomainStatistics = REDDISH) -> DomainCalibration:
    return fit_domain(statistics, DUMMY.encode_labels(BANK), DUMMY.scorer)


def scores(answer: Any) -> dict[str, float]:
    assert answer.status_code == 200, answer.text
    return {label["name"]: label["score"] for label in answer.json()["labels"]}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path, collect_statistics=True) as made:
        yield made


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "mixed.mp4", "red", "green", "blue")


def test_scores_are_those_of_the_calibration_and_name_it(client: TestClient, mixed: Path) -> None:
    add(client, "red", "green", "blue")
    before = classify(client, mixed)
    assert before.json()["calibration"] is None
    made = client.put("/calibration", json=body()).json()
    assert made["fingerprint"] == expected().fingerprint(DUMMY.fingerprint)
    assert (made["source"], made["num_videos"], made["stored"], made["has_platt"]) == ("videos", 40, True, False)
    after = classify(client, mixed)
    assert after.json()["calibration"] == made["fingerprint"]
    similarity = {label["name"]: label["similarity"] for label in before.json()["labels"]}
    domain = expected()
    assert domain.scorer is not None  # the dummy's own was never fitted
    for label in after.json()["labels"]:
        name = label["name"]
        assert label["similarity"] == similarity[name]
        adjusted = domain.adjust(np.array([[similarity[name]]]), DUMMY.encode_labels([name]))
        assert label["score"] == pytest.approx(float(domain.scorer.probability(adjusted)[0, 0]), abs=1e-9)
    assert scores(after)["green"] > scores(after)["red"]  # red is nothing special among reddish videos
    candidates = classify(client, mixed, candidate_labels=["red", "green"])
    assert candidates.json()["calibration"] == made["fingerprint"]
    assert scores(candidates) == {name: scores(after)[name] for name in ("red", "green")}


def test_min_score_and_top_k_follow_the_calibrated_scores(client: TestClient, mixed: Path) -> None:
    add(client, "red", "green", "blue", "magenta", "cyan", "yellow")
    client.put("/calibration", json=body()).raise_for_status()
    everything = scores(classify(client, mixed, top_k=0))
    ranked = sorted(everything, key=lambda name: -everything[name])
    assert list(everything) == ranked
    assert list(scores(classify(client, mixed, top_k=2))) == ranked[:2]
    bound = everything[ranked[3]]
    assert list(scores(classify(client, mixed, min_score=bound))) == ranked[:4]
    assert list(scores(classify(client, mixed, min_score=bound + 1e-6))) == ranked[:3]
    segments = classify(client, mixed, aggregate_by="segments", segment_ms=1000, top_k=1).json()["labels"]
    assert len(segments[0]["segments"]) == 3


def test_a_label_changes_no_bit_of_another_labels_score(client: TestClient, mixed: Path) -> None:
    add(client, "red", "green")
    client.put("/calibration", json=body()).raise_for_status()
    before = scores(classify(client, mixed))
    add(client, *(f"label {n}" for n in range(40)), "blue")
    after = scores(classify(client, mixed, top_k=0))
    assert len(after) == 43 and {name: after[name] for name in before} == before


def test_a_calibration_survives_a_restart_and_is_removed(tmp_path: Path, mixed: Path) -> None:
    with serving(tmp_path) as client:
        add(client, "red", "green")
        made = client.put("/calibration", json=body()).json()
        calibrated = scores(classify(client, mixed))
    with serving(tmp_path) as client:
        stored = client.get("/calibration").json()
        assert {**stored, "vocabulary_revision": made["vocabulary_revision"]} == made
        assert scores(classify(client, mixed)) == calibrated
        removed = client.delete("/calibration")
        assert removed.status_code == 204
        assert int(removed.headers["X-Vidlex-Revision"]) == made["vocabulary_revision"] + 1
        answer = classify(client, mixed)
        assert answer.json()["calibration"] is None and scores(answer) != calibrated
        assert client.delete("/calibration").status_code == 204
        gone = client.get("/calibration").json()
        assert (gone["fingerprint"], gone["stored"], gone["labels"], gone["num_videos"]) == (None, False, [], 0)


def test_a_calibration_is_of_one_namespace(client: TestClient, mixed: Path) -> None:
    other = {"X-Vidlex-Namespace": "other"}
    client.put("/calibration", json=body(), headers=other).raise_for_status()
    assert client.get("/calibration").json()["fingerprint"] is None
    assert client.get("/calibration", headers=other).json()["fingerprint"] is not None
    add(client, "red")
    assert classify(client, mixed).json()["calibration"] is None


def test_a_dry_run_stores_nothing_and_tells_what_would_change(client: TestClient) -> None:
    add(client, "red", "green", "blue")
    client.patch(f"/labels/{add(client, 'cyan')[0]['id']}", json={"threshold": 0.9}).raise_for_status()
    found = client.put("/calibration", json=body() | {"dry_run": True}, params={"limit": 3}).json()
    assert not found["stored"] and client.get("/calibration").json()["fingerprint"] is None
    rows = {row["name"]: row for row in found["labels"]}
    assert len(rows) == 3 and "red" in rows
    similarities = videos_of(RED) @ RED
    assert rows["red"]["mean_similarity"] == pytest.approx(similarities.mean(), abs=0.1)
    assert rows["red"]["share_before"] > 0.99 and rows["red"]["share_after"] < 0.1  # scored 0.99 in every video


class Bluish(DummyClassifier):
    """Words that are no colours are shades of blue."""

    def encode_labels(self, names: Sequence[str]) -> np.ndarray:
        vectors = super().encode_labels(names)
        for row, name in enumerate(names):
            if name not in COLOURS:
                vectors[row] = np.array([0.02 * (len(name) % 7), 0, 1], np.float32)
        return vectors


def test_labels_close_to_every_video_are_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path, classifier=Bluish()) as client:
        red = add(client, "red", "blue")[0]
        assert red["warnings"] == []
        made = client.put("/calibration", json=body()).json()
        assert [(row["name"], row["hub"]) for row in made["labels"]] == [("red", True), ("blue", False)]
        labels = client.get("/labels").json()["data"]
        assert [[w["code"] for w in label["warnings"]] for label in labels] == [["hub_label"], []]
        assert labels[0]["etag"] != red["etag"] and labels[1]["etag"].count(".") == 0
        assert [w["code"] for w in add(client, "magenta")[0]["warnings"]] == ["hub_label"]
        assert client.post("/labels:preview", json={"name": "cyan"}).json()["warnings"] == []
        client.delete("/calibration").raise_for_status()
        assert client.get(f"/labels/{red['id']}").json() == red


def test_a_hub_of_the_models_own_statistics_is_warned_of(tmp_path: Path) -> None:
    class Shipped(DummyClassifier):
        def __init__(self) -> None:
            super().__init__()
            statistics = DomainStatistics.of(videos_of(RED, spread=0.3))
            words = np.tile(BLUE, (5, 1)) + np.float32(0.1) * np.eye(5, 3, dtype=np.float32)
            self.calibration = DefaultCalibration(statistics, Reference(), bank=bank_of(statistics, words))

    with serving(tmp_path, classifier=Shipped()) as client:
        red, blue = add(client, "red", "blue")
        (warning,) = red["warnings"]
        assert warning["code"] == "hub_label" and "mean similarity" in warning["detail"]
        assert blue["warnings"] == []
        location = client.get(f"/labels/{red['id']}")
        assert location.json() == red and location.headers["ETag"] == f'"{red["etag"]}"'
        changed = client.patch(
            f"/labels/{red['id']}", json={"threshold": 0.4}, headers={"If-Match": f'"{red["etag"]}"'}
        )
        assert changed.status_code == 200 and changed.json()["warnings"] == red["warnings"]
        batch = client.post("/labels", json={"labels": [{"name": "RED two"}, {"name": "green"}]}).json()["data"]
        assert [len(item["label"]["warnings"]) for item in batch] == [0, 0]
        card = client.get(f"/labels/{red['id']}/card").json()
        assert "hub_label" in {w["code"] for w in card["warnings"]}


def test_platt_scaling_of_labelled_videos_moves_every_logit(client: TestClient, mixed: Path) -> None:
    add(client, "red", "green")
    client.put("/calibration", json=body()).raise_for_status()
    plain = scores(classify(client, mixed))
    made = client.put("/calibration", json=body() | {"platt": {"slope": 0.5, "intercept": 1.0}}).json()
    assert made["has_platt"]
    for name, score in scores(classify(client, mixed)).items():
        logit = np.log(plain[name]) - np.log1p(-plain[name])
        assert score == pytest.approx(1 / (1 + np.exp(-(0.5 * logit + 1))), rel=1e-6)


def test_recent_traffic_is_collected_on_request_only(client: TestClient, tmp_path: Path, red: Path) -> None:
    assert_problem(client.put("/calibration", json={"source": "recent"}), 422, "invalid_parameter")
    for number in range(1, 4):
        classify(client, red)
        assert client.get("/calibration").json()["num_recent_videos"] == number
    classify(client, red, aggregate_by="segments", segment_ms=500)
    assert client.get("/calibration").json()["num_recent_videos"] == 3
    answer = client.put("/calibration", json={"source": "recent"})
    assert_problem(answer, 422, "invalid_parameter")
    assert "too few" in answer.json()["detail"]
    with serving(tmp_path / "off") as without:
        classify(without, red)
        assert without.get("/calibration").json()["num_recent_videos"] == 0
        assert_problem(without.put("/calibration", json={"source": "recent"}), 422, "invalid_parameter")


def test_recent_traffic_gives_the_calibration_of_the_same_videos(client: TestClient, tmp_path: Path) -> None:
    colours = ("red", "green", "blue")
    for number in range(9):
        chosen = [colours[(number + i) % 3] for i in range(1 + number % 3)] + ["red"]
        classify(client, colour_video(tmp_path / f"{number}.mp4", *chosen, frames_each=4)).raise_for_status()
    made = client.put("/calibration", json={"source": "recent"}).json()
    assert (made["source"], made["num_videos"], made["stored"]) == ("recent", 9, True)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "dummy-2"}, 409, "model_conflict"),
        ({"num_videos": 7}, 422, "invalid_parameter"),
        ({"mean": "AACAPgAAgD4="}, 422, "invalid_parameter"),  # two numbers
        ({"mean": "not base64!"}, 422, "invalid_parameter"),
        ({"basis": "AACAPgAAgD4="}, 422, "invalid_parameter"),
        ({"residual": -1}, 422, "invalid_parameter"),
        ({"more": 1}, 422, "invalid_parameter"),
    ],
)
def test_bad_statistics_are_refused(client: TestClient, change: dict[str, Any], status: int, code: str) -> None:
    assert_problem(client.put("/calibration", json=body(**change)), status, code)
    assert client.get("/calibration").json()["fingerprint"] is None


def test_bad_bodies_are_refused(client: TestClient) -> None:
    same = DomainStatistics.of(np.repeat(RED[None], 20, axis=0))
    wrong: list[dict[str, Any]] = [
        {},
        {"source": "videos"},
        {"source": "statistics"},
        body() | {"source": "recent"},
        body() | {"platt": {"slope": 0, "intercept": 0}},
        body(same),
    ]
    for value in wrong:
        assert_problem(client.put("/calibration", json=value), 422, "invalid_parameter")
    assert_problem(client.put("/calibration", content=b"{"), 415, "unsupported_media")
    assert_problem(client.post("/calibration", json=body()), 405, "method_not_allowed")

"""Judgements of kept videos: scored from their features, under later calibrations and models too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from support.judgements import judgement, keep, sha256_of
from support.serving import add, assert_problem, clear, serving, wait_until
from vidlex.service.feedback.records import Judgement
from vidlex.service.feedback.scores import kept_scores
from vidlex.service.videos.store import KeptVideoStore

THIRTY = 30


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("kept"), allowed_models=("dummy:2",)) as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> Iterator[TestClient]:
    clear(service)
    yield service
    service.delete("/calibration")


def videos_of(client: TestClient) -> KeptVideoStore:
    app: Any = client.app
    videos: KeptVideoStore = app.state.context.require_parts().background.kept_videos
    return videos


def towards_red(similarity: float) -> list[float]:
    """A feature of this similarity with "red"."""
    return [similarity, math.sqrt(1 - similarity**2), 0.0]


def score_of(similarity: float) -> float:
    """Of the dummy model, of a feature that is kept as float16."""
    return 1 / (1 + math.exp(5 - 10 * float(np.float16(similarity))))


def post(client: TestClient, judgements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    answer = client.post("/feedback", json={"judgements": list(judgements)})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def judged(video_id: str, label: str, right: bool, **fields: Any) -> dict[str, Any]:
    return {"video_id": video_id, "label": label, "right": right, **fields}


def thirty_kept(client: TestClient, run: str) -> list[dict[str, Any]]:
    """Right above a similarity of 0.7, with two exceptions."""
    similarities = np.linspace(0.4, 0.95, THIRTY)
    return [
        judged(keep(videos_of(client), f"{run} {i}", [towards_red(s)]), "red", bool((s > 0.7) ^ (i in (8, 21))))
        for i, s in enumerate(similarities.tolist())
    ]


def fit_of(client: TestClient, label_id: str) -> dict[str, Any]:
    answer = client.get(f"/feedback/fits/{label_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_score_is_that_of_the_most_confident_kept_segment(client: TestClient) -> None:
    add(client, "red", "green")
    video = keep(videos_of(client), "three segments", [towards_red(0.2), towards_red(0.9), [0.0, 0.0, 1.0]])
    # The client's own score does not count where the features are at hand.
    stored = post(
        client,
        [
            judged(video, "red", True, score=0.1, fingerprint="dummy-1"),
            judged(video, "green", False, start_ms=1000, end_ms=2000),
            judged(video, "red", False, start_ms=0, end_ms=1000),
            judged(video, "red", True, start_ms=300, end_ms=1900),  # a stretch over two segments
            judged(video, "red", True, start_ms=7000, end_ms=8000),  # of which nothing is kept
        ],
    )["judgements"]
    scores = [item["score"] for item in stored]
    expected = [score_of(0.9), score_of(towards_red(0.9)[1]), score_of(0.2), score_of(0.9)]
    assert scores[:4] == pytest.approx(expected, rel=1e-6)
    assert scores[4] is None
    assert [item["scored_by"] for item in stored] == ["service"] * 4 + [None]
    assert {item["sha256"] for item in stored} == {sha256_of("three segments")}


def test_equal_content_is_one_video_whether_judged_by_id_or_digest(client: TestClient) -> None:
    add(client, "red")
    video = keep(videos_of(client), "same", [towards_red(0.9)])
    post(client, [judgement("same", "red", False, 0.4)])
    stored = post(client, [judged(video, "red", True)])
    assert stored["labels"][0]["num_judgements"] == 1


def test_a_calibration_does_not_end_their_use(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, [*thirty_kept(client, "a"), judgement("not kept", "red", False, 0.9)])
    before = fit_of(client, label["id"])
    assert (before["num_right"] + before["num_wrong"], before["num_other_scale"]) == (31, 0)
    statistics = {"model": "dummy-1", "num_videos": 16, "mean": "AACAPgAAgD4AAIA+", "basis": "zczMPQAAAAAAAAAA"}
    body = {"source": "statistics", "statistics": {**statistics, "residual": 0.0001}}
    assert client.put("/calibration", json=body).status_code == 200
    after = fit_of(client, label["id"])
    assert after["calibration"] is not None
    # Scores of the kept ones are computed again; the submitted one is of another calibration.
    assert (after["num_right"] + after["num_wrong"], after["num_other_scale"]) == (30, 1)
    assert after["threshold"] != before["threshold"]
    # A calibration only moves and stretches similarities, so the same videos match.
    counts = [[fit["after"][f"num_{kind}"] for kind in ("true_positive", "false_negative")] for fit in (before, after)]
    assert counts[0] == counts[1]
    assert client.delete("/calibration").status_code == 204
    assert fit_of(client, label["id"])["threshold"] == before["threshold"]


def test_a_removed_video_keeps_the_score_it_was_judged_with(client: TestClient) -> None:
    (label,) = add(client, "red")
    judgements = thirty_kept(client, "b")
    post(client, judgements)
    before = fit_of(client, label["id"])
    for item in judgements[:5]:
        videos_of(client).remove("default", item["video_id"])
    assert fit_of(client, label["id"])["threshold"] == before["threshold"]
    answer = client.post("/feedback", json=judgements[0])
    assert assert_problem(answer, 422, "invalid_parameter")["errors"][0]["pointer"] == "/video_id"


def test_a_vector_of_another_name_gives_no_score(client: TestClient) -> None:
    """As of an index that has not seen a change of name yet."""
    (label,) = add(client, "red")
    video = keep(videos_of(client), "renamed", [towards_red(0.9)])
    (stored,) = post(client, [judged(video, "red", True)])["judgements"]
    record = Judgement(
        id=stored["id"],
        label_id=label["id"],
        label_name="red",
        sha256=stored["sha256"],
        right=True,
        client="",
        created_at_ms=0,
        video_id=video,
    )
    app: Any = client.app
    vocabulary = app.state.context.require_parts().models.acquire("default")
    try:
        judgements = [record, replace(record, id="other", label_name="blue")]
        found = kept_scores(videos_of(client), vocabulary, judgements)
    finally:
        vocabulary.release()
    assert list(found) == [record.id]
    assert found[record.id].score == pytest.approx(stored["score"])


def test_after_a_change_of_model_a_threshold_is_stale_and_fitted_again(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_models=("dummy:2",)) as client:
        (label,) = add(client, "red")
        judgements = thirty_kept(client, "c")
        post(client, [*judgements, judgement("not kept", "red", True, 0.9)])
        old = client.post(f"/feedback/fits/{label['id']}:apply").json()
        assert client.post("/models:prepare", json={"model": "dummy:2"}).status_code == 202
        wait_until(lambda: (client.get("/models").json()["prepared"] or {}).get("complete"), "not prepared")
        assert client.post("/models:activate").status_code == 200

        # No kept features of the new model: the judgements do not count, and nothing of the old one is mixed in.
        stale = fit_of(client, label["id"])
        assert (stale["stale"], stale["status"], stale["num_other_scale"]) == (True, "too_few", 31)
        assert stale["threshold_before"] == old["threshold"]  # still in use
        assert {"threshold_stale", "other_scale"} <= {warning["code"] for warning in stale["warnings"]}

        # Encoded again, the kept ones count: the second dummy model has "red" on the axis of green.
        for i, item in enumerate(judgements):
            similarity = 0.3 + 0.02 * i
            feature = [0.0, similarity, math.sqrt(1 - similarity**2)]
            keep(videos_of(client), f"c {i}", [feature], "dummy-2")
            assert videos_of(client).get("default", item["video_id"]).generations == {"dummy-1": 1, "dummy-2": 1}
        fresh = fit_of(client, label["id"])
        assert (fresh["status"], fresh["num_right"] + fresh["num_wrong"]) == ("ready", 30)
        assert fresh["num_other_scale"] == 1
        new = client.post(f"/feedback/fits/{label['id']}:apply").json()
        assert (new["fingerprint"], new["threshold_before"]) == ("dummy-2", old["threshold"])
        again = fit_of(client, label["id"])
        assert (again["stale"], again["applied"]["id"]) == (False, new["id"])
        assert client.post(f"/feedback/fits/{label['id']}:revert").json()["threshold"] == old["threshold"]
        assert fit_of(client, label["id"])["stale"]

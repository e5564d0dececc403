"""/feedback of a real application: stored, listed, fitted, applied, reverted; namespaces and bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from support.judgements import judgement, platt_by_hand, sha256_of, thirty
from support.serving import add, assert_problem, classify, clear, colour_video, serving

OTHER = {"X-Vidlex-Namespace": "other"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("feedback")) as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> TestClient:
    clear(service)
    return service


def post(client: TestClient, judgements: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    answer = client.post("/feedback", json={"judgements": judgements}, **options)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def fit_of(client: TestClient, label_id: str, **params: Any) -> dict[str, Any]:
    answer = client.get(f"/feedback/fits/{label_id}", params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def applied(client: TestClient, label_id: str, action: str = "apply", **params: Any) -> dict[str, Any]:
    answer = client.post(f"/feedback/fits/{label_id}:{action}", params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_thirty_judgements_move_the_threshold_and_what_matches(client: TestClient, tmp_path: Path) -> None:
    # Of a video of the colour (1, 1, 0), the dummy model's score for red is sigmoid(10 / sqrt(2) - 5) = 0.888.
    video = colour_video(tmp_path / "yellow.mp4", "red", "green")
    (label,) = add(client, "red")
    post(client, thirty("red"))
    fit = fit_of(client, label["id"])
    assert fit["status"] == "ready"
    slope, intercept = platt_by_hand([(math.log(0.6 / 0.4), 15, 3), (math.log(0.9 / 0.1), 15, 12)])
    assert fit["threshold"] == pytest.approx(1 / (1 + math.exp(intercept / slope)), abs=1e-8)
    assert 0.65 < fit["threshold"] < 0.8
    assert fit["threshold_before"] == 0.5
    assert (fit["num_right"], fit["num_wrong"], fit["min_judgements"]) == (15, 15, 30)
    before, after = fit["before"], fit["after"]
    assert (before["precision"]["value"], before["recall"]["value"]) == (0.5, 1.0)
    assert (after["precision"]["value"], after["recall"]["value"]) == (0.8, 0.8)
    for rate in (before["precision"], after["precision"], after["recall"]):
        assert rate["low"] < rate["value"] < rate["high"]
    assert "judged_videos" in [warning["code"] for warning in fit["warnings"]]
    assert client.get(f"/labels/{label['id']}").json()["threshold"] is None  # nothing is applied yet

    version = applied(client, label["id"], proposal=fit["proposal"])
    assert (version["kind"], version["threshold_before"]) == ("fit", None)
    assert version["threshold"] == fit["threshold"] == client.get(f"/labels/{label['id']}").json()["threshold"]
    assert (version["fit"]["num_judgements"], version["fingerprint"]) == (30, "dummy-1")
    (scored,) = classify(client, video, label_ids=[label["id"]]).json()["labels"]
    assert scored["threshold"] == fit["threshold"]
    assert scored["matched"] is (scored["score"] >= fit["threshold"])

    again = fit_of(client, label["id"])
    assert again["applied"]["id"] == version["id"]
    assert not again["stale"] and not again["beyond_uncertainty"]
    assert_problem(client.post(f"/feedback/fits/{label['id']}:apply"), 409, "feedback_conflict")


def test_versions_go_back_one_by_one(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, thirty("red"))
    first = applied(client, label["id"])
    post(client, [judgement(f"more {i}", "red", False, 0.9) for i in range(12)])
    second = applied(client, label["id"])
    assert second["threshold"] > first["threshold"] == second["threshold_before"]

    back = applied(client, label["id"], "revert")
    assert (back["kind"], back["reverts"], back["threshold"]) == ("revert", second["id"], first["threshold"])
    assert client.get(f"/labels/{label['id']}").json()["threshold"] == first["threshold"]
    assert fit_of(client, label["id"])["applied"]["id"] == first["id"]
    further = applied(client, label["id"], "revert")
    assert (further["reverts"], further["threshold"]) == (first["id"], None)
    assert client.get(f"/labels/{label['id']}").json()["threshold"] is None
    assert_problem(client.post(f"/feedback/fits/{label['id']}:revert"), 409, "feedback_conflict")

    versions = client.get(f"/feedback/fits/{label['id']}/versions").json()
    assert [v["id"] for v in versions["data"]] == [further["id"], back["id"], second["id"], first["id"]]
    assert versions["first_id"] == further["id"]


def test_a_threshold_that_was_set_by_hand_is_not_reverted(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, thirty("red"))
    applied(client, label["id"])
    client.patch(f"/labels/{label['id']}", json={"threshold": 0.3})
    assert fit_of(client, label["id"])["applied"] is None
    assert_problem(client.post(f"/feedback/fits/{label['id']}:revert"), 409, "feedback_conflict")
    assert client.get(f"/labels/{label['id']}").json()["threshold"] == 0.3


def test_only_what_was_confirmed_is_applied(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, thirty("red"))
    fit = fit_of(client, label["id"])
    post(client, [judgement("another", "red", False, 0.9)])
    path = f"/feedback/fits/{label['id']}:apply"
    assert_problem(client.post(path, params={"proposal": fit["proposal"]}), 412, "precondition_failed")
    assert_problem(client.post(path, headers={"If-Match": '"1-1"'}), 412, "precondition_failed")
    tag = client.get(f"/labels/{label['id']}").headers["etag"]
    proposal = fit_of(client, label["id"])["proposal"]
    assert client.post(path, params={"proposal": proposal}, headers={"If-Match": tag}).status_code == 200


def test_a_target_precision_gives_a_higher_threshold(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, [judgement(i, "red", i * 7 % 120 < i, 0.3 + i / 200) for i in range(120)])
    even, strict = fit_of(client, label["id"]), fit_of(client, label["id"], target_precision=0.9)
    assert strict["status"] == "ready"
    assert strict["threshold"] > even["threshold"]
    assert strict["low"] is None and strict["cross_validated"] is None
    assert even["cross_validated"] is not None
    assert fit_of(client, label["id"], target_precision=0.999)["status"] == "target_not_reached"
    path = f"/feedback/fits/{label['id']}:apply"
    assert_problem(client.post(path, params={"target_precision": 0.999}), 409, "feedback_conflict")
    assert_problem(client.get(f"/feedback/fits/{label['id']}?target_precision=1"), 422, "invalid_parameter")
    assert applied(client, label["id"], target_precision=0.9)["fit"]["target_precision"] == 0.9


@pytest.mark.parametrize(
    ("judgements", "status"),
    [
        ([], "too_few"),
        (thirty("red")[:-1], "too_few"),
        ([judgement(i, "red", i < 28, 0.6 + i / 100) for i in range(30)], "one_sided"),
        ([judgement(i, "red", i < 15, 0.001 if i < 15 else 0.999) for i in range(30)], "not_separable"),
        # Thirty segments of four videos: two of them wrong.
        (
            [judgement(i % 4, "red", i % 4 < 2, 0.4 + i / 100, start_ms=i, end_ms=i + 1) for i in range(30)],
            "one_sided",
        ),
        ([judgement(i, "red", i < 15) for i in range(30)], "too_few"),  # without scores
    ],
)
def test_what_does_not_suffice_gives_no_threshold(
    client: TestClient, judgements: list[dict[str, Any]], status: str
) -> None:
    (label,) = add(client, "red")
    if judgements:
        post(client, judgements)
    fit = fit_of(client, label["id"])
    assert (fit["status"], fit["threshold"]) == (status, None)
    assert_problem(client.post(f"/feedback/fits/{label['id']}:apply"), 409, "feedback_conflict")


def test_a_newer_judgement_takes_the_place_of_an_older_one(client: TestClient) -> None:
    (label,) = add(client, "red", aliases=["scarlet"])
    first = post(client, [judgement("a", "red", True, 0.8, note="sure", source="team")])["judgements"][0]
    assert first["label_id"] == label["id"]
    segment = judgement("a", "red", True, 0.8, start_ms=0, end_ms=9)
    second = post(client, [judgement("a", "Scarlet", False, 0.8), segment])
    assert second["labels"][0]["num_judgements"] == 2
    page = client.get("/feedback", params={"label_id": label["id"]}).json()
    assert {(item["right"], item["start_ms"]) for item in page["data"]} == {(True, 0), (False, None)}
    assert first["id"] not in [item["id"] for item in page["data"]]
    assert_problem(client.delete(f"/feedback/{first['id']}"), 404, "not_found")


def test_judgements_are_listed_in_pages_and_removed(client: TestClient) -> None:
    (label,) = add(client, "red")
    ids = [post(client, [judgement(i, "red", True, 0.8)])["judgements"][0]["id"] for i in range(5)]
    seen: list[str] = []
    after = None
    while True:
        params = {"label_id": label["id"], "limit": 2} | ({} if after is None else {"after": after})
        page = client.get("/feedback", params=params).json()
        seen += [item["id"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert sorted(seen) == sorted(ids)
    assert seen == sorted(seen, reverse=True)
    assert client.delete(f"/feedback/{seen[0]}").status_code == 204
    (judged,) = client.get("/feedback:labels").json()["data"]
    assert (judged["label_id"], judged["num_judgements"]) == (label["id"], 4)
    assert_problem(client.get("/feedback", params={"label_id": "lbl_none"}), 404, "not_found")
    assert_problem(client.delete("/feedback/none"), 404, "not_found")


def test_judged_labels_are_listed_in_pages(client: TestClient) -> None:
    labels = add(client, *(f"label {i}" for i in range(7)))
    post(client, [judgement("a", label["name"], True, 0.8) for label in labels])
    client.delete(f"/labels/{labels[2]['id']}")
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        params = {"limit": 2} | ({} if page["last_id"] is None else {"after": page["last_id"]})
        page = client.get("/feedback:labels", params=params).json()
        seen += [item["label"] for item in page["data"]]
    assert seen == [label["name"] for label in labels if label != labels[2]]


def test_bad_judgements_are_named_and_nothing_is_stored(client: TestClient) -> None:
    (label,) = add(client, "red")
    bad = [judgement("a", "red", True, 0.8), judgement("b", "no such label", True), judgement("c", "red", True)]
    del bad[2]["sha256"]
    bad[2]["video_id"] = "vid_none"
    answer = client.post("/feedback", json={"judgements": bad})
    problem = assert_problem(answer, 422, "invalid_parameter")
    assert [error["pointer"] for error in problem["errors"]] == ["/judgements/1/label", "/judgements/2/video_id"]
    assert client.get("/feedback", params={"label_id": label["id"]}).json()["data"] == []
    single = assert_problem(client.post("/feedback", json=bad[1]), 422, "invalid_parameter")
    assert single["errors"][0]["pointer"] == "/label"


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": None},
        {"sha256": "abc"},
        {"video_id": "vid_1"},  # with sha256
        {"label_id": "lbl_1"},  # with label
        {"start_ms": 5},
        {"start_ms": 5, "end_ms": 4},
        {"score": 0.5, "fingerprint": None},
        {"score": 1.5},
        {"score": None, "fingerprint": None, "calibration": "abc"},
        {"right": "yes"},
        {"note": "x" * 1001},
        {"other": 1},
    ],
)
def test_what_is_no_judgement_is_refused(client: TestClient, changes: dict[str, Any]) -> None:
    body = judgement("a", "red", True, 0.8) | changes
    assert_problem(client.post("/feedback", json=body), 422, "invalid_parameter")


def test_a_batch_is_bounded(client: TestClient) -> None:
    add(client, "red")
    assert_problem(client.post("/feedback", json={"judgements": []}), 422, "invalid_parameter")
    many = [judgement(i, "red", True, 0.8) for i in range(1001)]
    assert_problem(client.post("/feedback", json={"judgements": many}), 422, "invalid_parameter")
    assert post(client, many[:1000])["labels"][0]["num_judgements"] == 1000


def test_namespaces_are_separate(client: TestClient) -> None:
    (label,) = add(client, "red")
    stored = post(client, thirty("red"))
    missing = client.get("/feedback", params={"label_id": label["id"]}, headers=OTHER)
    assert_problem(missing, 404, "not_found")
    for path in ("", "/versions"):
        answer = client.get(f"/feedback/fits/{label['id']}{path}", headers=OTHER)
        assert_problem(answer, 404, "not_found")
    assert_problem(client.post(f"/feedback/fits/{label['id']}:apply", headers=OTHER), 404, "not_found")
    assert_problem(client.post(f"/feedback/fits/{label['id']}:revert", headers=OTHER), 404, "not_found")
    assert_problem(client.delete(f"/feedback/{stored['judgements'][0]['id']}", headers=OTHER), 404, "not_found")
    assert client.get("/feedback:labels", headers=OTHER).json()["data"] == []
    other = client.post("/feedback", json=judgement("a", "red", True), headers=OTHER)
    assert_problem(other, 422, "invalid_parameter")
    # The same name there is another label, with its own judgements.
    theirs = client.post("/labels", json={"name": "red"}, headers=OTHER).json()
    post(client, thirty("red")[:3], headers=OTHER)
    assert client.get(f"/feedback/fits/{theirs['id']}", headers=OTHER).json()["num_judgements"] == 3
    assert fit_of(client, label["id"])["num_judgements"] == 30
    assert client.delete(f"/labels/{theirs['id']}", headers=OTHER).status_code == 204


def test_judgements_of_another_name_do_not_count(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, thirty("red"))
    version = applied(client, label["id"])
    client.patch(f"/labels/{label['id']}", json={"name": "blue"})
    fit = fit_of(client, label["id"])
    assert (fit["status"], fit["num_other_name"], fit["num_judgements"]) == ("too_few", 30, 30)
    assert fit["stale"] and fit["applied"]["id"] == version["id"]
    assert {"renamed", "threshold_stale"} <= {warning["code"] for warning in fit["warnings"]}


def test_scores_of_another_calibration_are_never_mixed_in(client: TestClient) -> None:
    (label,) = add(client, "red")
    post(client, [*thirty("red"), *(judgement(f"x{i}", "red", False, 0.99, calibration="abc") for i in range(9))])
    fit = fit_of(client, label["id"])
    assert (fit["num_right"], fit["num_wrong"], fit["num_other_scale"]) == (15, 15, 9)
    plain = fit["threshold"]
    post(client, [judgement(f"y{i}", "red", False, 0.99, fingerprint="dummy-2") for i in range(9)])
    fit = fit_of(client, label["id"])
    assert (fit["threshold"], fit["num_other_scale"]) == (plain, 18)


def test_the_digest_of_a_video_is_one_in_either_case(client: TestClient) -> None:
    add(client, "red")
    post(client, [judgement("a", "red", True, 0.8)])
    stored = post(client, [judgement("a", "red", False, 0.8) | {"sha256": sha256_of("a").upper()}])
    assert stored["labels"][0]["num_judgements"] == 1

"""POST /classify with real video files: scores, filters, segments, warnings and independence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from support import videos
from support.serving import add, assert_problem, classify, clear, colour_video, serving
from vidlex.service.classification.matching import top_rows

RED = 1 / (1 + np.exp(-5.0))  # of an exact match, with the dummy model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("classify"), max_frames=64, max_total_frames=64) as client:
        yield client


@pytest.fixture
def client(shared: TestClient) -> TestClient:
    clear(shared)
    return shared


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red", frames_each=20)


@pytest.fixture(scope="module")
def red_then_blue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "both.mp4", "red", "blue", frames_each=20)


def ranked(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(label["name"], label["score"]) for label in answer.json()["labels"]]


def test_classification_contains_all_fields(client: TestClient, red: Path) -> None:
    (label, _) = add(client, "red", "green", categories=["colour"])
    answer = classify(client, red)
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "video.classification"
    data = red.read_bytes()
    assert body["video"] == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "duration_ms": 2000,
        "start_ms": 0,
        "width": 160,
        "height": 96,
        "fps": 10.0,
        "codec": "h264",
        "bytes": len(data),
    }
    assert body["coverage"]["frames_requested"] == body["coverage"]["frames_decoded"] == 4
    assert len(body["coverage"]["timestamps_ms"]) == 4
    assert body["coverage"]["frame_policy"] == "uniform"
    assert (body["coverage"]["frames_failed"], body["coverage"]["frames_blank"]) == (0, 4)  # all of one colour
    first = body["labels"][0]
    assert first == {
        "id": label["id"],
        "name": "red",
        "score": pytest.approx(0.9933, abs=1e-3),
        "similarity": pytest.approx(1.0, abs=1e-3),
        "threshold": 0.5,
        "matched": True,
        "categories": ["colour"],
        "segments": [],
        "stretches": [{"start_ms": 0, "end_ms": 2000, "score": first["score"], "peak_ms": 1000}],
    }
    assert body["labels"][1]["name"] == "green" and not body["labels"][1]["matched"]
    assert body["model"] == {"id": "dummy", "fingerprint": "dummy-1"}
    assert body["vocabulary_revision"] == label["revision"] + 1
    assert set(body["usage"]) == {"decode_ms", "encode_ms", "match_ms", "queue_ms", "cached"}
    assert all(isinstance(value, int) and value >= 0 for value in body["usage"].values())
    assert body["warnings"] == []


def test_label_changes_apply_to_the_next_request(client: TestClient, red: Path) -> None:
    for i in range(5):
        add(client, f"label {i}")
        assert f"label {i}" in dict(ranked(classify(client, red)))
    (label,) = add(client, "red")
    assert ranked(classify(client, red))[0][0] == "red"
    client.patch(f"/labels/{label['id']}", json={"name": "green"})
    assert dict(ranked(classify(client, red)))["green"] < 0.1
    client.delete(f"/labels/{label['id']}")
    assert "green" not in dict(ranked(classify(client, red)))


def test_scores_do_not_depend_on_other_labels(tmp_path: Path, red_then_blue: Path) -> None:
    with serving(tmp_path) as client:
        _check_independence(client, red_then_blue)


def _check_independence(client: TestClient, red_then_blue: Path) -> None:
    add(client, "red", "yellow", "white", "some label", "blue")

    def numbers(**params: Any) -> dict[str, tuple[float, float]]:
        answer = classify(client, red_then_blue, top_k=0, **params)
        raw = json.loads(answer.content, parse_float=str)  # the digits of the response
        return {label["name"]: (label["score"], label["similarity"]) for label in raw["labels"]}

    before = numbers()
    assert len(before) == 5 and len(set(before.values())) > 2
    batch = [{"name": f"another {i}"} for i in range(501)]
    assert client.post("/labels", json={"labels": batch}).status_code == 200
    after = numbers()
    assert len(after) == 506
    assert {name: after[name] for name in before} == before
    ids = {x["name"]: x["id"] for x in client.get("/labels?limit=1000").json()["data"]}
    for name, value in before.items():
        assert numbers(label_ids=[ids[name]]) == {name: value}


def test_empty_vocabulary_gives_a_warning(client: TestClient, red: Path) -> None:
    body = classify(client, red).json()
    assert body["labels"] == []
    assert [warning["code"] for warning in body["warnings"]] == ["vocabulary_empty"]


VIEWS = "vidlex.service.views.classification"


@pytest.mark.parametrize("top_k", [0, 20, 1000])
@pytest.mark.parametrize("aggregate_by", ["video", "segments"])
def test_a_long_answer_ends_early(
    client: TestClient, red: Path, monkeypatch: pytest.MonkeyPatch, top_k: int, aggregate_by: str
) -> None:
    """The vocabulary may have a million labels, and the client may not read."""
    names = ["red", *(f"{'x' * 100} {i}" for i in range(40))]
    asking = {"candidate_labels": names, "top_k": top_k, "aggregate_by": aggregate_by, "segment_ms": 500}
    whole = classify(client, red, **asking)
    assert len(whole.json()["labels"]) == (top_k if top_k == 20 else len(names))
    assert not whole.json()["warnings"]
    monkeypatch.setattr(f"{VIEWS}.MAX_CLASSIFICATION_BYTES", 4000)
    short = classify(client, red, **asking)
    labels = short.json()["labels"]
    assert labels == whole.json()["labels"][: len(labels)] and labels[0]["name"] == "red"
    assert len(short.content) < 4000 + len(json.dumps(whole.json()["labels"][0])) + 2000
    (warning,) = short.json()["warnings"]
    assert warning["code"] == "labels_left_out" and f"{len(labels)} labels" in warning["detail"]


def test_an_answer_has_a_bounded_number_of_labels(
    client: TestClient, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"label {i}" for i in range(12)]
    monkeypatch.setattr(f"{VIEWS}.MAX_SCORED_LABELS", 10)
    monkeypatch.setattr(f"{VIEWS}._NUM_RANKED", 11)
    for top_k, num, codes in ((10, 10, []), (11, 10, ["labels_left_out"]), (0, 10, ["labels_left_out"]), (3, 3, [])):
        body = classify(client, red, candidate_labels=names, top_k=top_k).json()
        assert len(body["labels"]) == num
        assert [warning["code"] for warning in body["warnings"]] == codes
    assert len(classify(client, red, candidate_labels=names[:10], top_k=0).json()["labels"]) == 10


def test_candidate_labels_are_scored_and_not_stored(client: TestClient, red: Path) -> None:
    add(client, "stored")
    body = classify(client, red, candidate_labels=["Red", "blue", "red", "blue"]).json()
    assert [(x["name"], x["id"]) for x in body["labels"]] == [("Red", None), ("red", None), ("blue", None)]
    assert body["labels"][0]["score"] == pytest.approx(RED, abs=1e-3)
    assert [x["name"] for x in client.get("/labels").json()["data"]] == ["stored"]
    answer = classify(client, red, candidate_labels=["ok", "\u202e"])
    problem = assert_problem(answer, 422, "label_text_invalid")
    assert problem["errors"][0]["pointer"] == "/candidate_labels/1"
    assert_problem(classify(client, red, candidate_labels=["ok", "w " * 20]), 422, "label_text_invalid")


def test_filters_by_id_and_category(client: TestClient, red: Path) -> None:
    (red_label,) = add(client, "red", categories=["colour", "warm"])
    (blue_label,) = add(client, "blue", categories=["colour"])
    add(client, "car", categories=["thing"])
    names = lambda **params: {name for name, _ in ranked(classify(client, red, **params))}  # noqa: E731
    assert names(label_ids=[blue_label["id"]]) == {"blue"}
    assert names(include_categories=["Colour"]) == {"red", "blue"}
    assert names(include_categories=["colour"], exclude_categories=["warm"]) == {"blue"}
    assert names(exclude_categories=["colour"]) == {"car"}
    assert names(label_ids=[red_label["id"], blue_label["id"]], exclude_categories=["warm"]) == {"blue"}
    answer = classify(client, red, include_categories=["nothing"])
    assert answer.json()["labels"] == []
    assert [w["code"] for w in answer.json()["warnings"]] == ["no_label_selected"]


def test_unknown_label_ids_are_named_in_the_error(client: TestClient, red: Path) -> None:
    (label,) = add(client, "red")
    answer = classify(client, red, label_ids=[label["id"], "lbl_gone"])
    problem = assert_problem(answer, 422, "invalid_parameter")
    assert [error["pointer"] for error in problem["errors"]] == ["/label_ids/1"]


def test_top_k_and_min_score(client: TestClient, red: Path) -> None:
    client.post("/labels", json={"labels": [{"name": f"label {i:02}"} for i in range(24)] + [{"name": "red"}]})
    assert len(ranked(classify(client, red))) == 20
    assert len(ranked(classify(client, red, top_k=0))) == 25
    assert len(ranked(classify(client, red, top_k=3))) == 3
    found = ranked(classify(client, red, top_k=0, min_score=0.9))
    assert found and all(score >= 0.9 for _, score in found)


def test_equal_scores_are_sorted_and_truncated_by_name(client: TestClient, red: Path) -> None:
    names = ["zzz", "bbb", "mmm", "aaa", "yyy"]  # equal lengths give equal scores
    add(client, *names)
    found = ranked(classify(client, red, top_k=3))
    assert len({score for _, score in found}) == 1
    assert [name for name, _ in found] == ["aaa", "bbb", "mmm"]


def test_label_threshold_overrides_the_default(client: TestClient, red: Path) -> None:
    add(client, "red", threshold=0.999)
    add(client, "green", threshold=0.0)
    matched = {x["name"]: (x["matched"], x["threshold"]) for x in classify(client, red).json()["labels"]}
    assert matched == {"red": (False, 0.999), "green": (True, 0.0)}


def test_segments_are_scored_separately(client: TestClient, red_then_blue: Path) -> None:
    add(client, "red", "blue", "green")
    body = classify(client, red_then_blue, aggregate_by="segments", segment_ms=1000).json()
    assert body["coverage"]["frames_requested"] == 16
    found = {x["name"]: x for x in body["labels"]}
    spans = [(part["start_ms"], part["end_ms"]) for part in found["red"]["segments"]]
    assert spans == [(0, 1000), (1000, 2000), (2000, 3000), (3000, 4000)]
    seen = {name: [part["score"] > 0.5 for part in found[name]["segments"]] for name in found}
    assert seen == {"red": [True, True, False, False], "blue": [False, False, True, True], "green": [False] * 4}
    for label in found.values():
        assert label["score"] == max(part["score"] for part in label["segments"])
    assert found["red"]["matched"] and found["blue"]["matched"]


def test_last_segment_ends_with_the_window(client: TestClient, red_then_blue: Path) -> None:
    add(client, "red")
    body = classify(
        client, red_then_blue, aggregate_by="segments", segment_ms=1500, start_ms=500, end_ms=3000, num_frames=2
    ).json()
    spans = [(part["start_ms"], part["end_ms"]) for part in body["labels"][0]["segments"]]
    assert spans == [(500, 2000), (2000, 3000)]


def test_segments_shorter_than_a_frame_use_the_visible_frame(client: TestClient, tmp_path: Path) -> None:
    video = colour_video(tmp_path / "slow.mp4", "red", "blue", frames_each=2)
    add(client, "red")
    body = classify(client, video, aggregate_by="segments", segment_ms=100, num_frames=3).json()
    assert len(body["labels"][0]["segments"]) == 4


def test_timestamps_score_each_frame(client: TestClient, red_then_blue: Path) -> None:
    add(client, "red", "blue")
    body = classify(client, red_then_blue, aggregate_by="timestamps", num_frames=8).json()
    found = {x["name"]: x["segments"] for x in body["labels"]}
    assert [part["start_ms"] for part in found["red"]] == body["coverage"]["timestamps_ms"]
    assert all(part["start_ms"] == part["end_ms"] for part in found["red"])
    assert [part["score"] > 0.5 for part in found["red"]] == [True] * 4 + [False] * 4


def test_start_ms_and_end_ms_select_a_window(client: TestClient, red_then_blue: Path) -> None:
    add(client, "red", "blue")
    assert ranked(classify(client, red_then_blue, end_ms=1900))[0][0] == "red"
    body = classify(client, red_then_blue, start_ms=2100).json()
    assert body["labels"][0]["name"] == "blue"
    assert min(body["coverage"]["timestamps_ms"]) >= 2000
    assert_problem(classify(client, red_then_blue, start_ms=60_000), 422, "invalid_parameter")


def test_num_frames(client: TestClient, red: Path) -> None:
    add(client, "red")
    body = classify(client, red, num_frames=9).json()
    assert body["coverage"]["frames_requested"] == body["coverage"]["frames_decoded"] == 9
    body = classify(client, red, num_frames=50).json()
    assert (body["coverage"]["frames_requested"], body["coverage"]["frames_decoded"]) == (50, 20)
    problem = assert_problem(classify(client, red, num_frames=65), 422, "invalid_parameter")
    assert problem["max_frames"] == 64
    answer = classify(client, red, aggregate_by="segments", segment_ms=100, num_frames=4)
    assert_problem(answer, 422, "invalid_parameter")


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"top_k": -1}, "/top_k"),
        ({"top_k": "5"}, "/top_k"),
        ({"topk": 5}, "/topk"),
        ({"min_score": 2}, "/min_score"),
        ({"num_frames": 0}, "/num_frames"),
        ({"aggregate_by": "hours"}, "/aggregate_by"),
        ({"frame_policy": "best"}, "/frame_policy"),
        ({"segment_ms": 5}, "/segment_ms"),
        ({"label_ids": []}, "/label_ids"),
        ({"candidate_labels": ["x"] * 1001}, "/candidate_labels"),
        ({"candidate_labels": ["x"], "label_ids": ["y"]}, ""),
        ({"candidate_labels": ["x"], "include_categories": ["y"]}, ""),
        ({"start_ms": 5, "end_ms": 5}, ""),
        ({"start_ms": -1}, "/start_ms"),
    ],
)
def test_invalid_params_are_named(client: TestClient, red: Path, params: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(classify(client, red, **params), 422, "invalid_parameter")
    assert pointer in [error["pointer"] for error in problem["errors"]]


def test_malformed_params_are_refused(client: TestClient, red: Path) -> None:
    files = {"file": red.read_bytes()}
    assert_problem(client.post("/classify", files=files, data={"params": "{"}), 400, "malformed")
    assert_problem(client.post("/classify", files=files, data={"params": "[]"}), 422, "invalid_parameter")
    assert_problem(client.post("/classify", files=files, data={"top_k": "5"}), 422, "invalid_parameter")


def test_params_are_accepted_before_and_after_the_file(client: TestClient, red: Path) -> None:
    add(client, "red", "green")
    for order in (("params", "file"), ("file", "params")):
        parts = {"params": (None, '{"top_k": 1}', "application/json"), "file": ("v", red.read_bytes())}
        answer = client.post("/v1/classify", files=[(name, parts[name]) for name in order])
        assert len(ranked(answer)) == 1


def test_top_rows_equals_full_sort() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        n = int(rng.integers(1, 40))
        scores = rng.integers(0, 6, n) / 5.0
        names = [f"n{rng.integers(1000):03}{i:02}" for i in range(n)]
        for top_k in (0, 1, 5, 100):
            wanted = sorted((i for i in range(n) if scores[i] >= 0.4), key=lambda i: (-scores[i], names[i]))
            assert top_rows(scores, names, top_k, 0.4) == wanted[: top_k or None]


def test_frame_policy_selects_the_decoded_frames(client: TestClient, tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "v.mp4", num_frames=40, gop=20, options={"x264-params": "scenecut=0"})
    times = {
        policy: classify(client, path, num_frames=2, frame_policy=policy).json()["coverage"]["timestamps_ms"]
        for policy in ("uniform", "keyframes", "uniform")
    }
    assert times == {"uniform": [1000, 3000], "keyframes": [0, 2000]}

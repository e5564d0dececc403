"""Videos that are kept, over HTTP: a real `vidlex serve`, and one with keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from support.live import live_service
from support.serving import assert_problem, classify, colour_video, serving
from vidlex.service.access.api_keys import new_key

ADMIN = new_key()[1]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {
        "red": colour_video(folder / "red.mp4", "red"),
        "mixed": colour_video(folder / "mixed.mp4", "red", "green", "blue"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with live_service(folder / "data") as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def kept(client: Any, video: Path, **params: Any) -> dict[str, Any]:
    answer = classify(client, video, keep=True, **params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_keeping_listing_reading_and_removing(client: httpx.Client, films: dict[str, Path], folder: Path) -> None:
    options = {"aggregate_by": "segments", "segment_ms": 1000}
    answer = kept(
        client,
        films["mixed"],
        **options,
        client_id="mine",
        metadata={"a": [1]},
        uri="s3://b/mixed.mp4",
        keep_seconds=60,
    )
    video_id = answer["video_id"]
    video = client.get(f"/videos/{video_id}").json()
    assert video["object"] == "video"
    assert (video["id"], video["client_id"], video["uri"]) == (video_id, "mine", "s3://b/mixed.mp4")
    assert video["metadata"] == {"a": [1]}
    assert video["facts"] == {key: value for key, value in answer["video"].items() if key != "sha256"}
    assert video["sha256"] == answer["video"]["sha256"]
    assert video["expires_at_ms"] - video["updated_at_ms"] == 60_000
    assert video["sampling"]["segment_ms"] == 1000
    assert video["encoding"]["decoder"] == answer["receipt"]["decoder"]
    assert video["encoding"]["fingerprint"] == answer["model"]["fingerprint"]
    assert video["encoding"]["frames_decoded"] == answer["coverage"]["frames_decoded"]
    assert video["generations"] == [{"fingerprint": answer["model"]["fingerprint"], "num_segments": 3}]
    assert video["segments"] == [{"start_ms": 1000 * i, "end_ms": 1000 * (i + 1)} for i in range(3)]
    assert list((folder / "data" / "videos").rglob("*.features"))

    features = client.get(f"/videos/{video_id}/features").json()
    assert (features["num_segments"], features["offset"], len(features["data"])) == (3, 0, 3)
    vectors = np.array([segment["vector"] for segment in features["data"]])
    np.testing.assert_allclose(vectors, np.eye(3), atol=0.02)  # red, green, blue
    assert (vectors == vectors.astype(np.float16)).all()
    second = client.get(f"/videos/{video_id}/features", params={"offset": 1, "limit": 1}).json()
    assert second["data"] == features["data"][1:2]

    plain = classify(client, films["mixed"], **options).json()
    assert plain["video_id"] is None
    assert kept(client, films["mixed"], **options)["video_id"] == video_id  # once
    other = kept(client, films["mixed"])["video_id"]  # another sampling
    listed = client.get("/videos").json()
    assert [found["id"] for found in listed["data"]] == [other, video_id]
    assert listed["data"][1] == {name: value for name, value in listed["data"][1].items() if name != "segments"}
    page = client.get("/videos", params={"limit": 1}).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, other, other)
    rest = client.get("/videos", params={"limit": 1, "after": other}).json()
    assert (rest["has_more"], [found["id"] for found in rest["data"]]) == (False, [video_id])
    for wanted, expected in (
        ({"client_id": "mine"}, [video_id]),
        ({"client_id": "other"}, []),
        ({"sha256": video["sha256"]}, [other, video_id]),
        ({"created_from_ms": video["created_at_ms"] + 3_600_000}, []),
        ({"missing_fingerprint": "another-model"}, [other, video_id]),
        ({"missing_fingerprint": answer["model"]["fingerprint"]}, []),
    ):
        found = client.get("/videos", params=wanted)
        assert [video["id"] for video in found.json()["data"]] == expected, (wanted, found.text)

    assert client.delete(f"/videos/{video_id}").status_code == 204
    for path in (f"/videos/{video_id}", f"/videos/{video_id}/features", "/videos/vid_nonsense"):
        assert_problem(client.get(path), 404, "not_found")
    assert_problem(client.delete(f"/videos/{video_id}"), 404, "not_found")
    assert client.delete(f"/videos/{other}").status_code == 204
    assert client.get("/videos").json()["data"] == []


def test_scores_from_kept_features_are_those_of_the_classification(
    client: httpx.Client, films: dict[str, Path]
) -> None:
    """To float16: the product of the kept vectors with a label's, which is a colour's unit vector in this model."""
    answer = kept(client, films["mixed"], aggregate_by="segments", segment_ms=500, candidate_labels=["red", "green"])
    features = client.get(f"/videos/{answer['video_id']}/features").json()
    vectors = np.array([segment["vector"] for segment in features["data"]])
    for index, name in enumerate(("red", "green")):
        (label,) = (found for found in answer["labels"] if found["name"] == name)
        assert len(label["segments"]) == len(vectors) == 6
        assert abs(vectors[:, index].max() - label["similarity"]) < 2**-11
    client.delete(f"/videos/{answer['video_id']}")


def test_a_job_keeps_too(client: httpx.Client, films: dict[str, Path]) -> None:
    params = {"keep": True, "client_id": "by job", "metadata": {"n": 1}, "candidate_labels": ["red"]}
    upload = {"file": ("v.mp4", films["red"].read_bytes(), "video/mp4")}
    submitted = client.post(
        "/jobs", files=upload, data={"params": json.dumps({"params": params, "metadata": {"j": 1}})}
    )
    assert submitted.status_code == 202, submitted.text
    path = f"/jobs/{submitted.json()['id']}"
    job = client.get(path, headers={"Prefer": "wait=30"}).json()
    assert job["state"] == "succeeded", job
    (video,) = client.get("/videos", params={"client_id": "by job"}).json()["data"]
    assert client.get(f"{path}/result").json()["video_id"] == video["id"]
    assert video["metadata"] == {"n": 1}
    assert client.delete(f"/videos/{video['id']}").status_code == 204


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"client_id": "x"}, "/"),
        ({"metadata": {"a": 1}}, "/"),
        ({"keep_seconds": 5}, "/"),
        ({"keep": True, "keep_seconds": 0}, "/keep_seconds"),
        ({"keep": True, "client_id": ""}, "/client_id"),
        ({"keep": True, "client_id": "x" * 257}, "/client_id"),
        ({"keep": True, "uri": "x" * 5000}, "/uri"),
        ({"keep": 1}, "/keep"),
        ({"keep": True, "metadata": []}, "/metadata"),
    ],
)
def test_bad_options_are_named(
    client: httpx.Client, films: dict[str, Path], params: dict[str, Any], pointer: str
) -> None:
    body = assert_problem(classify(client, films["red"], **params), 422, "invalid_parameter")
    assert (body["errors"][0]["pointer"] or "/") == pointer


@pytest.mark.parametrize("params", [{"client_id": "a\nb"}, {"uri": "s3://\u202e"}, {"metadata": {"x": "y" * 20_000}}])
def test_bad_texts_are_refused(client: httpx.Client, films: dict[str, Path], params: dict[str, Any]) -> None:
    assert_problem(classify(client, films["red"], keep=True, **params), 422, "invalid_parameter")
    assert client.get("/videos").json()["data"] == []


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 10_000}, {"sha256": "x"}, {"created_from_ms": -1}, {"missing_fingerprint": "a b"}],
)
def test_bad_queries_are_refused(client: httpx.Client, query: dict[str, Any]) -> None:
    assert_problem(client.get("/videos", params=query), 422, "invalid_parameter")


def test_features_of_another_model_are_named(client: httpx.Client, films: dict[str, Path]) -> None:
    video_id = kept(client, films["red"])["video_id"]
    answer = client.get(f"/videos/{video_id}/features", params={"fingerprint": "another"})
    assert_problem(answer, 409, "features_of_other_model")
    client.delete(f"/videos/{video_id}")


def test_a_damaged_file_is_named(client: httpx.Client, films: dict[str, Path], folder: Path) -> None:
    video_id = kept(client, films["red"])["video_id"]
    (path,) = (folder / "data" / "videos").rglob("*.features")
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    assert_problem(client.get(f"/videos/{video_id}/features"), 503, "kept_video_damaged")
    assert client.get(f"/videos/{video_id}").json()["segments"] is None
    assert kept(client, films["red"])["video_id"] == video_id  # whole again
    assert len(client.get(f"/videos/{video_id}").json()["segments"]) == 1
    client.delete(f"/videos/{video_id}")


def test_who_may_keep_and_see_what(films: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{ADMIN} scope=admin\n")
    with serving(tmp_path / "data", api_keys_file=tmp_path / "keys", max_kept_bytes=2500) as service:
        keys = {
            (scope, namespace): _key(service, scope, namespace)
            for scope, namespace in (("read", "one"), ("write", "one"), ("write", "two"))
        }
        upload: Any = {"file": ("v.mp4", films["red"].read_bytes(), "video/mp4")}
        body: Any = {"data": {"params": json.dumps({"keep": True, "client_id": "x"})}, "files": upload}

        refused = service.post("/classify", headers=keys["read", "one"], **body)
        assert "scope write" in assert_problem(refused, 403, "forbidden")["detail"]
        as_job = service.post("/classify", headers=keys["read", "one"] | {"Prefer": "respond-async"}, **body)
        assert_problem(as_job, 403, "forbidden")
        assert service.post("/classify", headers=keys["read", "one"], files=upload).status_code == 200

        mine = service.post("/classify", headers=keys["write", "one"], **body).json()["video_id"]
        theirs = service.post("/classify", headers=keys["write", "two"], **body).json()["video_id"]
        assert mine != theirs
        for owner, own, foreign in (("one", mine, theirs), ("two", theirs, mine)):
            headers = keys["write", owner]
            assert [v["id"] for v in service.get("/videos", headers=headers).json()["data"]] == [own]
            for method in ("GET", "DELETE"):
                assert_problem(service.request(method, f"/videos/{foreign}", headers=headers), 404, "not_found")
            assert_problem(service.get(f"/videos/{foreign}/features", headers=headers), 404, "not_found")
        assert service.get(f"/videos/{mine}", headers=keys["read", "one"]).status_code == 200
        assert_problem(service.delete(f"/videos/{mine}", headers=keys["read", "one"]), 403, "forbidden")
        assert_problem(service.get("/videos"), 401, "unauthorized")

        many = {"aggregate_by": "timestamps", "num_frames": 64, "keep": True}
        full: Any = {"data": {"params": json.dumps(many)}, "files": {"file": ("v.mp4", films["mixed"].read_bytes())}}
        assert_problem(service.post("/classify", headers=keys["write", "one"], **full), 403, "byte_quota_exceeded")
        assert service.delete(f"/videos/{mine}", headers=keys["write", "one"]).status_code == 204


def _key(service: TestClient, scope: str, namespace: str) -> dict[str, str]:
    body = {"name": scope, "scope": scope, "namespace": namespace}
    answer = service.post("/keys", json=body, headers={"Authorization": f"Bearer {ADMIN}"})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['key']}"}

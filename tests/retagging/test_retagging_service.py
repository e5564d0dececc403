"""New labels and a new model for kept videos, end to end: a real service with its jobs, webhooks and URLs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_service
from support.processes import until
from support.serving import assert_problem, classify, colour_video
from support.webhook_receiver import Receiver, receiving

NAMES = ("red", "green", "blue")


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    files: HeldFiles
    hooks: Receiver
    folder: Path

    def run(self, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        """The result of a job that succeeds."""
        answer = self.client.post(path, json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        job = self.client.get(f"/jobs/{answer.json()['id']}", headers={"Prefer": "wait=60", **headers}).json()
        assert job["state"] == "succeeded", job
        result: dict[str, Any] = self.client.get(f"/jobs/{job['id']}/result", headers=headers).json()
        return result | {"job": job}

    def add(self, name: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/labels", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        label: dict[str, Any] = answer.json()
        return label

    def keep(self, name: str, namespace: str = "default", **params: Any) -> str:
        headers = {"X-Vidlex-Namespace": namespace}
        data = {"params": json.dumps({"keep": True, **params})}
        content = (self.folder / f"{name}.mp4").read_bytes()
        answer = self.client.post("/classify", files={"file": content}, data=data, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["video_id"])

    def events(self, job_id: str) -> list[dict[str, Any]]:
        bodies = [json.loads(received.body) for received in self.hooks.received]
        return [body for body in bodies if body["data"].get("job_id") == job_id]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("retagging")
    for name in NAMES:
        colour_video(folder / f"{name}.mp4", name)
    colour_video(folder / "long.mp4", "red", "green", "blue", "red", frames_each=80)
    environment = {
        **ENVIRONMENT,
        "VIDLEX_WEBHOOK_HOSTS": '["127.0.0.1"]',
        "VIDLEX_DECODE_WORKERS": "1",
        "VIDLEX_ALLOWED_MODELS": '["dummy:2"]',
    }
    with (
        held_files(folder) as files,
        receiving() as hooks,
        live_service(folder / "data", **environment) as url,
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
    ):
        yield Service(client, files, hooks, folder)


@pytest.fixture(scope="module")
def kept(service: Service) -> dict[str, str]:
    """Ids by name. Only one video has a URI that can be read, one has a URI with other content."""
    uris = {"red": f"{service.files.url}/red.mp4", "green": f"{service.files.url}/red.mp4", "blue": None}
    ids = {name: service.keep(name, client_id=name, metadata={"n": i}, uri=uris[name]) for i, name in enumerate(NAMES)}
    ids["long"] = service.keep("long", uri=f"{service.files.url}/long.mp4")
    return ids


def test_backfill(service: Service, kept: dict[str, str]) -> None:
    red = service.add("red")
    assert_problem(service.client.get(f"/labels/{red['id']}/videos"), 404, "not_found")
    result = service.run("/videos:backfill", {"label_ids": [red["id"]]})
    assert result["job"]["kind"] == "backfill"
    assert (result["num_videos"], result["num_missing"], result["model"]) == (4, 0, "dummy-1")
    (entry,) = result["labels"]
    assert sorted(entry["gained_ids"]) == sorted([kept["red"], kept["long"]]) and entry["num_lost"] == 0
    page = service.client.get(f"/labels/{red['id']}/videos").json()
    matched = {video["video_id"]: video for video in page["data"]}
    assert list(matched) == sorted(matched) == sorted([kept["red"], kept["long"]])
    for name in ("red", "long"):
        answer = classify(service.client, service.folder / f"{name}.mp4", label_ids=[red["id"]]).json()
        (label,) = answer["labels"]
        best = max(label["stretches"], key=lambda stretch: stretch["score"])
        found = matched[kept[name]]
        assert found["score"] == pytest.approx(label["score"], abs=2e-3)  # the features are kept as float16
        assert (found["start_ms"], found["end_ms"]) == (best["start_ms"], best["end_ms"])
        assert found["change"] == "gained"
    # The same again changes nothing; a higher threshold loses one, and its return is a gain.
    service.client.patch(f"/labels/{red['id']}", json={"threshold": 1.0})
    lost = service.run("/videos:backfill", {"since_revision": 0})
    assert (lost["num_gained"], lost["num_lost"], lost["labels"][0]["num_matched"]) == (0, 2, 0)
    page = service.client.get(f"/labels/{red['id']}/videos", params={"change": "lost", "limit": 1}).json()
    (first,) = page["data"]
    assert first == {"video_id": min(matched), "score": None, "start_ms": None, "end_ms": None, "change": "lost"}
    assert page["has_more"]
    page = service.client.get(
        f"/labels/{red['id']}/videos", params={"change": "lost", "limit": 1, "after": page["last_id"]}
    ).json()
    assert [video["video_id"] for video in page["data"]] == [max(matched)] and not page["has_more"]
    service.client.patch(f"/labels/{red['id']}", json={"threshold": 0.5})
    assert service.run("/videos:backfill", {"label_ids": [red["id"]]})["num_gained"] == 2
    assert service.run("/videos:backfill", {"label_ids": [red["id"]]})["num_gained"] == 0


def test_webhooks_of_changes(service: Service, kept: dict[str, str]) -> None:
    green = service.add("green")
    hook = {"url": f"{service.hooks.url}/changes", "events": ["video.labels_changed"]}
    body = {"label_ids": [green["id"]], "webhook": hook}
    assert_problem(service.client.post("/videos:backfill", json=body), 409, "webhook_secret_missing")
    assert service.client.post("/webhooks/secrets").status_code == 201
    key = {"Idempotency-Key": "once"}
    result = service.run("/videos:backfill", body, **key)
    job_id = result["job"]["id"]
    until(lambda: bool(service.events(job_id)))
    (event,) = service.events(job_id)
    assert event["type"] == "video.labels_changed"
    assert event["data"]["label_id"] == green["id"] and event["data"]["num_gained"] == 2
    assert sorted(event["data"]["gained_ids"]) == sorted([kept["green"], kept["long"]])
    again = service.client.post("/videos:backfill", json=body, headers=key)
    assert again.status_code == 200 and again.json()["id"] == job_id
    assert again.headers["Idempotency-Replayed"] == "true"
    other = service.client.post("/videos:backfill", json={"since_revision": 1}, headers=key)
    assert_problem(other, 422, "idempotency_key_reused")
    bad = service.client.post("/videos:backfill", json=body | {"webhook": {"url": "https://example.com/"}})
    assert_problem(bad, 422, "url_refused")


def test_search(service: Service, kept: dict[str, str]) -> None:
    def found(**body: Any) -> dict[str, Any]:
        answer = service.client.post("/videos:search", json=body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    result = found(text="blue", segments=True)
    assert [hit["video_id"] for hit in result["data"][:2]] == [kept["blue"], kept["long"]]
    assert result["scores"] == "probability" and result["num_videos"] == 4
    (label,) = classify(service.client, service.folder / "blue.mp4", candidate_labels=["blue"]).json()["labels"]
    hit = result["data"][0]
    assert hit["score"] == pytest.approx(label["score"], abs=2e-3)
    assert (hit["client_id"], hit["metadata"], hit["uri"]) == ("blue", {"n": 2}, None)
    assert result["data"][1]["uri"] == f"{service.files.url}/long.mp4"
    long = result["data"][1]
    best = max(long["segments"], key=lambda segment: segment["score"])
    assert 15_000 <= (best["start_ms"] + best["end_ms"]) / 2 <= 25_000  # where it is blue
    like = found(video_id=kept["red"], limit=2)
    assert like["scores"] == "similarity" and kept["red"] not in [hit["video_id"] for hit in like["data"]]
    assert found(vector=[0, 1, 0], limit=1, min_score=0.99)["data"][0]["video_id"] == kept["green"]
    assert found(text="red", filters={"metadata": {"n": 1}})["data"][0]["video_id"] == kept["green"]
    assert found(text="red", min_score=0.99999)["data"] == []
    for body in ({}, {"text": "a", "label_id": "b"}, {"text": "a", "start_ms": 1}, {"vector": [1.0]}):
        assert_problem(service.client.post("/videos:search", json=body), 422, "invalid_parameter")
    assert_problem(service.client.post("/videos:search", json={"text": "red\u202e"}), 422, "label_text_invalid")
    missing = {"video_id": "vid_000000000000000000000000"}
    assert_problem(service.client.post("/videos:search", json=missing), 404, "not_found")


def test_another_namespace_sees_nothing(service: Service, kept: dict[str, str]) -> None:
    headers = {"X-Vidlex-Namespace": "other"}
    answer = service.client.post("/videos:search", json={"text": "red"}, headers=headers)
    assert answer.json()["data"] == [] and answer.json()["num_videos"] == 0
    body: dict[str, Any] = {"video_id": kept["red"]}
    assert_problem(service.client.post("/videos:search", json=body, headers=headers), 404, "not_found")
    body = {"video_ids": [kept["red"]]}
    assert_problem(service.client.post("/videos:reencode", json=body, headers=headers), 422, "invalid_parameter")
    label = service.client.get("/labels").json()["data"][0]
    assert_problem(service.client.get(f"/labels/{label['id']}/videos", headers=headers), 404, "not_found")
    body = {"label_ids": [label["id"]]}
    assert_problem(service.client.post("/videos:backfill", json=body, headers=headers), 422, "invalid_parameter")
    assert service.run("/videos:backfill", {"since_revision": 0}, **headers)["labels"] == []


def test_a_removed_video_is_gone_at_once(service: Service, kept: dict[str, str]) -> None:
    extra = service.keep("red", num_frames=2)
    red = next(label for label in service.client.get("/labels").json()["data"] if label["name"] == "red")
    assert service.run("/videos:backfill", {"label_ids": [red["id"]]})["labels"][0]["gained_ids"] == [extra]
    assert service.client.delete(f"/videos/{extra}").status_code == 204
    hits = service.client.post("/videos:search", json={"text": "red"}).json()["data"]
    assert extra not in [hit["video_id"] for hit in hits]
    page = service.client.get(f"/labels/{red['id']}/videos").json()
    assert extra not in [video["video_id"] for video in page["data"]]
    result = service.run("/videos:backfill", {"label_ids": [red["id"]]})
    assert (result["num_gained"], result["num_lost"]) == (0, 0)  # a removed video is not lost


def test_a_change_of_model(service: Service, kept: dict[str, str]) -> None:
    """The last test: ``dummy:2`` takes blue videos for red ones."""
    client = service.client
    assert client.post("/models:prepare", json={"model": "dummy:2"}).status_code == 202
    until(lambda: (state := client.get("/models").json()["prepared"]) and state["complete"])
    assert client.post("/models:activate").status_code == 200
    until(lambda: client.get("/models").json()["served"]["model"] == "dummy:2")
    red = next(label for label in client.get("/labels").json()["data"] if label["name"] == "red")
    for path, body in (
        ("/videos:search", {"text": "red"}),
        ("/videos:backfill", {"label_ids": [red["id"]]}),
    ):
        assert_problem(client.post(path, json=body), 409, "features_of_other_model")
    state = client.get("/videos:generations").json()
    assert (state["num_videos"], state["num_missing"]) == (4, 4)
    assert sorted(state["sample_missing_ids"]) == sorted(kept.values())
    assert state["data"] == [{"model": "dummy-1", "num_videos": 4, "served": False}]
    result = service.run("/videos:reencode", {"video_ids": [kept["long"]]})
    assert (result["num_reencoded"], result["model"]) == (1, "dummy-2")
    found = client.post("/videos:search", json={"text": "red"}).json()
    assert [hit["video_id"] for hit in found["data"]] == [kept["long"]]
    assert (found["num_videos"], found["num_missing"]) == (1, 3)
    result = service.run("/videos:reencode", {})
    assert (result["num_reencoded"], result["num_failed"], result["num_without_uri"]) == (1, 1, 1)
    (failure,) = result["failures"]
    assert (failure["video_id"], failure["code"]) == (kept["green"], "fetch_failed")
    assert result["ids_without_uri"] == [kept["blue"]]
    before = client.get(f"/videos/{kept['red']}").json()
    assert {generation["fingerprint"] for generation in before["generations"]} == {"dummy-1", "dummy-2"}
    assert (before["client_id"], before["metadata"], before["uri"]) == ("red", {"n": 0}, f"{service.files.url}/red.mp4")
    state = client.get("/videos:generations").json()
    assert state["num_missing"] == 2 and state["data"][0] == {"model": "dummy-2", "num_videos": 2, "served": True}
    result = service.run("/videos:backfill", {"label_ids": [red["id"]]})
    (entry,) = result["labels"]
    assert (result["num_videos"], result["num_missing"], result["model"]) == (2, 2, "dummy-2")
    assert (entry["num_matched"], entry["lost_ids"]) == (1, [kept["red"]])  # long has a blue part
    page = client.get(f"/labels/{red['id']}/videos").json()
    assert page["model"] == "dummy-2" and [video["video_id"] for video in page["data"]] == [kept["long"]]

"""/labels over HTTP: parents, prefixes, conditional requests, idempotency keys and quotas."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, clear, serving
from vidlex.model.dummy import DummyClassifier
from vidlex.service.labels.embedded.server_files import ServerFiles
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.idempotency import IdempotencyStore


class Slow(DummyClassifier):
    """Blocks on the name "slow", and fails on "bomb", until ``leave`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        if "slow" in names:
            self.entered.set()
            assert self.leave.wait(PATIENCE_SECONDS)
        if "bomb" in names and not self.leave.is_set():
            raise RuntimeError("not now")
        return super().encode_labels(names)


CLASSIFIER = Slow()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TestClient]:
    with serving(folder, classifier=CLASSIFIER, max_labels=12) as client:
        yield client


@pytest.fixture
def client(shared: TestClient) -> TestClient:
    clear(shared)
    CLASSIFIER.entered.clear()
    CLASSIFIER.leave.clear()
    return shared


def post(client: TestClient, key: str, body: Any, query: str = "") -> Any:
    return client.post(f"/labels{query}", json=body, headers={"Idempotency-Key": key})


def test_parents_are_returned_with_id_and_name(client: TestClient) -> None:
    (animal,) = add(client, "Animal")
    (dog,) = add(client, "dog", parents=["animal"])
    assert dog["parents"] == [{"id": animal["id"], "name": "Animal"}]
    assert [x["name"] for x in client.get("/labels", params={"parent": "ANIMAL"}).json()["data"]] == ["dog"]
    assert_problem(client.get("/labels", params={"parent": "plant"}), 404, "not_found")
    assert_problem(client.post("/labels", json={"name": "x", "parents": ["plant"]}), 422, "parent_not_found")
    assert_problem(client.patch(f"/labels/{animal['id']}", json={"parents": ["dog"]}), 422, "parent_cycle")
    client.patch(f"/labels/{animal['id']}", json={"name": "beast"})
    renamed = client.get(f"/labels/{dog['id']}", headers={"If-None-Match": f'"{dog["etag"]}"'})
    assert renamed.status_code == 200 and renamed.json()["parents"][0]["name"] == "beast"
    assert client.delete(f"/labels/{animal['id']}").status_code == 204
    assert client.get(f"/labels/{dog['id']}").json()["parents"] == []


def test_prefix_filters_and_pages(client: TestClient) -> None:
    add(client, "red car", "blue", "Red")
    page = client.get("/labels", params={"prefix": "RE", "limit": 1}).json()
    assert ([x["name"] for x in page["data"]], page["has_more"]) == (["Red"], True)
    rest = client.get("/labels", params={"prefix": "RE", "after": page["last_id"]}).json()
    assert ([x["name"] for x in rest["data"]], rest["has_more"]) == (["red car"], False)


def test_conditional_requests(client: TestClient) -> None:
    answer = client.post("/labels", json={"name": "red"})
    tag, path = answer.headers["etag"], answer.headers["location"]
    assert tag == f'"{answer.json()["etag"]}"' == client.get(path).headers["etag"]
    fresh = client.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
    assert (fresh.status_code, fresh.content, fresh.headers["etag"]) == (304, b"", tag)
    changed = client.patch(path, json={"threshold": 0.5}, headers={"If-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag
    for old in (tag, f"W/{changed.headers['etag']}", '"x"'):
        assert_problem(client.patch(path, json={"name": "r"}, headers={"If-Match": old}), 412, "precondition_failed")
        assert_problem(client.delete(path, headers={"If-Match": old}), 412, "precondition_failed")
    assert_problem(client.delete(path, headers={"If-Match": "unquoted"}), 400, "malformed")
    assert client.get(path, headers={"If-None-Match": tag}).json() == changed.json()
    assert client.patch(path, json={"threshold": 0.6}, headers={"If-Match": "*"}).status_code == 200
    newest = client.get(path).headers["etag"]
    assert client.delete(path, headers={"If-Match": f"{tag}, {newest}"}).status_code == 204


def test_idempotency_key_replays_the_response(client: TestClient) -> None:
    first = post(client, "key-1", {"name": "red", "threshold": 0.5})
    assert first.status_code == 201 and "idempotency-replayed" not in first.headers
    client.patch(first.headers["location"], json={"threshold": 0.9})
    again = post(client, "key-1", {"threshold": 0.5, "name": "red"})
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.headers["location"], again.headers["etag"]) == (first.headers["location"], first.headers["etag"])
    assert_problem(post(client, "key-1", {"name": "red"}), 422, "idempotency_key_reused")
    assert_problem(
        post(client, "key-1", {"name": "red", "threshold": 0.5}, "?if_exists=return"), 422, "idempotency_key_reused"
    )
    elsewhere = client.post(
        "/labels", json={"name": "blue"}, headers={"Idempotency-Key": "key-1", "X-Vidlex-Namespace": "other"}
    )
    assert elsewhere.status_code == 201
    for bad in ("", "x" * 256):
        assert_problem(post(client, bad, {"name": "z"}), 422, "invalid_parameter")


def test_idempotency_key_of_a_failed_request_can_be_reused(client: TestClient) -> None:
    add(client, "red")
    assert_problem(post(client, "key-2", {"name": "RED"}), 409, "label_exists")
    assert post(client, "key-2", {"name": "green"}).status_code == 201


def test_concurrent_requests_with_one_idempotency_key_conflict(client: TestClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, client, "key-3", {"name": "slow"})
        assert CLASSIFIER.entered.wait(PATIENCE_SECONDS)
        problem = assert_problem(post(client, "key-3", {"name": "slow"}), 409, "idempotency_in_flight")
        assert problem["retry_after_ms"] == 1000
        CLASSIFIER.leave.set()
        assert running.result().status_code == 201
    assert post(client, "key-3", {"name": "slow"}).headers["idempotency-replayed"] == "true"


def test_partly_failed_batch_is_resumed(client: TestClient) -> None:
    body = {"labels": [{"name": "red"}, {"name": ""}, {"name": "bomb"}]}
    first = post(client, "key-4", body)
    assert [item["status"] for item in first.json()["data"]] == [201, 422, 503]
    CLASSIFIER.leave.set()
    second = post(client, "key-4", body)
    assert [item["status"] for item in second.json()["data"]] == [201, 422, 201]
    assert second.json()["data"][0] == first.json()["data"][0]
    third = post(client, "key-4", body)
    assert third.content == second.content and third.headers["idempotency-replayed"] == "true"


def test_retry_after_a_lost_response_creates_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The label was stored, but not the response."""
    with monkeypatch.context() as patch:
        patch.setattr(IdempotencyStore, "save_answer", lambda *_: None)
        first = post(client, "key-5", {"name": "red"})
    assert first.status_code == 201
    again = post(client, "key-5", {"name": "red"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert "idempotency-replayed" not in again.headers
    assert len(client.get("/labels").json()["data"]) == 1


def test_idempotent_responses_survive_a_restart(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        first = post(one, "key-6", {"labels": [{"name": "red"}]})
    with serving(tmp_path) as two:
        again = post(two, "key-6", {"labels": [{"name": "red"}]})
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")


def test_label_quota(client: TestClient) -> None:
    answer = client.post("/labels", json={"labels": [{"name": f"label {i}"} for i in range(13)]})
    assert [item["status"] for item in answer.json()["data"]] == [201] * 12 + [403]
    assert_problem(client.post("/labels", json={"name": "more"}), 403, "quota_exceeded")
    assert json.loads(answer.content)["data"][12]["error"]["code"] == "quota_exceeded"


def kept_bytes(folder: Path) -> int:
    """Of all requests with an Idempotency-Key in the store of a running service."""
    client = connect_socket(str(ServerFiles(folder).last_socket()))
    return sum(int(client.memory_usage(key) or 0) for key in client.scan_iter(match="*:request:*"))


def test_a_kept_answer_does_not_grow_with_what_the_labels_contain(tmp_path: Path) -> None:
    """A request of 20 KB about labels with 16 KB of metadata each kept 16 MB for a day."""
    with serving(tmp_path) as client:
        text = "x" * 16_000
        names = [f"label {i}" for i in range(200)]
        for start in range(0, 200, 100):
            body = {"labels": [{"name": name, "metadata": {"text": text}} for name in names[start : start + 100]]}
            assert post(client, f"fill {start}", body).status_code == 200
        assert kept_bytes(tmp_path) < 200 * 200
        asked = {"labels": [{"name": name} for name in [*names, ""]]}
        first = post(client, "all", asked, "?if_exists=return")
        assert len(first.content) > 200 * len(text)
        assert [item["status"] for item in first.json()["data"]] == [200] * 200 + [422]
        assert kept_bytes(tmp_path) < 2 * 200 * 200
        again = post(client, "all", asked, "?if_exists=return")
        assert again.content == first.content and again.headers["idempotency-replayed"] == "true"


def test_a_replay_tells_what_was_created_even_if_it_is_gone(client: TestClient) -> None:
    add(client, "animal")
    body = {"name": "Red  dog", "aliases": ["R"], "parents": ["animal"], "metadata": {"a": [1.5, None]}}
    first = post(client, "key-7", body)
    assert client.delete(first.headers["location"]).status_code == 204
    again = post(client, "key-7", body)
    assert (again.status_code, again.headers["location"]) == (201, first.headers["location"])
    assert again.json() | {"warnings": []} == first.json() | {"warnings": []}


def test_a_replay_of_a_label_that_existed_shows_it_as_it_is(client: TestClient) -> None:
    (red,) = add(client, "red")
    first = post(client, "key-8", {"name": "Red"}, "?if_exists=return")
    client.patch(f"/labels/{red['id']}", json={"threshold": 0.9})
    again = post(client, "key-8", {"name": "Red"}, "?if_exists=return")
    assert (first.status_code, again.status_code, again.json()["id"]) == (200, 200, red["id"])
    assert (first.json()["threshold"], again.json()["threshold"]) == (None, 0.9)
    assert client.delete(f"/labels/{red['id']}").status_code == 204
    gone = assert_problem(post(client, "key-8", {"name": "Red"}, "?if_exists=return"), 404, "not_found")
    assert "removed since" in gone["detail"]
    batch = {"labels": [{"name": "blue"}]}
    (blue,) = add(client, "blue")
    assert post(client, "key-9", batch, "?if_exists=return").json()["data"][0]["label"]["id"] == blue["id"]
    client.delete(f"/labels/{blue['id']}")
    assert post(client, "key-9", batch, "?if_exists=return").json()["data"][0]["error"]["code"] == "not_found"

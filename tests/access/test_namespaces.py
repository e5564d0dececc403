"""Namespaces: labels of different namespaces are isolated in responses and in the store."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import Headers

from support.serving import add, assert_problem, classify, colour_video, serving, wait_until
from support.stores import running_store
from vidlex.service.errors import Forbidden, Overloaded
from vidlex.service.http.context import namespace_of
from vidlex.service.http.openapi.headers import NAMESPACE_HEADER
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.store.redis_keys import parse_key


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        yield client


class NamespaceClient:
    """A client that sends one namespace's header."""

    def __init__(self, client: TestClient, namespace: str) -> None:
        self._client = client
        self._headers = {NAMESPACE_HEADER: namespace}

    def __getattr__(self, method: str) -> Any:
        def call(path: str, **options: Any) -> Any:
            return getattr(self._client, method)(path, headers=self._headers, **options)

        return call

    def names(self) -> list[str]:
        return [label["name"] for label in self.get("/labels").json()["data"]]


def test_namespaces_are_isolated(client: TestClient, red: Path) -> None:
    one, two = NamespaceClient(client, "one"), NamespaceClient(client, "two")
    (mine,) = add(one, "Red", categories=["warm"], threshold=0.25)
    (other,) = add(two, "red", categories=["cold"])
    add(two, "blue")
    assert (one.names(), two.names(), NamespaceClient(client, "default").names()) == (["Red"], ["red", "blue"], [])
    for method, options in (("get", {}), ("patch", {"json": {"threshold": 1.0}}), ("delete", {})):
        assert_problem(getattr(two, method)(f"/labels/{mine['id']}", **options), 404, "not_found")
    assert one.get(f"/labels/{mine['id']}").json() == mine
    assert one.get("/labels", params={"category": "cold"}).json()["data"] == []

    answer = classify(one, red).json()
    assert [(x["id"], x["threshold"]) for x in answer["labels"]] == [(mine["id"], 0.25)]
    assert answer["vocabulary_revision"] == 1
    assert classify(two, red).json()["vocabulary_revision"] == 2
    assert_problem(classify(two, red, label_ids=[mine["id"]]), 422, "invalid_parameter")
    assert classify(two, red, include_categories=["warm"]).json()["labels"] == []
    (ad_hoc,) = classify(two, red, candidate_labels=["Red"]).json()["labels"]
    assert (ad_hoc["id"], ad_hoc["threshold"]) == (None, 0.5)  # not the other namespace's threshold

    assert two.delete(f"/labels/{other['id']}").status_code == 204
    assert (one.names(), two.names()) == (["Red"], ["blue"])
    assert classify(one, red).json()["vocabulary_revision"] == 1


def test_invalid_namespace_is_refused(client: TestClient, red: Path) -> None:
    for bad in ("No", "a b", "-a", "a" * 65, "{a}", "../a"):
        assert_problem(NamespaceClient(client, bad).get("/labels"), 422, "invalid_parameter")
        assert_problem(classify(NamespaceClient(client, bad), red), 422, "invalid_parameter")


def test_repeated_namespace_is_refused(client: TestClient) -> None:
    answer = client.get("/labels", headers=[(NAMESPACE_HEADER, "one"), (NAMESPACE_HEADER, "two")])
    assert_problem(answer, 422, "invalid_parameter")


def test_namespace_of_key_overrides_settings_and_must_match_header() -> None:
    def resolve(header: str | None, bound: str | None) -> str:
        request: Any = SimpleNamespace(
            headers=Headers({NAMESPACE_HEADER: header} if header else {}),
            state=SimpleNamespace(principal=SimpleNamespace(namespace=bound)),
            app=None,
        )
        return namespace_of(request)

    assert resolve(None, "one") == resolve("one", "one") == "one"
    assert resolve("two", None) == "two"
    with pytest.raises(Forbidden):
        resolve("two", "one")


def test_reading_a_namespace_writes_nothing_to_the_store(tmp_path: Path, red: Path) -> None:
    with running_store(tmp_path / "store") as store:
        path = store.connection_pool.connection_kwargs["path"]
        with serving(tmp_path / "data", redis_url=f"unix://{path}") as client:
            add(client, "red")
            for i in range(5):
                assert NamespaceClient(client, f"read-{i}").names() == []
                answer = classify(NamespaceClient(client, f"read-{i}"), red).json()
                assert [w["code"] for w in answer["warnings"]] == ["vocabulary_empty"]
            parsed = [parse_key(key) for key in store.scan_iter()]
            assert {key.namespace for key in parsed if key} == {"default"}


def test_least_recently_used_namespace_is_closed_and_reopened(tmp_path: Path, red: Path) -> None:
    with serving(tmp_path, max_namespaces=3) as client:
        runtime = client.app.state.context.readiness.__self__  # type: ignore[attr-defined]
        model = runtime.context.parts.models.served
        add(client, "green")
        for name in ("one", "two", "three"):
            add(NamespaceClient(client, name), "red")
        assert {v.namespace for v in model.open_vocabularies()} == {"default", "two", "three"}
        assert [x["name"] for x in classify(NamespaceClient(client, "one"), red).json()["labels"]] == ["red"]
        assert {v.namespace for v in model.open_vocabularies()} == {"default", "three", "one"}
        acquired = [model.acquire("one"), model.acquire("three")]  # vocabularies in use are not closed
        with pytest.raises(Overloaded):
            model.acquire("four")
        assert_problem(NamespaceClient(client, "four").get("/labels"), 429, "overloaded")
        for vocabulary in acquired:
            vocabulary.release()
        assert NamespaceClient(client, "four").names() == []
        assert model.num_users == 0
        del vocabulary, acquired
        gc.collect()
        open_now = {v.namespace for v in model.open_vocabularies()}
        assert set(runtime._store_connection._stores) == open_now, "stores of closed namespaces stay in memory"
        assert client.get("/readyz").json()["checks"]["index"]["ok"]


def test_store_outage_is_reported_in_every_namespace_and_ends(tmp_path: Path, short_folder: Path, red: Path) -> None:
    store = EmbeddedStore(short_folder)
    path = store.start()
    try:
        with serving(tmp_path, redis_url=f"unix://{path}") as client:
            users = [NamespaceClient(client, "one"), NamespaceClient(client, "two")]
            for user in users:
                add(user, "red")
            store.stop()
            wait_until(lambda: client.get("/readyz").status_code == 503, "the outage is not detected")
            for user in users:
                answer = classify(user, red).json()
                assert [x["name"] for x in answer["labels"]] == ["red"]
                assert [w["code"] for w in answer["warnings"]] == ["store_unavailable"]
                assert_problem(user.post("/labels", json={"name": "blue"}), 503, "store_unavailable")
            assert_problem(classify(NamespaceClient(client, "never-opened"), red), 503, "store_unavailable")
            store = EmbeddedStore(short_folder)
            assert store.start() == path
            wait_until(lambda: client.get("/readyz").status_code == 200, "the recovery is not detected")
            for user in users:
                add(user, "blue")
                answer = classify(user, red).json()
                assert len(answer["labels"]) == 2 and answer["warnings"] == []
    finally:
        store.stop()


def test_deadline_includes_loading_the_namespace(
    client: TestClient, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = IndexSync.load

    def slow(sync: IndexSync) -> None:
        threading.Event().wait(1.0)
        load(sync)

    monkeypatch.setattr(IndexSync, "load", slow)
    assert_problem(classify(NamespaceClient(client, "slow"), red, deadline_ms=900), 504, "deadline_exceeded")

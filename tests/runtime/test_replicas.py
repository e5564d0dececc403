"""Two service processes on one store: writes of one are visible in the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.live import live_service
from support.processes import PATIENCE_SECONDS
from support.serving import assert_problem, classify, colour_video, serving, wait_until
from vidlex.service.labels.embedded.server import EmbeddedStore


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    folder = tmp_path_factory.mktemp("replicas")
    with EmbeddedStore(folder / "store") as store:
        environment = {"VIDLEX_REDIS_URL": f"unix://{store.socket_path}"}
        with live_service(folder / "a", **environment) as one, live_service(folder / "b", **environment) as two:
            clients = [httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) for url in (one, two)]
            yield clients
            for client in clients:
                client.close()


def test_replicas_read_each_others_writes_with_min_revision(replicas: list[httpx.Client], red: Path) -> None:
    one, two = replicas
    for number in range(20):
        label = one.post("/labels", json={"name": f"label {number}"}).json()
        answer = classify(two, red, top_k=0, min_revision=label["revision"]).json()
        assert label["id"] in {x["id"] for x in answer["labels"]}
        assert answer["vocabulary_revision"] >= label["revision"]
        page = two.get("/labels", params={"limit": 1000, "min_revision": label["revision"]}).json()
        assert label in page["data"]
    removed = one.delete(f"/labels/{label['id']}")
    revision = int(removed.headers["x-vidlex-revision"])
    answer = classify(two, red, top_k=0, min_revision=revision).json()
    assert label["id"] not in {x["id"] for x in answer["labels"]} and answer["vocabulary_revision"] >= revision


def test_replicas_converge_without_min_revision(replicas: list[httpx.Client], red: Path) -> None:
    one, two = replicas
    for number in range(5):
        label = one.post("/labels", json={"name": f"soon {number}"}).json()

        def seen(wanted: str = label["id"]) -> bool:
            return wanted in {x["id"] for x in classify(two, red, top_k=0).json()["labels"]}

        wait_until(seen, "the other replica does not show the label")


def test_future_revision_is_refused_with_the_current_one(tmp_path: Path, red: Path) -> None:
    with serving(tmp_path, revision_wait_seconds=3600) as client:  # must be refused immediately
        assert client.post("/labels", json={"name": "red"}).json()["revision"] == 1
        answers: list[Any] = [
            classify(client, red, min_revision=2),
            client.get("/labels", params={"min_revision": 2}),
        ]
        for answer in answers:
            assert assert_problem(answer, 409, "revision_not_reached")["current_revision"] == 1
        assert classify(client, red, min_revision=1).status_code == 200
        assert client.get("/labels", params={"min_revision": 1}).status_code == 200
        assert_problem(classify(client, red, min_revision=-1), 422, "invalid_parameter")

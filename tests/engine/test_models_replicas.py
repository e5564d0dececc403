"""Model changes with two replicas: both follow, and neither mixes models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import ge
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_models_change import change, check_consistent, prepare
from typer.testing import CliRunner

from support.processes import PATIENCE_SECONDS
from support.replicas import two_replicas
from support.serving import add, classify, colour_video, wait_until
from vidlex.service.cli import app


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    folder = tmp_path_factory.mktemp("r")
    with two_replicas(folder, VIDLEX_ALLOWED_MODELS='["dummy:2"]') as (_, processes):
        clients = [httpx.Client(base_url=p.url, timeout=PATIENCE_SECONDS, trust_env=False) for p in processes]
        yield clients
        for client in clients:
            client.close()


class Load:
    """Context manager: two clients classify and two register labels on both replicas; no request may fail."""

    def __init__(self, replicas: list[httpx.Client], video: bytes) -> None:
        self.replicas = replicas
        self.video = video
        self.fingerprints: list[set[str]] = [set(), set()]  # by replica
        self._ended = threading.Event()
        self._done = [0] * 4
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> Load:
        work = (self._classify, self._classify, self._register, self._register)
        self._clients = [self._pool.submit(task, number) for number, task in enumerate(work)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for future in self._clients:
            future.result(PATIENCE_SECONDS)
        self._pool.shutdown()

    def wait_for_progress(self) -> None:
        """Returns when each client has received two more responses."""
        enough = [count + 2 for count in self._done]
        wait_until(
            lambda: all(map(ge, self._done, enough)) or any(f.done() for f in self._clients),
            "a client makes no progress",
        )

    def classify(self, client: httpx.Client, **params: Any) -> dict[str, Any]:
        """The response for all labels, checked to be of one model."""
        answer = classify(client, self.video, top_k=0, **params)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        self.fingerprints[self.replicas.index(client)].add(check_consistent(body))
        return body

    def _classify(self, number: int) -> None:
        while not self._ended.is_set():
            self.classify(self.replicas[number])
            self._done[number] += 1

    def _register(self, number: int) -> None:
        """Both replicas find a new label, no matter which model they serve."""
        here, there = self.replicas[number % 2], self.replicas[1 - number % 2]
        while not self._ended.is_set():
            answer = here.post("/labels", json={"name": f"thing {number} {self._done[number]}"})
            assert answer.status_code == 201, answer.text
            label_id, revision = answer.json()["id"], answer.json()["revision"]
            found = classify(here, self.video, label_ids=[label_id])
            assert found.status_code == 200, found.text

            def followed(wanted: str = label_id, revision: int = revision) -> bool:
                return wanted in {x["id"] for x in self.classify(there, min_revision=revision)["labels"]}

            wait_until(followed, "the other replica's model does not have the label")
            self._done[number] += 1


def test_other_replica_follows_activation_and_rollback(replicas: list[httpx.Client], tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    first, second = replicas
    for label in add(first, "red", "blue"):
        assert classify(second, video, min_revision=label["revision"]).status_code == 200
    with Load(replicas, video) as load:

        def both_serve(fingerprint: str) -> bool:
            return all(load.classify(client)["model"]["fingerprint"] == fingerprint for client in replicas)

        def change_at(client: httpx.Client, step: str, fingerprint: str) -> None:
            assert change(client, step)["served"]["fingerprint"] == fingerprint
            assert load.classify(client)["model"]["fingerprint"] == fingerprint
            wait_until(lambda: both_serve(fingerprint), "the other replica does not follow")
            load.wait_for_progress()

        load.wait_for_progress()
        prepare(first)
        wait_until(lambda: is_prepared(second), "the other replica does not load the prepared model")
        change_at(first, "activate", "dummy-2")
        change_at(first, "rollback", "dummy-1")
        change_at(second, "activate", "dummy-2")
        change_at(first, "rollback", "dummy-1")
    assert load.fingerprints == [{"dummy-1", "dummy-2"}] * 2
    for client in replicas:
        state = client.get("/models").json()
        assert state["num_labels"] > 2
        assert {g["num_labels"] for g in state["generations"]} == {state["num_labels"]}


def is_prepared(client: httpx.Client) -> bool:
    prepared = client.get("/models").json()["prepared"]
    return bool(prepared and prepared["loaded"] and prepared["complete"])


def test_drop_of_unknown_model_fails_on_command_line(replicas: list[httpx.Client]) -> None:
    url = str(replicas[0].base_url)
    result = CliRunner().invoke(app, ["models", "drop", "nothing", "--url", url])
    assert result.exit_code != 0
    assert "not_found" in result.output and "fingerprint" in result.output

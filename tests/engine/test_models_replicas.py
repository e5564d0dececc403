"""A change of model with two service processes: the one that was not asked follows, and neither ever mixes models."""

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
    """Two clients that look and two that write, at both replicas, until the block is left. None may ever fail."""

    def __init__(self, replicas: list[httpx.Client], video: bytes) -> None:
        self.replicas = replicas
        self.video = video
        self.fingerprints: list[set[str]] = [set(), set()]
        """Those that each replica answered with."""
        self._ended = threading.Event()
        self._done = [0] * 4
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> Load:
        work = (self._look, self._look, self._write, self._write)
        self._busy = [self._pool.submit(task, number) for number, task in enumerate(work)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for future in self._busy:
            future.result(PATIENCE_SECONDS)
        self._pool.shutdown()

    def goes_on(self) -> None:
        """Returns when each client has had two answers more."""
        enough = [count + 2 for count in self._done]
        wait_until(
            lambda: all(map(ge, self._done, enough)) or any(f.done() for f in self._busy), "somebody does not get on"
        )

    def look(self, client: httpx.Client, **params: Any) -> dict[str, Any]:
        """All labels' scores, found to be of the model that the answer names."""
        answer = classify(client, self.video, top_k=0, **params)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        self.fingerprints[self.replicas.index(client)].add(check_consistent(body))
        return body

    def _look(self, number: int) -> None:
        while not self._ended.is_set():
            self.look(self.replicas[number])
            self._done[number] += 1

    def _write(self, number: int) -> None:
        """Whichever model either replica serves by then: it has the label."""
        here, there = self.replicas[number % 2], self.replicas[1 - number % 2]
        while not self._ended.is_set():
            answer = here.post("/labels", json={"name": f"thing {number} {self._done[number]}"})
            assert answer.status_code == 201, answer.text
            label_id, revision = answer.json()["id"], answer.json()["revision"]
            found = classify(here, self.video, label_ids=[label_id])
            assert found.status_code == 200, found.text

            def followed(wanted: str = label_id, revision: int = revision) -> bool:
                return wanted in {x["id"] for x in self.look(there, min_revision=revision)["labels"]}

            wait_until(followed, "the other replica's model does not have the label")
            self._done[number] += 1


def test_the_other_process_follows_activation_and_rollback(replicas: list[httpx.Client], tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    asked, other = replicas
    for label in add(asked, "red", "blue"):  # whoever asks for its revision sees it
        assert classify(other, video, min_revision=label["revision"]).status_code == 200
    with Load(replicas, video) as load:

        def both_serve(fingerprint: str) -> bool:
            return all(load.look(client)["model"]["fingerprint"] == fingerprint for client in replicas)

        def change_at(client: httpx.Client, step: str, fingerprint: str) -> None:
            assert change(client, step)["served"]["fingerprint"] == fingerprint
            assert load.look(client)["model"]["fingerprint"] == fingerprint, "the next request"
            wait_until(lambda: both_serve(fingerprint), "the other process does not follow")
            load.goes_on()

        load.goes_on()
        prepare(asked)
        wait_until(lambda: is_prepared(other), "the other process does not load the prepared model")
        change_at(asked, "activate", "dummy-2")
        change_at(asked, "rollback", "dummy-1")
        change_at(other, "activate", "dummy-2")
        change_at(asked, "rollback", "dummy-1")
    assert load.fingerprints == [{"dummy-1", "dummy-2"}] * 2
    for client in replicas:
        state = client.get("/models").json()
        assert state["num_labels"] > 2
        assert {g["num_labels"] for g in state["generations"]} == {state["num_labels"]}


def is_prepared(client: httpx.Client) -> bool:
    prepared = client.get("/models").json()["prepared"]
    return bool(prepared and prepared["loaded"] and prepared["complete"])


def test_dropping_what_is_not_there_fails_on_the_command_line(replicas: list[httpx.Client]) -> None:
    url = str(replicas[0].base_url)
    told = CliRunner().invoke(app, ["models", "drop", "nothing", "--url", url])
    assert told.exit_code != 0
    assert "not_found" in told.output and "fingerprint" in told.output

"""Acknowledged writes survive kill -9 of a service and of the store under concurrent HTTP writers."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.processes import until
from support.replicas import Replica, StoreProcess, two_replicas
from support.serving import classify, colour_video
from vidlex.service.labels.store.verify import verify_namespace

NUM_WRITERS = 8
# Each round kills a replica and the store at random times.
ROUNDS = int(os.environ.get("DURABILITY_ROUNDS", "4"))
MAX_OWN_LABELS = 30
SHARED = [f"shared {i}" for i in range(5)]

State = float | None  # threshold of a label; None if the label does not exist


@dataclass
class Writer:
    """Writes labels that no other writer changes, and records the possible states of each."""

    number: int
    urls: list[str]
    stop: threading.Event
    go: threading.Event
    idle: bool = False
    num_acknowledged: int = 0
    possible: dict[str, set[State]] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)  # names to ids of the labels whose state is certain

    def run(self) -> None:
        rng = random.Random(self.number)
        clients = [httpx.Client(base_url=url, timeout=30, trust_env=False) for url in self.urls]
        for serial in count():
            while not self.go.is_set() and not self.stop.is_set():
                self.idle = True
                time.sleep(0.005)
            if self.stop.is_set():
                break
            self.idle = False
            client = rng.choice(clients)
            kind = rng.random()
            if kind < 0.1:
                self._send(client, "POST", "/labels", {"name": rng.choice(SHARED), "categories": ["shared"]})
            elif not self.own or (kind < 0.5 and len(self.own) < MAX_OWN_LABELS):
                self._add(client, f"Writer {self.number} label {serial}", round(rng.random(), 6), rng)
            elif kind < 0.8:
                self._change(client, rng.choice(list(self.own)), round(rng.random(), 6))
            else:
                self._remove(client, rng.choice(list(self.own)))
        for client in clients:
            client.close()

    def _add(self, client: httpx.Client, name: str, threshold: float, rng: random.Random) -> None:
        parents = rng.sample(list(self.own.values()), k=min(len(self.own), rng.randrange(2)))
        body = {"name": name, "aliases": [f"{name} alias"], "threshold": threshold, "categories": ["own"]}
        answer = self._send(client, "POST", "/labels", body | {"parents": parents})
        self.possible[name] = {threshold} if answer is not None else {None, threshold}
        if answer is not None:
            self.own[name] = answer["id"]

    def _change(self, client: httpx.Client, name: str, threshold: float) -> None:
        answer = self._send(client, "PATCH", f"/labels/{self.own[name]}", {"threshold": threshold})
        self._settle(name, threshold, certain=answer is not None)

    def _remove(self, client: httpx.Client, name: str) -> None:
        answer = self._send(client, "DELETE", f"/labels/{self.own[name]}", None)
        self._settle(name, None, certain=answer is not None)
        self.own.pop(name, None)

    def _settle(self, name: str, state: State, *, certain: bool) -> None:
        if certain:
            self.possible[name] = {state}
        else:
            self.possible[name].add(state)
            self.own.pop(name, None)  # not changed any more

    def _send(self, client: httpx.Client, method: str, path: str, body: Any) -> Any:
        """The response to an acknowledged write; None if its outcome is unknown."""
        try:
            answer = client.request(method, path, json=body)
        except httpx.TransportError:
            time.sleep(0.05)
            return None
        if answer.status_code >= 500:
            time.sleep(0.05)
            return None
        if answer.status_code == 409 and body["name"] in SHARED:
            return answer.json()
        assert answer.is_success, answer.text
        self.num_acknowledged += 1
        return answer.json() if answer.content else {}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StoreProcess, list[Replica]]]:
    with two_replicas(tmp_path_factory.mktemp("d")) as parts:
        yield parts


def labels_of(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 1000}
    while True:
        page = httpx.get(f"{url}/labels", params=params, timeout=30, trust_env=False).raise_for_status().json()
        found += page["data"]
        if not page["has_more"]:
            return found
        params["after"] = page["last_id"]


def index_of(url: str, video: bytes) -> dict[str, tuple[str, float]]:
    """Label ids in a replica's index, with names and thresholds, as a classification returns them."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        answer = classify(client, video, top_k=0)
        assert answer.status_code == 200, answer.text
        return {label["id"]: (label["name"], label["threshold"]) for label in answer.json()["labels"]}


def check(store: StoreProcess, replicas: list[Replica], writers: list[Writer], video: bytes) -> int:
    """No label is lost, incomplete, duplicated, or missing in an index. Returns the number of labels."""
    assert verify_namespace(store.client()) == []
    stored = labels_of(replicas[0].url)
    assert labels_of(replicas[1].url) == stored
    names = Counter(label["name"].casefold() for label in stored)
    assert max(names.values(), default=1) == 1
    states = {label["name"]: label["threshold"] for label in stored}
    for writer in writers:
        wrong = {
            name: states.get(name) for name, states_of in writer.possible.items() if states.get(name) not in states_of
        }
        assert not wrong, f"writer {writer.number}: {wrong}"
        for name, label_id in writer.own.items():
            assert any(label["id"] == label_id for label in stored), name
    known = set(SHARED).union(*(writer.possible for writer in writers))
    assert set(states) <= known
    expected = {x["id"]: (x["name"], 0.5 if x["threshold"] is None else x["threshold"]) for x in stored}
    for replica in replicas:
        until(lambda url=replica.url: index_of(url, video) == expected)  # type: ignore[misc]
    return len(stored)


@pytest.mark.timeout(300 + 60 * ROUNDS)
def test_kill_9_of_services_and_store(running: tuple[StoreProcess, list[Replica]], tmp_path: Path) -> None:
    store, replicas = running
    video = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    stop, go = threading.Event(), threading.Event()
    writers = [Writer(i, [replica.url for replica in replicas], stop, go) for i in range(NUM_WRITERS)]
    started = time.monotonic()
    num_labels = 0
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        running_writers = [pool.submit(writer.run) for writer in writers]

        def num_acknowledged() -> int:
            return sum(writer.num_acknowledged for writer in writers)

        def failed() -> bool:
            return any(future.done() for future in running_writers)

        try:
            for number in range(ROUNDS):
                go.set()
                enough = num_acknowledged() + NUM_WRITERS
                until(lambda enough=enough: num_acknowledged() >= enough or failed())  # type: ignore[misc]
                time.sleep(rng.uniform(0.0, 0.8))
                victim = replicas[number % 2]
                victim.kill()
                victim.start()
                time.sleep(rng.uniform(0.0, 0.8))
                store.kill()
                time.sleep(rng.uniform(0.0, 0.2))
                store.start()
                time.sleep(rng.uniform(0.0, 0.3))
                go.clear()
                until(lambda: all(writer.idle for writer in writers) or failed(), seconds=240)
                assert not failed(), [f.exception() for f in running_writers if f.done()]
                for replica in replicas:
                    replica.wait()
                num_labels = check(store, replicas, writers, video)
        finally:
            stop.set()
        for future in running_writers:
            future.result()
    unknown = sum(len(states) > 1 for writer in writers for states in writer.possible.values())
    seconds = time.monotonic() - started
    print(
        f"{ROUNDS} rounds, {seconds:.0f} s: {num_acknowledged()} acknowledged, {unknown} unknown, {num_labels} labels"
    )
    assert num_acknowledged() >= NUM_WRITERS * ROUNDS


def test_1000_concurrent_registrations_of_one_name(running: tuple[StoreProcess, list[Replica]]) -> None:
    store, replicas = running
    clients = [httpx.Client(base_url=replica.url, timeout=120, trust_env=False) for replica in replicas]

    def register(number: int) -> tuple[int, str]:
        name = ("one name", "One  Name", "ONE NAME ")[number % 3]
        while True:
            answer = clients[number % 2].post("/labels", json={"name": name})
            if answer.status_code != 429:  # the replica is overloaded; retry
                document = answer.json()
                return answer.status_code, document.get("existing_id") or document["id"]
            time.sleep(0.02)

    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(register, range(1000)))
    assert Counter(status for status, _ in outcomes) == {201: 1, 409: 999}
    assert len({label_id for _, label_id in outcomes}) == 1
    assert [x["name"].casefold() for x in labels_of(replicas[0].url)].count("one name") == 1
    assert verify_namespace(store.client()) == []
    clients[0].delete(f"/labels/{outcomes[0][1]}").raise_for_status()  # the other test accepts no unknown labels
    for client in clients:
        client.close()

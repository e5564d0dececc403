"""Model changes: prepare, activate, roll back and drop, under load and across restarts."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import ge
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, classify, colour_video, serving, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.http.openapi.headers import NAMESPACE_HEADER
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.runtime.runtime import Runtime
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.sharing.requester import Requester
from vidlex.service.views.classification import classification_view

BEST = {"dummy-1": "red", "dummy-2": "blue"}  # The best label of a red video, by fingerprint: see model/dummy.py.
OTHER = {"headers": {NAMESPACE_HEADER: "other"}}


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@contextmanager
def two_models(folder: Path, **changes: Any) -> Iterator[TestClient]:
    with serving(folder, allowed_models=("dummy:2", "dummy:3"), **changes) as client:
        yield client


def prepare(client: Any, model: str = "dummy:2") -> dict[str, Any]:
    assert client.post("/models:prepare", json={"model": model}).status_code == 202

    def complete() -> bool:
        state = client.get("/models").json()
        return bool(state["prepared"] and state["prepared"]["complete"])

    wait_until(complete, "not prepared")
    state: dict[str, Any] = client.get("/models").json()
    return state


def change(client: Any, step: str) -> dict[str, Any]:
    """Activate or roll back; an activation is retried while labels are being encoded."""
    answers: list[Any] = []

    def accepted() -> bool:
        answers.append(client.post(f"/models:{step}"))
        if answers[-1].status_code == 409:
            return "num_missing" not in answers[-1].json()
        return True

    wait_until(accepted, f"{step} is always refused")
    assert answers[-1].status_code == 200, answers[-1].text
    state: dict[str, Any] = answers[-1].json()
    return state


def check_consistent(answer: dict[str, Any]) -> str:
    """Asserts that both labels' scores are those of the model that the response names; returns its fingerprint."""
    fingerprint = str(answer["model"]["fingerprint"])
    scores = {x["name"]: x["score"] for x in answer["labels"] if x["name"] in BEST.values()}
    assert set(scores) == {"red", "blue"}
    for name, score in scores.items():
        assert score == pytest.approx(0.9933 if name == BEST[fingerprint] else 0.0067, abs=0.002), (fingerprint, scores)
    return fingerprint


def test_model_changes_under_load_fail_no_request_and_never_mix_models(tmp_path: Path, red: Path) -> None:
    video = red.read_bytes()
    ended = threading.Event()
    answers: list[str] = []
    done = [0] * 5
    with two_models(tmp_path) as client, ThreadPoolExecutor(8) as pool:
        add(client, "red", "blue")

        def classify_repeatedly(number: int) -> None:
            while not ended.is_set():
                answer = classify(client, video, top_k=0)
                assert answer.status_code == 200, answer.text
                answers.append(check_consistent(answer.json()))
                done[number] += 1

        def register_repeatedly(number: int) -> None:
            while not ended.is_set():
                answer = client.post("/labels", json={"name": f"thing {number} {done[number]}"})
                assert answer.status_code == 201, answer.text
                seen = classify(client, video, label_ids=[answer.json()["id"]])
                assert seen.status_code == 200, seen.text
                assert len(seen.json()["labels"]) == 1
                done[number] += 1

        clients = [pool.submit(classify_repeatedly, n) for n in (0, 1)]
        clients += [pool.submit(register_repeatedly, n) for n in (2, 3, 4)]
        try:
            prepare(client)
            for step, expected in (("activate", "dummy-2"), ("rollback", "dummy-1"), ("activate", "dummy-2")):
                assert change(client, step)["served"]["fingerprint"] == expected
                assert check_consistent(classify(client, video, top_k=0).json()) == expected  # the next request
                enough = [count + 2 for count in done]
                wait_until(
                    lambda enough=enough: all(map(ge, done, enough)) or any(f.done() for f in clients),  # type: ignore[misc]
                    "a client makes no progress",
                )
        finally:
            ended.set()
        for future in clients:
            future.result(PATIENCE_SECONDS)
        assert set(answers) == {"dummy-1", "dummy-2"}
        state = client.get("/models").json()
        assert {g["num_labels"] for g in state["generations"]} == {state["num_labels"]}  # both have every label
        assert state["previous"]["fingerprint"] == "dummy-1"


def test_every_namespace_is_encoded_and_activation_survives_restart(tmp_path: Path, red: Path) -> None:
    with two_models(tmp_path) as client:
        add(client, "red", "blue")
        assert client.post("/labels", json={"name": "red"}, **OTHER).status_code == 201  # type: ignore[arg-type]
        state = prepare(client)
        assert (state["served"]["fingerprint"], state["num_labels"]) == ("dummy-1", 3)
        assert {(g["namespace"], g["fingerprint"], g["num_labels"]) for g in state["generations"]} == {
            (namespace, fingerprint, num)
            for namespace, num in (("default", 2), ("other", 1))
            for fingerprint in ("dummy-1", "dummy-2")
        }
        assert check_consistent(classify(client, red).json()) == "dummy-1"
        assert client.post("/models:activate").status_code == 200
    with two_models(tmp_path) as client:
        assert check_consistent(classify(client, red).json()) == "dummy-2"
        wait_until(lambda: client.get("/models").json()["previous"]["loaded"], "the previous model is not loaded")
        assert client.post("/models:rollback").status_code == 200
        assert check_consistent(classify(client, red).json()) == "dummy-1"
    with two_models(tmp_path) as client:
        assert check_consistent(classify(client, red).json()) == "dummy-1"


def test_changed_setting_overrides_older_activation(tmp_path: Path, red: Path) -> None:
    with two_models(tmp_path) as client:
        add(client, "red", "blue")
        prepare(client)
        client.post("/models:activate")
    edited = {"classifier": DummyClassifier(3), "model": "dummy:3"}
    with two_models(tmp_path, **edited) as client:
        assert classify(client, red).json()["model"]["fingerprint"] == "dummy-3"
        state = client.get("/models").json()
        assert (state["served"]["fingerprint"], state["previous"], state["prepared"]) == ("dummy-3", None, None)
    with two_models(tmp_path) as client:  # the activation under this setting applies again
        assert check_consistent(classify(client, red).json()) == "dummy-2"
    with two_models(tmp_path, **edited) as client:
        prepare(client, "dummy:2")
    with two_models(tmp_path) as client:  # the pointer now belongs to the other setting
        assert check_consistent(classify(client, red).json()) == "dummy-1"


def test_encoding_progress_survives_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    permits = threading.Semaphore(0)

    class LimitedClassifier(DummyClassifier):
        """Encodes one batch per permit."""

        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            if not permits.acquire(timeout=0.0):
                raise RuntimeError("no permit")
            encoded.extend(names)
            return super().encode_labels(names)

    load = Runtime._load_copies
    monkeypatch.setattr(
        Runtime, "_load_copies", lambda self, spec: [LimitedClassifier(2)] if spec == "dummy:2" else load(self, spec)
    )
    monkeypatch.setattr("vidlex.service.registration.backfill._BATCH_LABELS", 5)
    names = [f"label {n}" for n in range(40)]
    with two_models(tmp_path, max_batch_labels=5) as client:
        answer = client.post("/labels", json={"labels": [{"name": name} for name in names]})
        assert answer.status_code == 200
        permits.release()
        permits.release()
        client.post("/models:prepare", json={"model": "dummy:2"})
        wait_until(
            lambda: (client.get("/models").json()["prepared"] or {}).get("num_encoded", 0) > 0, "no label is encoded"
        )
        assert_problem(client.post("/models:activate"), 409, "model_conflict")
        done = client.get("/models").json()["prepared"]["num_encoded"]
    assert 0 < done < len(names)
    before = len(encoded)
    for _ in range(1000):
        permits.release()
    with two_models(tmp_path) as client:

        def complete() -> bool:
            prepared = client.get("/models").json()["prepared"]
            return bool(prepared["loaded"] and prepared["complete"])

        wait_until(complete, "encoding does not continue")
        assert len(encoded) - before == len(names) - done
        assert client.post("/models:activate").status_code == 200


def test_only_allowed_models_are_loaded(tmp_path: Path) -> None:
    with two_models(tmp_path) as client:
        for bad in ("dummy:9", "/etc", "open_clip:local-dir:/tmp", "../x"):
            problem = assert_problem(client.post("/models:prepare", json={"model": bad}), 422, "invalid_parameter")
            assert bad not in problem["detail"]
        assert_problem(client.post("/models:prepare", json={}), 422, "invalid_parameter")
        for step in ("activate", "rollback"):
            assert_problem(client.post(f"/models:{step}"), 409, "model_conflict")
        assert_problem(client.get("/models:diff"), 409, "model_conflict")
        assert_problem(client.post("/models:drop", json={"fingerprint": "dummy-1"}), 409, "model_conflict")
        assert_problem(client.post("/models:drop", json={"fingerprint": "dummy-2"}), 404, "not_found")


def test_dropped_model_is_unloaded_and_its_vectors_deleted(tmp_path: Path, red: Path) -> None:
    with two_models(tmp_path) as client:
        add(client, "red", "blue")
        prepare(client)
        assert_problem(client.post("/models:prepare", json={"model": "dummy:3"}), 409, "model_conflict")
        state = client.post("/models:drop", json={"fingerprint": "dummy-2"}).json()
        assert_problem(client.post("/models:drop", json={"fingerprint": "dummy-2"}), 404, "not_found")
        assert state["prepared"] is None and {g["fingerprint"] for g in state["generations"]} == {"dummy-1"}
        add(client, "green")  # is not encoded by the dropped model
        assert {g["fingerprint"] for g in client.get("/models").json()["generations"]} == {"dummy-1"}
        prepare(client, "dummy:3")
        client.post("/models:activate")
        assert classify(client, red).json()["labels"][0]["name"] == "green"
        runtime = client.app.state.context.readiness.__self__  # type: ignore[attr-defined]
        first = weakref.ref(runtime.context.parts.models.state().loaded["dummy-1"])
        assert client.post("/models:drop", json={"fingerprint": "dummy-1"}).status_code == 200

        def is_freed() -> bool:
            gc.collect()
            return first() is None

        wait_until(is_freed, "the dropped model is still in memory")


def test_store_outage_with_two_models_loaded(tmp_path: Path, short_folder: Path, red: Path) -> None:
    """Both models keep classifying from memory, and follow the store once it returns."""
    store = EmbeddedStore(short_folder)
    path = store.start()
    try:
        with two_models(tmp_path, redis_url=f"unix://{path}") as client:
            add(client, "red", "blue")
            prepare(client)
            assert client.post("/models:activate").status_code == 200
            parts = client.app.state.context.parts  # type: ignore[attr-defined]
            loaded = parts.models.state().loaded
            assert set(loaded) == set(BEST)

            def answer_of(fingerprint: str) -> dict[str, Any]:
                vocabulary = loaded[fingerprint].acquire("default")
                try:
                    result = parts.videos.classify(
                        red,
                        ClassifyOptions(),
                        vocabulary,
                        sha256="red",
                        requester=Requester(deadline=time.monotonic() + PATIENCE_SECONDS),
                    )
                    view = classification_view(result, ClassifyParams(), vocabulary, service="vidlex test")
                finally:
                    vocabulary.release()
                return view.model_dump()

            store.stop()
            wait_until(lambda: client.get("/readyz").status_code == 503, "the outage is not detected")
            answer = classify(client, red).json()
            assert check_consistent(answer) == "dummy-2"
            assert [w["code"] for w in answer["warnings"]] == ["store_unavailable"]
            for fingerprint in BEST:
                assert check_consistent(answer_of(fingerprint)) == fingerprint
            for path_of, body in (("/models:rollback", None), ("/labels", {"name": "late"})):
                assert_problem(client.post(path_of, json=body), 503, "store_unavailable")

            store = EmbeddedStore(short_folder)
            assert store.start() == path
            wait_until(lambda: client.get("/readyz").status_code == 200, "the recovery is not detected")
            (late,) = add(client, "late")
            for fingerprint in BEST:
                wait_until(
                    lambda fingerprint=fingerprint: (  # type: ignore[misc]
                        late["id"] in {label["id"] for label in answer_of(fingerprint)["labels"]}
                    ),
                    f"{fingerprint} does not follow the store",
                )
            assert client.post("/models:rollback").status_code == 200
            answer = classify(client, red).json()
            assert check_consistent(answer) == "dummy-1" and answer["warnings"] == []
            assert len(answer["labels"]) == 3
    finally:
        store.stop()


def test_diff_uses_only_the_namespaces_own_videos(tmp_path: Path, red: Path) -> None:
    with two_models(tmp_path) as client:
        for options in ({}, OTHER):
            for name in ("red", "blue", "white"):
                client.post("/labels", json={"name": name}, **options)  # type: ignore[arg-type]
        classify(client, red)
        prepare(client)
        found = client.get("/models:diff").json()
        assert (found["old"], found["new"], found["num_videos"], found["num_labels"]) == ("dummy-1", "dummy-2", 1, 3)
        rows = {row["name"]: row for row in found["labels"]}
        assert rows["red"]["mean_shift"] == pytest.approx(0.0067 - 0.9933, abs=0.002)
        assert rows["blue"]["mean_shift"] == pytest.approx(0.9933 - 0.0067, abs=0.002)
        assert abs(rows["white"]["mean_shift"]) < 0.002
        assert [(rows[n]["num_gained"], rows[n]["num_lost"]) for n in ("red", "blue", "white")] == [
            (0, 1),
            (1, 0),
            (0, 0),
        ]
        assert [rows[n]["mean_rank_move"] for n in ("red", "blue", "white")] == [2, -2, 0]
        assert found["rank_correlation"] == [pytest.approx(-1.0)]
        assert client.get("/models:diff", **OTHER).json()["num_videos"] == 0  # type: ignore[arg-type]


def test_recent_videos_are_bounded_and_can_be_disabled() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)  # 96 bytes
    recent = RecentVideos(2, 300)
    for n in range(3):
        recent.add("a", str(n), frames + np.uint8(n))
    recent.add("b", "0", frames)
    assert [int(f[0, 0, 0, 0]) for f in recent.videos("a")] == [1, 2] and len(recent.videos("b")) == 1
    recent.add("b", "1", frames)  # exceeds max_bytes: the oldest is evicted
    assert len(recent.videos("a")) == 1 and recent.num_bytes == 288
    recent.add("b", "1", np.zeros((100, 4, 4, 3), np.uint8))  # larger than max_bytes: not stored
    assert recent.num_bytes == 288
    disabled = RecentVideos(0, 300)
    disabled.add("a", "0", frames)
    assert disabled.videos("a") == [] and disabled.num_bytes == 0

"""Start, readiness, store outages, model changes and shutdown."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from structlog.testing import capture_logs

from support.processes import PATIENCE_SECONDS, worker_pids
from support.serving import add, assert_problem, classify, colour_video, serving, settings_for, wait_until
from vidlex.model.classifier import LabelTextError
from vidlex.model.dummy import DummyClassifier
from vidlex.service.app import create_app
from vidlex.service.decode.process import StartFailed
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.runtime.runtime import Runtime


class Gated(DummyClassifier):
    """Encodes videos, including the warm-up, only while ``gate`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        return super().encode_video(frames)


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


def checks(client: TestClient) -> dict[str, bool]:
    return {name: check["ok"] for name, check in client.get("/readyz").json()["checks"].items()}


def test_readyz_reports_starting_until_ready(tmp_path: Path, red: Path) -> None:
    classifier = Gated()
    with serving(tmp_path, classifier=classifier, wait=False) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "starting")
        assert answer.headers["retry-after"]
        for refused in (client.get("/labels"), client.post("/labels", json={"name": "a"}), classify(client, red)):
            assert_problem(refused, 503, "model_loading")
        wait_until(lambda: all(ok for name, ok in checks(client).items() if name not in ("encoder", "start")), "parts")
        assert client.get("/readyz").json()["checks"]["start"] == {"ok": False, "detail": "warming up the model"}
        assert "vidlex_ready 0.0" in client.get("/metrics").text
        classifier.gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200, "not ready")
        body = client.get("/readyz").json()
        assert body["status"] == "ready"
        assert set(body["checks"]) == {"store", "schema", "model", "encoder", "index", "decoders", "isolation"}


def test_model_that_fails_to_load_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such weights at /home/x")

    monkeypatch.setattr(Runtime, "_load_copies", fail)
    reasons: list[str] = []
    app = create_app(settings_for(tmp_path), on_fatal=reasons.append)
    with TestClient(app, base_url="http://localhost") as client:
        wait_until(lambda: bool(reasons), "on_fatal was not called")
        assert reasons == ["it failed while loading the model: no such weights at /home/x"]
        body = client.get("/readyz").json()
        assert body["status"] == "not_ready"
        assert body["checks"]["start"]["detail"] == "failed while loading the model; see the log"
        assert client.get("/livez").status_code == 200
        assert_problem(client.get("/labels"), 503, "model_loading")


def test_labels_survive_a_restart(tmp_path: Path, red: Path) -> None:
    with serving(tmp_path) as client:
        add(client, "red", "blue", threshold=0.25)
        before = client.get("/labels").json()
        first = classify(client, red).json()
    with serving(tmp_path) as client:
        assert client.get("/labels").json() == before
        second = classify(client, red).json()
    assert second["labels"] == first["labels"] and second["vocabulary_revision"] == first["vocabulary_revision"]


def test_new_model_encodes_stored_labels_before_ready(tmp_path: Path, red: Path) -> None:
    class Other(DummyClassifier):
        """Swaps the colours, so that vectors of the old model give wrong results."""

        def __init__(self) -> None:
            super().__init__(version=4)

        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            return super().encode_video(frames)[:, ::-1].copy()

        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            return super().encode_labels(names)[:, ::-1].copy()

        def check_label(self, name: str) -> None:
            if name == "blue":
                raise LabelTextError("refused")

    with serving(tmp_path) as client:
        add(client, "red", "green", "blue")
    with capture_logs() as logs, serving(tmp_path, classifier=Other()) as client:
        answer = classify(client, red).json()
        stored = client.get("/labels").json()["data"]
    (line,) = [entry for entry in logs if entry["event"] == "encoding_stored_labels"]
    assert (line["labels"], line["fingerprint"], line["other_fingerprints"]) == (3, "dummy-4", ["dummy-1"])
    assert [(x["name"], round(x["score"], 2)) for x in answer["labels"]] == [("red", 0.99), ("green", 0.01)]
    assert answer["model"]["fingerprint"] == "dummy-4"
    assert [w["code"] for w in answer["warnings"]] == ["labels_not_encoded"]
    assert [x["name"] for x in stored] == ["red", "green", "blue"]
    with capture_logs() as logs, serving(tmp_path) as client:  # the vectors of the first model still exist
        assert len(classify(client, red).json()["labels"]) == 3
    assert not [entry for entry in logs if entry["event"] == "encoding_stored_labels"]


def test_store_outage_allows_classify_and_refuses_writes(tmp_path: Path, short_folder: Path, red: Path) -> None:
    store = EmbeddedStore(short_folder)
    path = store.start()
    try:
        with serving(tmp_path, redis_url=f"unix://{path}") as client:
            add(client, "red")
            store.stop()
            wait_until(lambda: not checks(client)["store"], "the outage is not detected")
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
            answer = classify(client, red).json()
            assert answer["labels"][0]["name"] == "red"
            assert [w["code"] for w in answer["warnings"]] == ["store_unavailable"]
            for refused in (
                client.post("/labels", json={"name": "blue"}),
                client.get("/labels"),
                client.delete(f"/labels/{answer['labels'][0]['id']}"),
                client.patch(f"/labels/{answer['labels'][0]['id']}", json={"threshold": 0.5}),
            ):
                assert_problem(refused, 503, "store_unavailable")
            store = EmbeddedStore(short_folder)
            assert store.start() == path
            wait_until(lambda: client.get("/readyz").status_code == 200, "the recovery is not detected")
            add(client, "blue")
            answer = classify(client, red).json()
            assert [x["name"] for x in answer["labels"]] == ["red", "blue"] and answer["warnings"] == []
    finally:
        store.stop()


def test_start_waits_for_the_store(tmp_path: Path, short_folder: Path) -> None:
    store = EmbeddedStore(short_folder)
    path = store.start()
    store.stop()
    with serving(tmp_path, redis_url=f"unix://{path}", wait=False) as client:
        wait_until(lambda: checks(client).get("start") is False, "the start is not reported")
        assert client.get("/readyz").json()["status"] == "starting"
        store = EmbeddedStore(short_folder)
        assert store.start() == path
        try:
            wait_until(lambda: client.get("/readyz").status_code == 200, "not ready")
            add(client, "red")
        finally:
            store.stop()


def test_second_service_on_the_same_folder_fails(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        add(first, "red")
        reasons: list[str] = []
        second = create_app(settings_for(tmp_path), classifier=DummyClassifier(), on_fatal=reasons.append)
        with TestClient(second, base_url="http://localhost") as client:
            wait_until(lambda: bool(reasons), "on_fatal was not called")
            assert reasons[0].startswith("it failed while opening the label store: ")
            assert client.get("/readyz").json()["checks"]["start"]["detail"].startswith("failed while opening")
        assert first.get("/readyz").status_code == 200
        assert len(first.get("/labels").json()["data"]) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_engine_is_not_ready(tmp_path: Path, red: Path) -> None:
    class Dies(DummyClassifier):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            if int(frames[0][0, 0, 0, 0]) > 200:
                raise SystemExit
            return super().encode_video(frames)

    with serving(tmp_path, classifier=Dies()) as client:
        assert_problem(classify(client, red), 503, "encode_failed")
        answer = client.get("/readyz")
        assert answer.status_code == 503 and not answer.json()["checks"]["encoder"]["ok"]
        assert client.get("/livez").status_code == 200


def test_excess_requests_get_429_with_retry_after(tmp_path: Path, red: Path) -> None:
    classifier = Gated()
    classifier.gate.set()
    with serving(tmp_path, classifier=classifier, max_waiting_videos=4) as client, ThreadPoolExecutor(4) as pool:
        add(client, "red")
        classifier.gate.clear()
        busy = [pool.submit(classify, client, red) for _ in range(2)]
        wait_until(lambda: "vidlex_videos_at_work 2.0" in client.get("/metrics").text, "the requests are not running")
        assert assert_problem(classify(client, red), 429, "share_exceeded")["limit"] == "requests"
        assert 'vidlex_refusals_total{code="share_exceeded"} 1.0' in client.get("/metrics").text
        assert client.get("/labels").status_code == 200  # labels are not queued behind videos
        classifier.gate.set()
        assert [future.result(PATIENCE_SECONDS).status_code for future in busy] == [200, 200]
        assert classify(client, red).status_code == 200


def test_metrics_count_requests_and_work(tmp_path: Path, red: Path) -> None:
    with serving(tmp_path) as client:
        add(client, "red", "blue")
        classify(client, red)
        client.get("/v1/labels")
        for i in range(3):
            client.get(f"/nothing/{i}")
        client.get("/labels/lbl_none")
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines: dict[str, Any] = {}
        for line in answer.text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                lines[name] = float(value)
        assert lines['vidlex_requests_total{method="POST",route="/labels",status="201"}'] == 2
        assert lines['vidlex_requests_total{method="POST",route="/classify",status="200"}'] == 1
        assert lines['vidlex_requests_total{method="GET",route="/labels",status="200"}'] == 1
        assert lines['vidlex_requests_total{method="GET",route="/labels/{label_id}",status="404"}'] == 1
        assert lines['vidlex_requests_total{method="GET",route="unmatched",status="404"}'] == 3
        for stage in ("upload", "queue", "decode", "encode", "match"):
            assert lines[f'vidlex_stage_seconds_count{{stage="{stage}"}}'] == 1
        assert lines["vidlex_labels"] == lines['vidlex_revision{namespace="default"}'] == 2
        seconds = 'vidlex_request_seconds_count{method="POST",route="/classify",status="200"}'
        assert lines[seconds] == 1
        assert not [name for name in lines if "_created" in name]
        version = client.get("/openapi.json").json()["info"]["version"]
        build = f'vidlex_build_info{{python="{platform.python_version()}",version="{version}"}}'
        assert lines[build] == 1
        assert lines['vidlex_refusals_total{code="not_found"}'] == 4
        assert lines['vidlex_refusals_total{code="overloaded"}'] == 0
        assert (
            lines["vidlex_decode_restarts_total"] == lines["vidlex_queued_videos"] == lines["vidlex_queued_labels"] == 0
        )
        assert lines["vidlex_encoder_works"] == 1
        assert lines["vidlex_decode_workers_alive"] == 1
        assert lines["vidlex_upload_bytes_total"] == red.stat().st_size
        assert lines["vidlex_encoded_frames_total"] == 4


def test_uploads_of_killed_processes_are_removed_at_start(tmp_path: Path) -> None:
    import fcntl

    uploads = tmp_path / "uploads"
    for name in ("dead", "alive"):
        (uploads / name).mkdir(parents=True)
        (uploads / name / "video").write_bytes(b"x")
        (uploads / f"{name}.lock").touch()
    with (uploads / "alive.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with serving(tmp_path):
            assert (uploads / "alive" / "video").exists()
            assert not (uploads / "dead").exists() and not (uploads / "dead.lock").exists()
    assert sorted(path.name for path in uploads.iterdir()) == ["alive", "alive.lock"]


def test_stop_ends_all_decode_processes(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        runtime = client.app.state.context.readiness.__self__  # type: ignore[attr-defined]
        pids = [*worker_pids(runtime.pool)]
        assert pids
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: (new := worker_pids(runtime.pool)) and new != pids, "not replaced")
        assert "vidlex_decode_restarts_total 1.0" in client.get("/metrics").text
        pids += worker_pids(runtime.pool)
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_missing_decoder_is_not_ready(tmp_path: Path, red: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two decoders is killed and cannot be restarted."""
    monkeypatch.setattr("vidlex.service.runtime.runtime.MAX_DECODER_OUTAGE_SECONDS", 1.5)
    with serving(tmp_path, decode_workers=2) as client:
        add(client, "red")
        runtime = client.app.state.context.readiness.__self__  # type: ignore[attr-defined]
        with monkeypatch.context() as broken:
            broken.setattr("vidlex.service.decode.pool.DecodeProcess", _no_process)
            os.kill(worker_pids(runtime.pool)[0], signal.SIGKILL)
            wait_until(lambda: not checks(client)["decoders"], "readiness does not report it")
            assert client.get("/readyz").json()["checks"]["decoders"]["detail"].startswith("1 of 2 alive")
            assert [classify(client, red).status_code for _ in range(5)] == [200] * 5
        wait_until(lambda: client.get("/readyz").status_code == 200, "not ready again")


def _no_process(*_: object, **__: object) -> None:
    raise StartFailed("no more processes")


def test_readyz_probes_an_idle_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(DummyClassifier):
        broken = False
        num_frames_seen: list[int] = []  # noqa: RUF012

        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            self.num_frames_seen.append(len(frames[0]))
            if self.broken:
                raise RuntimeError("device lost")
            return super().encode_video(frames)

    monkeypatch.setattr("vidlex.service.engine.device_worker.STALE_SECONDS", 0.2)
    monkeypatch.setattr("vidlex.service.engine.device_worker.PROBE_INTERVAL_SECONDS", 0.2)
    classifier = Breaks()
    with serving(tmp_path, classifier=classifier) as client:
        num_passes = -1
        while num_passes != len(classifier.num_frames_seen):  # wait for the warm-up passes
            num_passes = len(classifier.num_frames_seen)
            threading.Event().wait(0.5)  # longer than STALE_SECONDS, without probes
        client.get("/readyz")
        wait_until(lambda: len(classifier.num_frames_seen) > num_passes, "no probe")
        assert classifier.num_frames_seen[num_passes] == 1
        classifier.broken = True
        wait_until(lambda: not checks(client)["encoder"], "the fault is not detected")
        classifier.broken = False
        wait_until(lambda: client.get("/readyz").status_code == 200, "not ready again")


def test_stuck_forward_pass_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.engine.device_worker.STUCK_SECONDS", 0.3)
    monkeypatch.setattr("vidlex.service.engine.device_worker.STALE_SECONDS", 0.1)
    classifier = Gated()
    classifier.gate.set()
    with serving(tmp_path, classifier=classifier) as client:
        classifier.gate.clear()

        def hangs() -> bool:
            check = client.get("/readyz").json()["checks"]["encoder"]
            return bool(check == {"ok": False, "detail": "a forward pass does not return"})

        wait_until(hangs, "the stuck pass is not detected")
        classifier.gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200, "not ready again")

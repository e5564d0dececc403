"""`vidlex worker` next to a service: the embedded store, stops, the answer of the default model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_service
from support.processes import until
from support.serving import colour_video
from support.workers import WorkerProcess
from vidlex.model.specs import DEFAULT_MODEL

FINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class Served:
    """A service that accepts jobs and works on none, with an embedded store."""

    client: httpx.Client
    data_dir: Path
    files: HeldFiles
    video: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "files").mkdir()
    video = colour_video(folder / "files" / "red.mp4", "red")
    with (
        held_files(folder / "files") as files,
        live_service(folder / "data", VIDLEX_JOB_WORKERS="0", VIDLEX_DECODE_WORKERS="1", **ENVIRONMENT) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30.0) as client,
    ):
        assert client.post("/labels", json={"name": "red"}).status_code == 201
        yield Served(client, folder / "data", files, video)


@pytest.fixture
def worker(served: Served, tmp_path: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(
        served.data_dir, log=tmp_path / "worker.log", VIDLEX_SHUTDOWN_GRACE_SECONDS="0", **ENVIRONMENT
    )
    yield worker
    worker.kill()


def upload(client: httpx.Client, video: Path, **options: Any) -> str:
    files = {"file": ("video.mp4", video.read_bytes(), "video/mp4")}
    answer = client.post("/jobs", files=files, data={"params": json.dumps(options)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state_of(client: httpx.Client, job_id: str) -> str:
    return str(client.get(f"/jobs/{job_id}").json()["state"])


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    until(lambda: state_of(client, job_id) in FINAL)
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job


def test_a_worker_shares_the_embedded_store_and_gives_back_what_it_has_not_finished(
    served: Served, worker: WorkerProcess, tmp_path: Path
) -> None:
    client = served.client
    waiting = upload(client, served.video)
    assert state_of(client, waiting) == "queued"
    assert client.get("/metrics").text.count("vidlex_jobs_at_work 0.0") == 1
    worker.start()
    worker.wait()
    job = finished(client, waiting)
    assert job["state"] == "succeeded" and job["result"]["labels"][0]["name"] == "red"
    assert not list((served.data_dir / "jobs" / "inputs").rglob("*.mp4")), "uploads of finished jobs are removed"

    slow = served.files.hold("red.mp4")
    answer = client.post("/jobs", json={"input": {"url": slow}})
    held = str(answer.json()["id"])
    until(lambda: state_of(client, held) == "running")
    assert worker.stop() == 0
    job = client.get(f"/jobs/{held}").json()
    assert (job["state"], job["attempts"]) == ("queued", 0), worker.log.read_text()

    served.files.let(slow)
    second = WorkerProcess(served.data_dir, log=tmp_path / "second.log", **ENVIRONMENT)
    second.start()
    try:
        job = finished(client, held)
        assert (job["state"], job["attempts"]) == ("succeeded", 1)
    finally:
        second.kill()


def test_a_worker_that_stops_finishes_its_job_within_its_grace(served: Served, tmp_path: Path) -> None:
    client = served.client
    slow = served.files.hold("red.mp4")
    job_id = str(client.post("/jobs", json={"input": {"url": slow}}).json()["id"])
    worker = WorkerProcess(served.data_dir, log=tmp_path / "worker.log", **ENVIRONMENT)
    worker.start()
    try:
        until(lambda: state_of(client, job_id) == "running")
        process = worker.process
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        later = upload(client, served.video)
        served.files.let(slow)
        process.communicate(timeout=60)
        assert process.returncode == 0
        job = client.get(f"/jobs/{job_id}").json()
        assert (job["state"], job["attempts"]) == ("succeeded", 1)
        assert state_of(client, later) == "queued", "it takes no further job"
        client.delete(f"/jobs/{later}")
    finally:
        worker.kill()


def test_a_worker_waits_for_the_service_whose_store_it_shares(tmp_path: Path) -> None:
    """At its start, and while the service is replaced."""
    video = colour_video(tmp_path / "v.mp4", "red")
    worker = WorkerProcess(tmp_path / "data")
    worker.start()
    try:
        until(lambda: "waiting_for_store" in worker.log.read_text() or not worker.is_running)
        for _ in range(2):
            with (
                live_service(tmp_path / "data", VIDLEX_JOB_WORKERS="0", VIDLEX_DECODE_WORKERS="1") as url,
                httpx.Client(base_url=url, trust_env=False, timeout=30.0) as client,
            ):
                assert finished(client, upload(client, video))["state"] == "succeeded"
        assert worker.stop() == 0, worker.log.read_text()
    finally:
        worker.kill()


def test_a_worker_without_places_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "worker", "--model", "dummy", "--jobs", "0"]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2 and "0 jobs" in done.stderr


def test_a_job_of_the_default_model_has_the_answer_of_classify(tmp_path: Path) -> None:
    """Bit for bit."""
    video = colour_video(tmp_path / "v.mp4", "red", "green")
    with (
        live_service(tmp_path / "data", DEFAULT_MODEL, VIDLEX_FEATURE_CACHE_BYTES="0") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60.0) as client,
    ):
        for name in ("grass", "sky", "person"):
            assert client.post("/labels", json={"name": name}).status_code == 201
        job = finished(client, upload(client, video))
        assert job["state"] == "succeeded", job
        answer = client.post("/classify", files={"file": ("v.mp4", video.read_bytes(), "video/mp4")})
        alone = answer.json()
        assert not alone["usage"]["cached"] and len(alone["labels"]) == 3
        for member in ("video", "coverage", "labels", "model", "vocabulary_revision", "warnings", "receipt"):
            assert job["result"][member] == alone[member], member

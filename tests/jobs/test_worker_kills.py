"""Kill -9 of workers and the service over running jobs: nothing acknowledged is lost, no result is stored twice.

In between a worker is halted until others have taken its jobs away, and goes on as if nothing had happened.
TEST_KILLS sets the number of kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis

from support.held_files import ENVIRONMENT, held_files
from support.job_audit import check_places
from support.processes import until
from support.replicas import Replica, StoreProcess
from support.serving import COLOURS
from support.videos import write_video
from support.worker_nursery import Nursery
from vidlex.service.jobs.keys import lease
from vidlex.service.jobs.records import FINAL_STATES
from vidlex.service.jobs.store import JobLimits, JobStore

NUM_KILLS = int(os.environ.get("TEST_KILLS", "16"))
SERVICE_EVERY = 8  # of the kills, one is of the service
HALT_EVERY = 6  # kills
NUM_WORKERS = 2
MAX_QUEUED = 20
BATCH_LINES = 150
LEASE_SECONDS = 1.0
PARAMS = {"params": json.dumps({"params": {"num_frames": 200}})}
SHARED = {"job_lease_seconds": LEASE_SECONDS, "job_attempts": 100, "job_workers": 3, "decode_workers": 1}


class Submitter:
    """Submits videos as long as it runs; each request is repeated with its Idempotency-Key until it is answered."""

    def __init__(self, service: Replica, videos: dict[str, bytes], num_queued: Callable[[], int]) -> None:
        self._service = service
        self._num_queued = num_queued
        self._videos = videos
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.jobs: dict[str, str] = {}  # id -> label that its video shows
        self.num_repeats = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        names = sorted(self._videos)
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            number = 0
            while not self._ended.is_set():
                if self._num_queued() >= MAX_QUEUED:
                    time.sleep(0.02)
                    continue
                name = names[number % len(names)]
                job_id = self._submit(client, f"job-{number}", self._videos[name])
                assert job_id not in self.jobs
                self.jobs[job_id] = name
                number += 1

    def _submit(self, client: httpx.Client, key: str, video: bytes) -> str:
        while True:
            try:
                files = {"file": ("v.mp4", video, "video/mp4")}
                answer = client.post(
                    f"{self._service.url}/jobs", files=files, data=PARAMS, headers={"Idempotency-Key": key}
                )
            except httpx.TransportError:
                self.num_repeats += 1
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 202):
                return str(answer.json()["id"])
            assert answer.status_code in (429, 503), answer.text
            self.num_repeats += 1
            time.sleep(0.05)


@contextmanager
def running_store(folder: Path) -> Iterator[StoreProcess]:
    store = StoreProcess(folder)
    store.start()
    try:
        yield store
    finally:
        store.close()


def test_kills_lose_no_job_and_store_no_result_twice(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    videos = {name: _video(files / f"{name}.mp4", name) for name in ("red", "blue")}
    environment = {f"VIDLEX_{name.upper()}": str(value) for name, value in SHARED.items()}
    environment |= {"VIDLEX_JOBS_DIR": str(tmp_path / "jobs"), **ENVIRONMENT}
    fetching = {"fetch_hosts": ["127.0.0.1"], "private_networks": ["127.0.0.0/8"]}
    chance = random.Random(22)
    with running_store(tmp_path / "store") as store, held_files(files) as served:
        service = Replica(tmp_path / "service", store.url, **environment)
        shared: dict[str, Any] = {"redis_url": store.url, "jobs_dir": str(tmp_path / "jobs"), "model": "dummy"}
        try:
            service.start()
            service.wait()
            with Nursery(**SHARED, **shared, **fetching) as nursery:
                workers = [_worker(nursery, tmp_path, n) for n in range(NUM_WORKERS)]
                for name in videos:
                    answer = httpx.post(f"{service.url}/labels", json={"name": name}, trust_env=False)
                    assert answer.status_code == 201
                batch = _submit_batch(service.url, served.url)
                client = store.client()
                jobs = JobStore(client, JobLimits(lease_seconds=LEASE_SECONDS), lambda *_: None)
                submitter = Submitter(service, videos, lambda: jobs.counts()["queued"])
                submitter.start()
                for kill in range(1, NUM_KILLS + 1):
                    if kill % HALT_EVERY == 0:
                        _halt(min(_await_work(client, set(workers))), 2.5 * LEASE_SECONDS)
                    is_service = kill % SERVICE_EVERY == 0
                    candidates = {service.pid} if is_service else set(workers)
                    time.sleep(chance.uniform(0.0, 0.3))
                    victim = chance.choice(sorted(_await_work(client, candidates)))
                    if is_service:
                        service.kill()
                        service.start()
                    else:
                        nursery.kill(victim)
                        number = workers.index(victim)
                        workers[number] = _worker(nursery, tmp_path, number)
                submitter.stop()
                acknowledged = {batch, *submitter.jobs}
                until(lambda: all(jobs.get("default", job_id).state in FINAL_STATES for job_id in acknowledged))
            _check(jobs, submitter, batch, tmp_path / "jobs")
            entries = check_places(client)
            assert set(entries) == acknowledged, "no job was made twice"
            num_attempts = sum(entry.job.attempts for entry in entries.values())
            print(
                f"{NUM_KILLS} kills: {len(acknowledged)} jobs, {num_attempts} attempts, "
                f"{submitter.num_repeats} repeated requests"
            )
            assert num_attempts >= len(acknowledged) + NUM_KILLS // 2, "few kills have met running jobs"
        finally:
            service.kill()


def _video(path: Path, colour: str) -> bytes:
    """Of 20 s, so that kills meet jobs at work."""
    picture = np.tile(np.array(COLOURS[colour], np.uint8), (540, 960, 1))
    return write_video(path, width=960, height=540, num_frames=200, picture=lambda _: picture).read_bytes()


def _worker(nursery: Nursery, folder: Path, number: int) -> int:
    return nursery.start(folder / f"worker-{number}", folder / f"worker-{number}.log")


def _halt(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def _await_work(client: redis.Redis, candidates: set[int]) -> set[int]:
    """Those of the processes that work on a job, once there are some: leases hold the names of workers."""
    commands: Any = client
    found: set[int] = set()

    def some() -> bool:
        leases = list(commands.scan_iter(match=lease("*"), count=1000))
        names = [name for name in commands.mget(leases) if name] if leases else []
        found.update({int(name.split(b"-")[-2]) for name in names} & candidates)
        return bool(found)

    until(some)
    return found


def _submit_batch(url: str, files_url: str) -> str:
    lines = [{"custom_id": str(n), "url": f"{files_url}/{'red' if n % 2 else 'blue'}.mp4"} for n in range(BATCH_LINES)]
    manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    files = {"file": ("list.jsonl", manifest, "application/jsonl")}
    answer = httpx.post(f"{url}/jobs", files=files, data={"params": '{"kind":"batch"}'}, trust_env=False)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _check(jobs: JobStore, submitter: Submitter, batch: str, folder: Path) -> None:
    for job_id, name in submitter.jobs.items():
        job = jobs.get("default", job_id)
        assert job.state == "succeeded", job
        states = [event.data["state"] for event in jobs.events("default", job_id) if event.type == "state"]
        assert Counter(states)["succeeded"] == 1 and states[-1] == "succeeded", states
        result = jobs.result("default", job_id)
        assert result is not None and json.loads(result)["labels"][0]["name"] == name
    assert jobs.get("default", batch).state == "succeeded", jobs.get("default", batch)
    result = jobs.result("default", batch)
    assert result is not None
    found = json.loads(result)
    assert found["request_counts"] == {"total": BATCH_LINES, "completed": BATCH_LINES, "failed": 0}
    (path,) = (folder / "outputs").rglob(found["output"]["name"])
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted(int(line["custom_id"]) for line in lines) == list(range(BATCH_LINES))
    assert all(
        line["result"]["labels"][0]["name"] == ("red" if int(line["custom_id"]) % 2 else "blue") for line in lines
    )
    assert len(list(path.parent.iterdir())) == 2, "files of earlier runs are gone"

"""Classify jobs of a service: the answer of POST /classify, progress, labels before the end of a video."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.decode_hooks import write_made_up
from support.paths import TESTS
from support.serving import add, classify, serving, wait_until
from vidlex.service.decode.pool import DecodePool
from vidlex.service.errors import ShareExceeded
from vidlex.service.jobs import classify as handler
from vidlex.service.sharing.requester import Requester

RED, BLUE = [255, 0, 0], [0, 0, 255]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setattr(
            "vidlex.service.runtime.runtime.DecodePool", partial(DecodePool, entry="support.decode_hooks:decode")
        )
        with serving(tmp_path_factory.mktemp("data"), decode_workers=2) as client:
            add(client, "red", "green", "blue")
            yield client


def scene(path: Path, num_seconds: int, seconds_per_chunk: float = 0.0) -> Path:
    """A look per second, a shot of each colour per 10 s."""
    looks: list[dict[str, Any]] = [
        {"time_ms": 1000 * i, "colour": RED if i // 10 % 2 else BLUE, "starts_shot": i % 10 == 0}
        for i in range(num_seconds)
    ]
    return write_made_up(path, looks, duration_ms=1000 * num_seconds, seconds_per_chunk=seconds_per_chunk)


def submit(client: Any, video: Path, **params: Any) -> str:
    fields = {"params": json.dumps({"params": params})}
    answer = client.post("/jobs", files={"file": ("video.mp4", video.read_bytes(), "video/mp4")}, data=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def finished(client: Any, job_id: str) -> dict[str, Any]:
    states = ("succeeded", "failed", "cancelled", "expired")
    wait_until(lambda: client.get(f"/jobs/{job_id}").json()["state"] in states, "the job does not end")
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job


def events_of(client: Any, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    jobs = client.app.state.context.parts.background.jobs
    return [(event.type, dict(event.data)) for event in jobs.events("default", job_id)]


def test_a_long_video_has_labels_before_its_end(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_LABELS_SECONDS", 0.0)
    monkeypatch.setattr(handler, "_LABELS_SHARE", 0)
    video = scene(tmp_path / "v.mp4", 400, seconds_per_chunk=0.1)
    job_id = submit(client, video)
    job = finished(client, job_id)
    events = events_of(client, job_id)
    partial_labels = [data for kind, data in events if kind == "labels"]
    assert len(partial_labels) > 3
    until = [data["until_ms"] for data in partial_labels]
    assert until == sorted(until) and until[0] < 60_000 and all(data["end_ms"] == 400_000 for data in partial_labels)
    names = [[label["name"] for label in data["labels"] if label["matched"]] for data in partial_labels]
    assert names[-1] == ["blue", "red"] and len(partial_labels[0]["labels"]) == 3
    frames = [data["done"] for kind, data in events if kind == "progress" and data["stage"] == "encode"]
    assert frames and frames == sorted(frames)
    assert job["progress"]["unit"] == "frames"

    alone = classify(client, video).json()
    assert {key: value for key, value in alone.items() if key != "usage"} == {
        key: value for key, value in job["result"].items() if key != "usage"
    }


def test_the_labels_until_now_are_those_of_the_part(client: Any, tmp_path: Path) -> None:
    """Of a video whose second half is another one: the first labels do not know it."""
    looks = [{"time_ms": 1000 * i, "colour": RED if i < 100 else BLUE, "starts_shot": i == 100} for i in range(200)]
    job_id = submit(client, write_made_up(tmp_path / "v.mp4", looks, duration_ms=200_000))
    assert [label["name"] for label in finished(client, job_id)["result"]["labels"] if label["matched"]] == [
        "blue",
        "red",
    ]
    first = next(data for kind, data in events_of(client, job_id) if kind == "labels")
    assert first["until_ms"] <= 100_000
    assert [label["name"] for label in first["labels"] if label["matched"]] == ["red"]


def test_cancelling_a_job_stops_its_decoder(client: Any, tmp_path: Path) -> None:
    job_id = submit(client, scene(tmp_path / "v.mp4", 10_000, seconds_per_chunk=0.2))  # a minute
    wait_until(lambda: (client.get(f"/jobs/{job_id}").json()["progress"] or {}).get("stage") == "encode", "no frames")
    assert num_decoding(client) == 1
    assert client.delete(f"/jobs/{job_id}").status_code == 202
    job = finished(client, job_id)
    assert (job["state"], job["error"], job["result"]) == ("cancelled", None, None)
    assert num_decoding(client) == 0
    wait_until(lambda: metric(client, "vidlex_jobs_at_work") == 0, "the job is still at work")
    assert metric(client, 'vidlex_job_attempts_total{kind="classify",outcome="cancelled"}') == 1


def num_decoding(client: Any) -> float:
    return metric(client, "vidlex_queued_videos")


def metric(client: Any, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_a_job_waits_for_room_as_long_as_it_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "_MIN_PAUSE_SECONDS", 0.01)
    num_calls = 0

    def busy() -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls < 4:
            raise ShareExceeded("This client has too many frames", limit="queued_frames")
        return num_calls

    assert handler.patiently(busy, Requester(deadline=time.monotonic() + 60.0)) == 4
    num_calls = -1000
    with pytest.raises(ShareExceeded):
        handler.patiently(busy, Requester(deadline=time.monotonic() + 0.1))
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(ShareExceeded):
        handler.patiently(busy, Requester(cancelled=cancelled))


def test_a_bad_video_fails_with_its_code(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no video at all")
    job = finished(client, submit(client, path))
    assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 1, "unsupported_media")


def test_a_video_that_takes_too_long_fails(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setattr(
            "vidlex.service.runtime.runtime.DecodePool", partial(DecodePool, entry="support.decode_hooks:decode")
        )
        limits: dict[str, Any] = {"job_timeout_seconds": 0.5, "job_attempts": 1}
        with serving(tmp_path_factory.mktemp("data"), decode_workers=1, **limits) as client:
            job = finished(client, submit(client, scene(tmp_path / "v.mp4", 10_000, seconds_per_chunk=0.2)))
            assert (job["state"], job["dead"], job["error"]["code"]) == ("failed", True, "job_timeout")
            assert num_decoding(client) == 0

"""GET /jobs/{id}/export of a real service."""

from __future__ import annotations

import csv
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.held_files import ENVIRONMENT
from support.live import live_service
from support.processes import until
from support.serving import assert_problem, colour_video
from support.wire_server import wire_server


def connect(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with live_service(tmp_path_factory.mktemp("export") / "data", **ENVIRONMENT) as url, connect(url) as client:
        client.post("/labels", json={"labels": [{"name": name} for name in ("red", "blue")]}).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def job_id(client: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    video = colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red", "red")
    job = client.post("/jobs", files={"file": ("red.mp4", video.read_bytes(), "video/mp4")}).json()
    until(lambda: client.get(f"/jobs/{job['id']}").json()["state"] == "succeeded")
    return str(job["id"])


def test_each_format_has_its_type(client: httpx.Client, job_id: str) -> None:
    found = {kind: client.get(f"/jobs/{job_id}/export", params={"format": kind}) for kind in ("webvtt", "csv")}
    assert found["webvtt"].headers["content-type"] == "text/vtt; charset=utf-8"
    assert "00:00:00.000 --> 00:00:02.000\nred (" in found["webvtt"].text
    (row,) = csv.DictReader(io.StringIO(found["csv"].text))
    assert (row["label"], row["end_ms"]) == ("red", "2000") and row["uri"] == row["sha256"]
    named = client.get(f"/v1/jobs/{job_id}/export", params={"format": "label-studio", "uri": "https://m.example/r.mp4"})
    (task,) = named.json()
    assert task["data"]["video"] == "https://m.example/r.mp4"
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["red"]}


def test_the_query_of_a_url_is_not_exported(client: httpx.Client, tmp_path: Path) -> None:
    content = colour_video(tmp_path / "blue.mp4", "blue", "blue").read_bytes()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))

    with wire_server(answer) as server:
        job = client.post("/jobs", json={"input": {"url": f"{server.url}/blue.mp4?X-Amz-Signature=secret"}}).json()
        until(lambda: client.get(f"/jobs/{job['id']}").json()["state"] == "succeeded")
    texts = [client.get(f"/jobs/{job['id']}/export", params={"format": kind}).text for kind in ("csv", "label-studio")]
    assert all(f"{server.url}/blue.mp4" in text and "secret" not in text for text in texts)


def test_a_job_without_a_result_is_a_conflict(client: httpx.Client, tmp_path: Path) -> None:
    job = client.post("/jobs", files={"file": ("x.mp4", b"no video", "video/mp4")}).json()
    until(lambda: client.get(f"/jobs/{job['id']}").json()["state"] == "failed")
    assert_problem(client.get(f"/jobs/{job['id']}/export", params={"format": "csv"}), 409, "job_conflict")
    assert_problem(client.get(f"/jobs/{job['id']}/export", params={"format": "pdf"}), 422, "invalid_parameter")
    assert_problem(client.get("/jobs/job_0/export", params={"format": "csv"}), 404, "not_found")

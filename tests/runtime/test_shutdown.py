"""Shutdown under load: accepted requests are finished, later ones get 503."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from support.live import live_process
from support.processes import PATIENCE_SECONDS
from support.serving import add, classify, colour_video, wait_until

NUM_CLIENTS = 6
DRAIN_SECONDS = 4.0


def test_shutdown_under_load_serves_while_it_drains_and_answers_what_it_accepted(tmp_path: Path) -> None:
    red = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    ended = threading.Event()
    statuses: list[int] = []
    refusals: list[httpx.Response] = []
    closed_at: list[float] = []
    refused_at: list[float] = []

    with live_process(tmp_path / "data", VIDLEX_DRAIN_SECONDS=str(DRAIN_SECONDS)) as (url, process):

        def send() -> None:
            """Sends requests on new connections until the port is closed."""
            while not ended.is_set():
                try:
                    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
                        answer = classify(client, red)
                except httpx.TransportError:
                    closed_at.append(time.monotonic())
                    return
                statuses.append(answer.status_code)
                if answer.status_code == 503:
                    refusals.append(answer)
                    refused_at.append(time.monotonic())

        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            add(client, "red")
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            clients = [pool.submit(send) for _ in range(NUM_CLIENTS)]
            wait_until(lambda: statuses.count(200) > NUM_CLIENTS, "no load")
            signalled_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            try:
                wait_until(lambda: readiness_status(url) == "stopping", "the shutdown has not begun")
                process.wait(PATIENCE_SECONDS)
                seconds = time.monotonic() - signalled_at
            finally:
                ended.set()
            for done in clients:
                done.result(PATIENCE_SECONDS)

    log = [json.loads(line) for line in (tmp_path / "data.log").read_text().splitlines() if line.startswith("{")]
    logged = [entry["status"] for entry in log if entry.get("path") == "/classify"]
    assert Counter(statuses) == Counter(logged)  # every response has been received
    assert closed_at and min(closed_at) - signalled_at >= DRAIN_SECONDS
    # While proxies learn from /readyz that this replica ends, what they send is served.
    assert min(refused_at, default=signalled_at + DRAIN_SECONDS) - signalled_at >= DRAIN_SECONDS
    assert set(statuses) <= {200, 503} and 200 in statuses, Counter(statuses)
    assert all(r.json()["code"] == "stopping" for r in refusals)
    assert all(r.headers["connection"] == "close" and int(r.headers["retry-after"]) >= 1 for r in refusals)
    assert seconds >= DRAIN_SECONDS


def readiness_status(url: str) -> str:
    answer = httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False)
    return str(answer.json()["status"])


def test_idle_service_and_second_signal_stop_immediately(tmp_path: Path) -> None:
    with live_process(tmp_path / "data") as (_, process):
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
    with live_process(tmp_path / "data", VIDLEX_DRAIN_SECONDS="600") as (url, process):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: readiness_status(url) == "stopping", "the shutdown has not begun")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)

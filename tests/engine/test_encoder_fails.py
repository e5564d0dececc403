"""An encoder that fails under load, behind a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, classify, colour_video, settings_for, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.app import create_app

NUM_CLIENTS = 8
NUM_REQUESTS = 48


class FailingClassifier(DummyClassifier):
    """FailingClassifier on black videos, and on all while ``is_broken``. Passes wait for ``gate``."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.num_mixed = 0  # batches that hold black and other videos

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        black = [video.mean() < 20 for video in frames]
        self.num_mixed += any(black) and not all(black)
        if self.is_broken or any(black):
            raise RuntimeError("CUDA error in /home/user/kernel.py at 0xdeadbeef")
        return super().encode_video(frames)


@contextmanager
def served(folder: Path, classifier: FailingClassifier) -> Iterator[httpx.Client]:
    app = create_app(settings_for(folder, decode_workers=2), classifier=classifier)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
                wait_until(lambda: client.get("/readyz").status_code == 200, "not ready")
                yield client
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def metric(client: httpx.Client, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


@pytest.fixture(scope="module")
def videos_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: colour_video(folder / f"{name}.mp4", name).read_bytes() for name in ("red", "blue", "black")}


def test_only_requests_with_a_failing_video_fail(tmp_path: Path, videos_of: dict[str, bytes]) -> None:
    classifier = FailingClassifier()
    names = [("red", "black", "blue")[number % 3] for number in range(NUM_REQUESTS)]
    with served(tmp_path, classifier) as client, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        add(client, "red", "blue")
        alone = {name: classify(client, videos_of[name]).json()["labels"] for name in ("red", "blue")}
        classifier.entered.clear()
        classifier.gate.clear()
        try:
            held = clients.submit(classify, client, videos_of["red"])
            assert classifier.entered.wait(PATIENCE_SECONDS)
            sent = [clients.submit(classify, client, videos_of[name]) for name in names]
            # While one batch is held in the encoder, the videos of the other clients are queued for the next one.
            wait_until(
                lambda: metric(client, "vidlex_queued_frames") == 4 * (NUM_CLIENTS - 1), "the videos are not queued"
            )
        finally:
            classifier.gate.set()
        assert held.result().status_code == 200
        answers = [answer.result() for answer in sent]
        for name, answer in zip(names, answers, strict=True):
            if name == "black":
                assert_problem(answer, 503, "encode_failed")
            else:
                assert answer.status_code == 200, answer.text
                assert answer.json()["labels"] == alone[name]
        assert classifier.num_mixed, "no batch held both kinds"
        wait_until(lambda: client.get("/readyz").status_code == 200, "a bad video makes the service unready")


def test_readiness_follows_the_state_of_the_encoder(tmp_path: Path, videos_of: dict[str, bytes]) -> None:
    classifier = FailingClassifier()
    with served(tmp_path, classifier) as client, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        add(client, "red")
        classifier.is_broken = True
        for answer in clients.map(lambda _: classify(client, videos_of["red"]), range(NUM_CLIENTS)):
            assert_problem(answer, 503, "encode_failed")
        ready = client.get("/readyz")
        assert ready.status_code == 503, "ready although requests and probes fail"
        assert {name for name, check in ready.json()["checks"].items() if not check["ok"]} == {"encoder"}
        assert client.get("/livez").status_code == 200
        classifier.is_broken = False
        wait_until(lambda: client.get("/readyz").status_code == 200, "a probe does not detect the recovery")
        assert classify(client, videos_of["red"]).json()["labels"][0]["name"] == "red"

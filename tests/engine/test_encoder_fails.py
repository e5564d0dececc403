"""An encoder that fails under load, behind a real server: who pays for it, and what readiness says meanwhile."""

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


class Fails(DummyClassifier):
    """On every black video, or while ``broken`` on any. Videos wait for each other while ``gate`` is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.num_mixed = 0
        """Batches with a black video beside others."""

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(PATIENCE_SECONDS)
        black = [video.mean() < 20 for video in frames]
        self.num_mixed += any(black) and not all(black)
        if self.broken or any(black):
            raise RuntimeError("CUDA error in /home/somebody/kernel.py at 0xdeadbeef")
        return super().encode_video(frames)


@contextmanager
def served(folder: Path, classifier: Fails) -> Iterator[httpx.Client]:
    app = create_app(settings_for(folder, decode_workers=2), classifier=classifier)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
                wait_until(lambda: client.get("/readyz").status_code == 200, "it is not ready")
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


def test_only_the_requests_that_the_encoder_fails_on_fail(tmp_path: Path, videos_of: dict[str, bytes]) -> None:
    classifier = Fails()
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
            # While one batch is held in the encoder the other clients' videos come to wait, and share the next one.
            wait_until(lambda: metric(client, "vidlex_queued_frames") == 4 * (NUM_CLIENTS - 1), "they do not wait")
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
        wait_until(lambda: client.get("/readyz").status_code == 200, "one bad video is not a broken encoder")


def test_readiness_tells_when_the_encoder_is_broken_and_when_it_is_well(
    tmp_path: Path, videos_of: dict[str, bytes]
) -> None:
    classifier = Fails()
    with served(tmp_path, classifier) as client, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        add(client, "red")
        classifier.broken = True
        for answer in clients.map(lambda _: classify(client, videos_of["red"]), range(NUM_CLIENTS)):
            assert_problem(answer, 503, "encode_failed")
        told = client.get("/readyz")
        assert told.status_code == 503, "nothing that was sent could be encoded, nor could a probe"
        assert {name for name, check in told.json()["checks"].items() if not check["ok"]} == {"encoder"}
        assert client.get("/livez").status_code == 200
        classifier.broken = False
        wait_until(lambda: client.get("/readyz").status_code == 200, "a probe finds out that it works")
        assert classify(client, videos_of["red"]).json()["labels"][0]["name"] == "red"

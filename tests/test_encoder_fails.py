"""An encoder that fails under load, behind a real server: who pays for it, and what readiness says meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from serving import add, assert_problem, classify, colour_video, settings_for, wait_until

from model.dummy import DummyClassifier
from service.app import create_app

NUM_CLIENTS = 8
NUM_REQUESTS = 48


class Fails(DummyClassifier):
    """On every black video, or while ``broken`` on any. Slow enough that videos wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.num_mixed = 0
        """Batches with a black video beside others."""

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        time.sleep(0.03)
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
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                wait_until(lambda: client.get("/readyz").status_code == 200, "it is not ready")
                yield client
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


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
        answers = list(clients.map(lambda name: classify(client, videos_of[name]), names))
        for name, answer in zip(names, answers, strict=True):
            if name == "black":
                assert_problem(answer, 503, "encode_failed")
            else:
                assert answer.status_code == 200, answer.text
                assert answer.json()["labels"] == alone[name]
        assert classifier.num_mixed, "no batch held both kinds"
        wait_until(lambda: client.get("/readyz").status_code == 200, "one bad video is not a broken encoder", seconds=2)


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
        wait_until(lambda: client.get("/readyz").status_code == 200, "a probe finds out that it works", seconds=10)
        assert classify(client, videos_of["red"]).json()["labels"][0]["name"] == "red"

"""A load generator for ``POST /classify``: clients, and the videos that they send."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np

from vidlex.service.bench.live import http_client

LABELS = ("red", "blue", "animal", "food", "city", "moving right", "growing", "desert")
_serial_numbers = itertools.count(1)
_HEAD = (
    b'--7e3a\r\nContent-Disposition: form-data; name="file"; filename="video.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
)
_TAIL = b"\r\n--7e3a--\r\n"
_FORM = {"Content-Type": "multipart/form-data; boundary=7e3a"}


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: int | None  # seconds
    body: bytes


class Client:
    """Built on ``http.client``, which takes a fifth of the time of httpx: clients and service share the cores."""

    def __init__(self, url: str, *, local_address: str | None = None) -> None:
        address = urlsplit(url)
        source = None if local_address is None else (local_address, 0)
        self._connection = HTTPConnection(str(address.hostname), address.port, timeout=120.0, source_address=source)

    def classify(self, video: bytes) -> Answer:
        """Raises OSError or HTTPException if there is no answer."""
        try:
            self._connection.request("POST", "/classify", _HEAD + video + _TAIL, _FORM)
        except BrokenPipeError:
            pass  # refused before the whole body was sent; the answer can still be read
        except OSError:
            self._connection.close()
            raise
        try:
            answer = self._connection.getresponse()
            retry_after, body = answer.headers.get("Retry-After"), answer.read()
            if answer.status != 200:
                self._connection.close()  # the service closes idle connections before a client retries
            return Answer(answer.status, None if retry_after is None else int(retry_after), body)
        except (OSError, HTTPException):
            self._connection.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass
class Answers:
    seconds: float = 0.0  # of the whole run
    latencies: list[float] = field(default_factory=list)  # seconds of requests with status 200
    statuses: Counter[int] = field(default_factory=Counter)
    # Broken connections, and errors other than 429 with Retry-After.
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / max(self.seconds, 1e-9)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, 100 * share)) if self.latencies else float("nan")


def write_videos(
    folder: Path, *, count: int, seconds: float, width: int = 640, height: int = 360, fps: int = 25
) -> list[bytes]:
    """H.264 with distinct moving content (noise and edges), and a keyframe every two seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for number in range(count):
        rng = np.random.default_rng(number)
        ground = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        path = folder / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 2 * fps
            stream.options = {"preset": "veryfast", "crf": "28"}
            for frame_number in range(max(1, round(seconds * fps))):
                picture = np.roll(ground, (frame_number * (number + 1), 2 * frame_number), (0, 1))[:height, :width]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        videos.append(path.read_bytes())
    return videos


def with_unique_bytes(video: bytes) -> bytes:
    # An extra empty box, so that no cache holds the video.
    return video + struct.pack(">I4sQ", 16, b"free", next(_serial_numbers))


def add_labels(url: str, names: Sequence[str] = LABELS) -> None:
    body = {"labels": [{"name": name} for name in names]}
    with http_client(url, timeout_seconds=600.0) as client:
        client.post("/labels", json=body, params={"if_exists": "return"}).raise_for_status()


def classify_all(
    url: str,
    videos: Sequence[bytes],
    *,
    num_requests: int,
    num_clients: int,
    on_answer: Callable[[int], None] | None = None,
) -> Answers:
    """``num_requests`` in total, all with distinct bytes; each client has one request at a time.

    ``on_answer`` receives the number of each finished request, from several threads.
    """
    found, lock, numbers = Answers(), threading.Lock(), itertools.count()

    def client(_: int) -> None:
        with Client(url) as http:
            while (number := next(numbers)) < num_requests:
                send(http, with_unique_bytes(videos[number % len(videos)]), found, lock)
                if on_answer is not None:
                    on_answer(number)

    began = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        list(clients.map(client, range(num_clients)))
    found.seconds = time.perf_counter() - began
    return found


def send(http: Client, data: bytes, found: Answers, lock: threading.Lock) -> Answer | None:
    """Records the request in ``found``. Returns None if there was no answer."""
    began = time.perf_counter()
    try:
        answer = http.classify(data)
    except (OSError, HTTPException) as error:
        with lock:
            found.failures.append(f"no answer: {type(error).__name__}")
        return None
    seconds = time.perf_counter() - began
    with lock:
        found.statuses[answer.status] += 1
        if answer.status == 200:
            found.latencies.append(seconds)
        elif answer.status != 429 or answer.retry_after is None:
            found.failures.append(f"{answer.status}: {answer.body.decode('utf-8', 'replace')[:200]}")
    return answer

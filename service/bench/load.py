"""Clients that send videos to a service, and the videos that they send."""

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
_numbers = itertools.count(1)
_HEAD = b'--7e3a\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
_TAIL = b"\r\n--7e3a--\r\n"
_FORM = {"Content-Type": "multipart/form-data; boundary=7e3a"}


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: int | None
    """Seconds."""
    body: bytes


class Client:
    """A connection for videos, made when it is needed. The form is written by hand and the connection is the standard
    library's, which takes a fifth of the time of httpx: the clients share the cores with what they measure."""

    def __init__(self, url: str, *, local_address: str | None = None) -> None:
        place = urlsplit(url)
        source = None if local_address is None else (local_address, 0)
        self._connection = HTTPConnection(str(place.hostname), place.port, timeout=120.0, source_address=source)

    def classify(self, video: bytes) -> Answer:
        """Raises OSError or HTTPException when there is no answer."""
        try:
            self._connection.request("POST", "/classify", _HEAD + video + _TAIL, _FORM)
        except BrokenPipeError:
            pass  # refused before all was sent: there is an answer
        except OSError:
            self._connection.close()
            raise
        try:
            answer = self._connection.getresponse()
            told, body = answer.headers.get("Retry-After"), answer.read()
            if answer.status != 200:
                self._connection.close()  # who is refused comes back later, when the service has long closed it
            return Answer(answer.status, None if told is None else int(told), body)
        except (OSError, HTTPException):
            self._connection.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass
class Answers:
    """What some clients saw. Seconds are those of single requests, but for ``seconds``, the whole time."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of those answered with 200."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Refusals without a Retry-After, and connections that broke."""

    @property
    def rate(self) -> float:
        """Accepted requests per second."""
        return len(self.latencies) / max(self.seconds, 1e-9)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, 100 * share)) if self.latencies else float("nan")


def write_clips(
    folder: Path, *, count: int, seconds: float, width: int = 640, height: int = 360, fps: int = 25
) -> list[bytes]:
    """H.264 videos, each of other moving content, as a camera's: noise and edges, a keyframe every two seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        rng = np.random.default_rng(number)
        ground = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        path = folder / f"clip-{number}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 2 * fps
            stream.options = {"preset": "veryfast", "crf": "28"}
            for frame_number in range(max(1, round(seconds * fps))):
                picture = np.roll(ground, (frame_number * (number + 1), 2 * frame_number), (0, 1))[:height, :width]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        clips.append(path.read_bytes())
    return clips


def unique(clip: bytes) -> bytes:
    """The same video in other bytes (an empty box at the end), which no cache has seen."""
    return clip + struct.pack(">I4sQ", 16, b"free", next(_numbers))


def add_labels(url: str, names: Sequence[str] = LABELS) -> None:
    """All in one request: the encoder then reads them in batches."""
    body = {"labels": [{"name": name} for name in names]}
    with http_client(url, timeout_seconds=600.0) as client:
        client.post("/labels", json=body, params={"if_exists": "return"}).raise_for_status()


def classify_all(
    url: str,
    clips: Sequence[bytes],
    *,
    num_requests: int,
    num_clients: int,
    fresh: bool = True,
    on_answer: Callable[[int], None] | None = None,
) -> Answers:
    """``num_requests`` in all, by ``num_clients`` that each send the next one when they have an answer.

    ``fresh``: no two requests of the same bytes. ``on_answer`` is told the number of each request that is done.
    """
    found, lock, turns = Answers(), threading.Lock(), itertools.count()

    def client(_: int) -> None:
        with Client(url) as http:
            for turn in iter(lambda: next(turns), None):
                if turn >= num_requests:
                    return
                clip = clips[turn % len(clips)]
                data = unique(clip) if fresh else clip
                send(http, data, found, lock)
                if on_answer is not None:
                    on_answer(turn)

    began = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        list(clients.map(client, range(num_clients)))
    found.seconds = time.perf_counter() - began
    return found


def send(http: Client, data: bytes, found: Answers, lock: threading.Lock) -> Answer | None:
    """One request, noted in ``found``; None if there was no answer."""
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

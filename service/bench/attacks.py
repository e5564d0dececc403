"""Hostile clients of a service that the benchmark started itself, in a process of their own.

They share the machine with the service, at a low priority: elsewhere they would have machines of their own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import httpx
import numpy as np

from vidlex.service.access.api_keys import new_key
from vidlex.service.bench.harness import BenchError
from vidlex.service.bench.live import http_client
from vidlex.service.bench.load import with_unique_bytes, write_videos

NUM_CLOSED = 64  # requests whose sockets are closed at once
NUM_SLOW = 66  # slow files at the same time
NUM_SILENT = 1200  # connections
NUM_UNKNOWN_KEYS = 690_000
_PAUSE_SECONDS = 0.2
_END_SECONDS = 30.0
_numbers = itertools.count()


def slow_video(*, seconds: float = 5.0, width: int = 7680, height: int = 4320) -> bytes:
    """H.264 with large frames, 10 per second, that take long to decode and few bytes to send."""
    fps, gop = 10, 10
    memory = io.BytesIO()
    blocks = np.random.default_rng(0).integers(60, 200, (height // 2 // 32 + 1, width // 2 // 32 + 1), np.uint8)
    chroma = np.kron(blocks, np.ones((32, 32), np.uint8))[: height // 2, : width // 2]
    luma = np.kron(chroma, np.ones((2, 2), np.uint8))
    with av.open(memory, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        stream.options = {"preset": "ultrafast", "crf": "40", "x264-params": "scenecut=0:bframes=0"}
        packets = []
        for number in range(gop):
            moved = np.roll(luma, 4 * number, 1)
            flat = np.concatenate([moved.reshape(-1), chroma.reshape(-1), chroma.reshape(-1)])
            frame = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            packets += stream.encode(frame)
        packets += stream.encode()
        written = [(bytes(packet), packet.pts, packet.is_keyframe, packet.time_base) for packet in packets]
        for repetition in range(max(1, round(seconds * fps / gop))):  # the same group of pictures, encoded once
            for data, pts, is_keyframe, time_base in written:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, is_keyframe
                packet.pts = packet.dts = pts + round(Fraction(repetition * gop, fps) / time_base)
                container.mux(packet)
    return memory.getvalue()


def _repeated(stop: threading.Event, action: Callable[[], None]) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError, httpx.HTTPError):
            action()
        stop.wait(_PAUSE_SECONDS)


@contextmanager
def _background(num_threads: int, action: Callable[[], None]) -> Iterator[None]:
    """Calls ``action`` in threads until the end of the context."""
    stop = threading.Event()
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(num_threads):
            threads.submit(_repeated, stop, action)
        try:
            yield
        finally:
            stop.set()


@contextmanager
def closed_sockets(url: str, key: str, video: bytes) -> Iterator[None]:
    """Classifications with 64 new candidate labels each, whose clients leave as soon as they have sent them."""
    address = urlsplit(url)

    def send_all() -> None:
        for _ in range(NUM_CLOSED):
            names = [f"candidate {next(_numbers)}" for _ in range(64)]
            body = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
            body += json.dumps({"candidate_labels": names}).encode()
            body += b'\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="v.mp4"\r\n\r\n'
            body += with_unique_bytes(video) + b"\r\n--b--\r\n"
            head = f"POST /classify HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
            head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((str(address.hostname), int(address.port or 80)), 10) as client:
                client.sendall(head.encode() + body)

    with _background(1, send_all):
        yield


@contextmanager
def slow_files(url: str, key: str, video: bytes, num_clients: int = NUM_SLOW) -> Iterator[None]:
    """Files that take long to decode, all frames of them asked for, from one client."""
    headers = {"Authorization": f"Bearer {key}"}

    def send() -> None:
        with http_client(url, timeout_seconds=60.0) as client:
            files = {"file": ("slow.mp4", with_unique_bytes(video), "video/mp4")}
            client.post("/classify", files=files, data={"params": '{"num_frames": 64}'}, headers=headers)

    with _background(num_clients, send):
        yield


@contextmanager
def silent_connections(url: str, count: int = NUM_SILENT) -> Iterator[None]:
    """Connections that send nothing, or half of a header."""
    address = urlsplit(url)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    with ExitStack() as stack:

        def connect() -> None:
            for number in range(count):
                client = stack.enter_context(
                    socket.create_connection((str(address.hostname), int(address.port or 80)), 5)
                )
                if number % 2:
                    client.sendall(b"POST /classify HTTP/1.1\r\nHost: exam")

        with contextlib.suppress(OSError):  # refused: what it is for
            connect()
        yield


@contextmanager
def large_objects(url: str, key: str, num_keys: int = NUM_UNKNOWN_KEYS) -> Iterator[None]:
    """JSON objects with hundreds of thousands of unknown keys."""
    body = ("{" + ",".join(f'"k{number:06d}":1' for number in range(num_keys)) + "}").encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def send() -> None:
        with http_client(url, timeout_seconds=60.0) as client:
            client.post("/labels", content=body, headers=headers)

    with _background(1, send):
        yield


@dataclass(frozen=True)
class Attack:
    """What is sent at once; all of it ends with the context of `attacking`."""

    url: str
    reader: str  # API key
    writer: str
    num_silent: int = NUM_SILENT
    num_slow: int = NUM_SLOW
    num_keys: int = NUM_UNKNOWN_KEYS
    slow_seconds: float = 5.0
    slow_width: int = 7680
    slow_height: int = 4320


@contextmanager
def attacking(attack: Attack) -> Iterator[None]:
    """From the time when all connections are open and the files are ready. Raises BenchError."""
    command = [sys.executable, "-P", "-m", "vidlex.service.bench.attacks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(attack)) + "\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise BenchError("the attackers did not start")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _attack() -> None:
    """In the process of the attackers: until standard input ends."""
    os.nice(10)
    attack = Attack(**json.loads(sys.stdin.readline()))
    slow = slow_video(seconds=attack.slow_seconds, width=attack.slow_width, height=attack.slow_height)
    with tempfile.TemporaryDirectory(prefix="vidlex-attacks-") as folder:
        (short,) = write_videos(Path(folder), count=1, seconds=1.0)
    with ExitStack() as stack:
        stack.enter_context(silent_connections(attack.url, attack.num_silent))
        stack.enter_context(slow_files(attack.url, attack.reader, slow, attack.num_slow))
        stack.enter_context(closed_sockets(attack.url, attack.reader, short))
        stack.enter_context(large_objects(attack.url, attack.writer, attack.num_keys))
        print("started", flush=True)
        sys.stdin.read()
        os._exit(0)  # without waiting for answers


def key_file(path: Path, *scopes: str) -> list[str]:
    """Writes new API keys to a file for `VIDLEX_API_KEYS_FILE` and returns them."""
    keys = [new_key()[1] for _ in scopes]
    path.write_text("".join(f"{key} scope={scope}\n" for key, scope in zip(keys, scopes, strict=True)))
    return keys


if __name__ == "__main__":
    _attack()

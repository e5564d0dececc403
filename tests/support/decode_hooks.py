"""The decode function of tests of the pool: the file name selects its behaviour."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vidlex.model.decode.decoder import decode_chunks
from vidlex.model.decode.limits import DecodeError
from vidlex.model.types import FrameBatch, FrameContent, VideoInfo

MADE_UP = b'{"made_up": '  # a file that begins so, whatever its name, is a list of looks


def decode(path: Path, **job: Any) -> Iterator[FrameBatch]:
    hook = _HOOKS.get(path.stem)
    if hook is None:
        try:
            with path.open("rb") as file:
                hook = _made_up if file.read(len(MADE_UP)) == MADE_UP else decode_chunks
        except OSError:
            hook = decode_chunks
    return hook(path, **job)


def write_made_up(
    path: Path,
    looks: list[dict[str, Any]],
    *,
    duration_ms: int,
    num_repeats: int = 1,
    seconds_per_chunk: float = 0.0,
) -> Path:
    """A video as `_made_up` decodes it. A look has time_ms, colour, and flags of FrameContent; ``num_repeats`` times
    all of them follow each other, ``duration_ms`` apart.
    """
    content = {
        "looks": looks,
        "duration_ms": duration_ms,
        "num_repeats": num_repeats,
        "seconds_per_chunk": seconds_per_chunk,
    }
    path.write_bytes(MADE_UP + json.dumps(content).encode() + b"}")
    return path


def _made_up(path: Path, *, max_chunk_frames: int, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    content = json.loads(path.read_bytes())["made_up"]
    period, repeats, looks = content["duration_ms"], content["num_repeats"], content["looks"]
    info = VideoInfo(period * repeats, 8, 8, 10.0, "made_up", len(looks) * repeats, path.stat().st_size)
    total = len(looks) * repeats
    for first in range(0, total, max_chunk_frames):
        time.sleep(content["seconds_per_chunk"])
        part = [(number // len(looks), looks[number % len(looks)]) for number in range(first, total)[:max_chunk_frames]]
        yield FrameBatch(
            np.stack([_plain(look["colour"], geometry.image_size) for _, look in part]),
            tuple(repeat * period + look["time_ms"] for repeat, look in part),
            info,
            content=FrameContent(
                *(
                    np.array([look.get(name, False) for _, look in part], np.bool_)
                    for name in ("is_blank", "is_repeated", "starts_shot")
                )
            ),
        )


def _plain(colour: list[int], side: int) -> Any:
    return np.tile(np.array(colour, np.uint8), (side, side, 1))


def _batch(number: int, geometry: Any, num_frames: int = 1) -> FrameBatch:
    """Frames of which each pixel is ``number``, 100 ms apart."""
    side = geometry.image_size
    frames = np.full((num_frames, side, side, 3), number, np.uint8)
    times = tuple(100 * number + i for i in range(num_frames))
    return FrameBatch(frames, times, VideoInfo(10_000, 8, 8, 10.0, "h264", 100, 100))


def _endless(path: Path, *, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """Writes a byte to a FIFO of the test, if there is one, before it yields a chunk."""
    steps = path.parent / "steps"
    descriptor = os.open(steps, os.O_WRONLY) if steps.exists() else None
    for number in range(200):
        if descriptor is not None:
            os.write(descriptor, b".")
        yield _batch(number, geometry)


def _hang_later(path: Path, *, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    yield _batch(1, geometry)
    yield from _hang(path)


def _crash_later(path: Path, *, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    yield from _crash(path)


def _fail_later(path: Path, *, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    raise DecodeError("video_too_long", "The video is too long after all.")


def _forge(path: Path, *, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """After one chunk the process sends the file's content instead of what it should."""
    from vidlex.service.decode import wire

    yield _batch(0, geometry)
    forged, send = json.loads(path.read_text()), wire.send
    length_only = forged.get("length_only", False)

    def send_forged(channel: socket.socket, message: dict[str, Any]) -> None:
        if length_only:
            channel.sendall(b"\xff\xff\xff\xff")
        else:
            send(channel, {**message, **forged})

    with mock.patch.object(wire, "send", send_forged):
        yield _batch(1, geometry)
        yield _batch(2, geometry)


def _hang(path: Path, **_: Any) -> Iterator[FrameBatch]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    if (path.parent / "started").exists():  # a FIFO of the test
        (path.parent / "started").open("w").close()
    while True:
        signal.pause()
    yield


def _crash(path: Path, **_: Any) -> Iterator[FrameBatch]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def _exit(path: Path, **_: Any) -> Iterator[FrameBatch]:
    os._exit(0)


def _allocate(path: Path, **job: Any) -> Iterator[FrameBatch]:
    blocks = [np.empty(2**28, np.uint8) for _ in range(1000)]
    raise AssertionError(f"{len(blocks)} blocks were allocated")


def _bug(path: Path, **_: Any) -> Iterator[FrameBatch]:
    raise KeyError(f"a bug at {path}")


def _wrong_size(path: Path, **_: Any) -> Iterator[FrameBatch]:
    """More frames than requested, which do not fit into the shared memory."""
    info = VideoInfo(1000, 8, 8, 10.0, "h264", 10, 100)
    yield FrameBatch(np.zeros((600, 64, 64, 3), np.uint8), tuple(range(600)), info)


def _missing_timestamp(path: Path, *, num_frames: int, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """One timestamp too few, which the pool must detect."""
    batch = _batch(0, geometry, num_frames)
    object.__setattr__(batch, "timestamps_ms", batch.timestamps_ms[1:])
    yield batch


def _gate(path: Path, **job: Any) -> Iterator[FrameBatch]:
    """Signals its start, then blocks until the test opens and closes the FIFO."""
    (path.parent / "started").open("w").close()
    path.open("rb").read()
    return decode_chunks(path.parent / "numbers.mp4", **job)


def _report(path: Path, **_: Any) -> Iterator[FrameBatch]:
    """Raises an error whose text is the state of this process as JSON."""
    try:
        with socket.socket() as probe:
            probe.settimeout(1)
            probe.connect(("127.0.0.1", int(path.read_text())))
        network = True
    except OSError:
        network = False
    facts = {
        "torch": "torch" in sys.modules,
        "network": network,
        "secrets": sorted(name for name in os.environ if "VIDLEX" in name),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "file_size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
        "streams": [Path(f"/proc/self/fd/{number}").readlink().as_posix() for number in (0, 1, 2)],
    }
    raise DecodeError("undecodable_video", json.dumps(facts))


def _only_torchcodec(path: Path, **job: Any) -> Iterator[FrameBatch]:
    """Without the fallback to PyAV."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("PyAV was called")

    with mock.patch("vidlex.model.decode.video_file.read_by_time", fail):
        yield from decode_chunks(path, **job)


_HOOKS: dict[str, Callable[..., Iterator[FrameBatch]]] = {
    "endless": _endless,
    "hang_later": _hang_later,
    "crash_later": _crash_later,
    "fail_later": _fail_later,
    "forge": _forge,
    "hang": _hang,
    "crash": _crash,
    "exit": _exit,
    "allocate": _allocate,
    "bug": _bug,
    "wrong_size": _wrong_size,
    "missing_timestamp": _missing_timestamp,
    "gate": _gate,
    "report": _report,
    "only_torchcodec": _only_torchcodec,
}

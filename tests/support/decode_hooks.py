"""The decode function of tests of the pool: the file's content selects its behaviour.

A decode process reaches no path, and so no file of a test but the one that it is given. FIFOs in TMPDIR, which it opens
when it starts, connect it with the test: see `Signals`.
"""

from __future__ import annotations

import json
import os
import resource
import select
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
from vidlex.model.decode.source import OpenFile, num_bytes_of
from vidlex.model.types import FrameBatch, FrameContent, VideoInfo

_MARK = b'{"hook": '  # begins a file that is none
_PATIENCE_SECONDS = 120.0
_NAMES = ("reports", "answers")  # FIFOs, of the process and of the test
_FIFOS = {
    name: os.open(path, os.O_RDWR)  # which does not wait for the other side
    for name in _NAMES
    if (path := Path(os.environ.get("TMPDIR", "/")) / name).is_fifo()
}


_STREAMS = [Path(f"/proc/self/fd/{number}").readlink().as_posix() for number in (0, 1, 2)]


class Signals:
    """On the side of the test: one byte for each report of a hook, and for each answer to it. Set TMPDIR to ``folder``
    for the start of the pool.
    """

    def __init__(self, folder: Path) -> None:
        for name in _NAMES:
            os.mkfifo(folder / name)
        self._reports, self._answers = (os.open(folder / name, os.O_RDWR | os.O_NONBLOCK) for name in _NAMES)

    def num_reports(self, expected: int, then_seconds: float = 0.0) -> int:
        """Since the last call, once there are ``expected``, and after a time for one more."""
        seen = 0
        while select.select([self._reports], [], [], _PATIENCE_SECONDS if seen < expected else then_seconds)[0]:
            seen += len(os.read(self._reports, 1 if seen < expected else 100))
        return seen

    def answer(self) -> None:
        os.write(self._answers, b".")

    def close(self) -> None:
        os.close(self._reports)
        os.close(self._answers)


def write_hook(path: Path, name: str, content: Any = None, *, start: bytes = b"") -> Path:
    """A file for the hook ``name``; ``start``: an MP4 file that it begins with."""
    data = _MARK + json.dumps(name).encode() + b', "content": ' + json.dumps(content).encode() + b"}"
    path.write_bytes(start + (8 + len(data)).to_bytes(4, "big") + b"free" + data if start else data)
    return path


def decode(file: OpenFile, **job: Any) -> Iterator[FrameBatch]:
    with file.open() as opened:
        data = opened.read()
    start = data.rfind(_MARK)
    if start < 0:
        return decode_chunks(file, **job)
    fields = json.loads(data[start:])
    job |= {"file": file, "content": fields["content"]}
    return _HOOKS[fields["hook"]](**job)


def _report_to_test() -> None:
    if "reports" in _FIFOS:
        os.write(_FIFOS["reports"], b".")


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
    return write_hook(path, "made_up", content)


def _made_up(
    file: OpenFile, *, content: dict[str, Any], max_chunk_frames: int, geometry: Any, **_: Any
) -> Iterator[FrameBatch]:
    period, repeats, looks = content["duration_ms"], content["num_repeats"], content["looks"]
    info = VideoInfo(period * repeats, 8, 8, 10.0, "made_up", len(looks) * repeats, num_bytes_of(file))
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


def _endless(*, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """Reports before it yields a chunk."""
    for number in range(200):
        _report_to_test()
        yield _batch(number, geometry)


def _hang_later(*, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    yield _batch(1, geometry)
    yield from _hang()


def _crash_later(*, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    yield from _crash()


def _fail_later(*, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    yield _batch(0, geometry)
    raise DecodeError("video_too_long", "The video is too long after all.")


def _forge(*, content: dict[str, Any], geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """After one chunk the process sends the file's content instead of what it should."""
    from vidlex.service.decode import wire

    yield _batch(0, geometry)
    forged, send = content, wire.send
    length_only = forged.get("length_only", False)

    def send_forged(channel: socket.socket, message: dict[str, Any]) -> None:
        if length_only:
            channel.sendall(b"\xff\xff\xff\xff")
        else:
            send(channel, {**message, **forged})

    with mock.patch.object(wire, "send", send_forged):
        yield _batch(1, geometry)
        yield _batch(2, geometry)


def _hang(**_: Any) -> Iterator[FrameBatch]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    _report_to_test()
    while True:
        signal.pause()
    yield


def _crash(**_: Any) -> Iterator[FrameBatch]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def _exit(**_: Any) -> Iterator[FrameBatch]:
    os._exit(0)


def _allocate(**_: Any) -> Iterator[FrameBatch]:
    blocks = [np.empty(2**28, np.uint8) for _ in range(1000)]
    raise AssertionError(f"{len(blocks)} blocks were allocated")


def _bug(file: OpenFile, **_: Any) -> Iterator[FrameBatch]:
    raise KeyError(f"a bug at {file.descriptor}")


def _wrong_size(**_: Any) -> Iterator[FrameBatch]:
    """More frames than requested, which do not fit into the shared memory."""
    info = VideoInfo(1000, 8, 8, 10.0, "h264", 10, 100)
    yield FrameBatch(np.zeros((600, 64, 64, 3), np.uint8), tuple(range(600)), info)


def _missing_timestamp(*, num_frames: int, geometry: Any, **_: Any) -> Iterator[FrameBatch]:
    """One timestamp too few, which the pool must detect."""
    batch = _batch(0, geometry, num_frames)
    object.__setattr__(batch, "timestamps_ms", batch.timestamps_ms[1:])
    yield batch


def _gate(file: OpenFile, *, content: None, **job: Any) -> Iterator[FrameBatch]:
    """Reports its start, then waits for the test's answer."""
    _report_to_test()
    os.read(_FIFOS["answers"], 1)
    return decode_chunks(file, **job)


def _report(*, content: int, **_: Any) -> Iterator[FrameBatch]:
    """Raises an error whose text is the state of this process as JSON."""
    try:
        with socket.socket() as probe:
            probe.settimeout(1)
            probe.connect(("127.0.0.1", content))
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
        "streams": _STREAMS,
    }
    raise DecodeError("undecodable_video", json.dumps(facts))


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
    "made_up": _made_up,
}


def decode_only_by_torchcodec(file: OpenFile, **job: Any) -> Iterator[FrameBatch]:
    """Without the fallback to PyAV."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("PyAV was called")

    with mock.patch("vidlex.model.decode.video_file.read_by_time", fail):
        yield from decode_chunks(file, **job)

"""The decode function of `test_decode_pool`: the file name selects its behaviour."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError
from vidlex.model.types import FrameBatch, VideoInfo


def decode(path: Path, **job: Any) -> FrameBatch:
    return _FAULTS.get(path.stem, decode_frames)(path, **job)


def _hang(path: Path, **_: Any) -> FrameBatch:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    if (path.parent / "started").exists():  # a FIFO of the test
        (path.parent / "started").open("w").close()
    while True:
        signal.pause()


def _crash(path: Path, **_: Any) -> FrameBatch:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def _exit(path: Path, **_: Any) -> FrameBatch:
    os._exit(0)


def _allocate(path: Path, **job: Any) -> FrameBatch:
    blocks = [np.empty(2**28, np.uint8) for _ in range(1000)]
    raise AssertionError(f"{len(blocks)} blocks were allocated")


def _bug(path: Path, **_: Any) -> FrameBatch:
    raise KeyError(f"a bug at {path}")


def _wrong_size(path: Path, **_: Any) -> FrameBatch:
    """More frames than requested, which do not fit into the shared memory."""
    info = VideoInfo(1000, 8, 8, 10.0, "h264", 10, 100)
    return FrameBatch(np.zeros((600, 64, 64, 3), np.uint8), tuple(range(600)), info)


def _missing_timestamp(path: Path, *, num_frames: int, geometry: Any, **_: Any) -> FrameBatch:
    """One timestamp too few, which the pool must detect."""
    shape = (num_frames, geometry.image_size, geometry.image_size, 3)
    batch = FrameBatch(np.zeros(shape, np.uint8), tuple(range(num_frames)), VideoInfo(1, 8, 8, 1.0, "h264", 1, 1))
    object.__setattr__(batch, "timestamps_ms", batch.timestamps_ms[1:])
    return batch


def _gate(path: Path, **job: Any) -> FrameBatch:
    """Signals its start, then blocks until the test opens and closes the FIFO."""
    (path.parent / "started").open("w").close()
    path.open("rb").read()
    return decode_frames(path.parent / "numbers.mp4", **job)


def _report(path: Path, **_: Any) -> FrameBatch:
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


def _only_torchcodec(path: Path, **job: Any) -> FrameBatch:
    """Without the fallback to PyAV."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("PyAV was called")

    with mock.patch("vidlex.model.decode.decoder.read_by_time", fail):
        return decode_frames(path, **job)


_FAULTS: dict[str, Callable[..., FrameBatch]] = {
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

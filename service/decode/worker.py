"""The decode process: ``python -m vidlex.service.decode.worker SOCKET_DESCRIPTOR PARENT_PID``.

Started by `service.decode.pool`, it restricts itself and then decodes one file at a time. It answers a request with the
first chunk of frames, and each ``next`` of the pool with another one, with the end or with an error. After ``stop`` it
drops the file. The chunks take turns in the slots of the shared memory, so that it fills one while the other is used.

Before it loads native code it gives up core dumps, writing files, address space beyond a limit, the network (where the
system permits) and new privileges. It dies with its parent. Standard library only outside `_load`, for a short start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import mmap
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidlex.service.decode import wire

if TYPE_CHECKING:
    from vidlex.model.types import FrameBatch

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MAX_OPEN_FILES = 64
_MAX_ERROR_CHARS = 2000

Message = dict[str, Any]
Serve = Callable[[Message], "Iterator[FrameBatch | Message]"]  # from a request to its chunks and the last reply


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    setup, _ = wire.receive(channel)
    isolated = _restrict_process(int(setup["memory_bytes"]))
    _die_with_parent(int(sys.argv[2]))  # after _restrict_process: the kernel resets it when credentials change
    try:
        serve, decoder = _load(setup)
    except Exception as error:
        wire.send(channel, {"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    wire.send(channel, {"ready": True, "isolated": isolated, "decoder": decoder})
    with contextlib.suppress(wire.WireClosed):  # the pool has closed its end
        while True:
            request, descriptor = wire.receive(channel)
            if "stop" in request or "next" in request:  # it crossed the last reply
                continue
            if descriptor is None:
                raise ValueError("the request has no descriptor for the frames")
            with mmap.mmap(descriptor, 0) as memory:
                os.close(descriptor)
                wire.send(channel, _send_chunks(channel, serve(request), memory, request))


def _send_chunks(
    channel: socket.socket, replies: Iterator[FrameBatch | Message], memory: mmap.mmap, request: Message
) -> Message:
    """Return the last reply."""
    slot_bytes = request["max_chunk_frames"] * request["image_size"] ** 2 * 3
    slots = itertools.cycle(range(0, request["num_slots"] * slot_bytes, slot_bytes))
    while True:
        reply = next(replies)
        if isinstance(reply, dict):
            return reply
        message = _write(reply, memory, next(slots))
        del reply  # its frames need not stay while the next ones are decoded
        wire.send(channel, message)
        if "stop" in wire.receive(channel)[0]:
            return {"stopped": True}


def _write(batch: FrameBatch, memory: mmap.mmap, start: int) -> Message:
    memory[start : start + batch.frames.nbytes] = batch.frames.data.cast("B")
    content = batch.content
    return {
        "timestamps_ms": batch.timestamps_ms,
        "video": vars(batch.video),
        "warnings": batch.warnings,
        "num_failed": batch.num_failed,
        "content": None if content is None else {name: list(map(int, flags)) for name, flags in vars(content).items()},
    }


def _die_with_parent(parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent handles Ctrl-C in the terminal
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call of prctl
        raise SystemExit(0)


def _restrict_process(memory_bytes: int) -> bool:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit applies already
            resource.setrlimit(kind, (value, value))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    # a user namespace lets an unprivileged user leave the network, and removes root's access to files
    isolated = any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return isolated


def _load(setup: Message) -> tuple[Serve, str]:
    from vidlex.model.decode.limits import DecodeError, DecodeLimits
    from vidlex.model.decode.torchcodec_reader import load_torchcodec
    from vidlex.model.types import FrameGeometry

    module, _, name = str(setup["entry"]).partition(":")
    decode = getattr(importlib.import_module(module), name)
    limits = DecodeLimits(**setup["limits"])
    if setup["decoder"] == "torchcodec":
        tempfile.tempdir = "/"  # torch requires an existing directory; none is writable
        load_torchcodec()  # at startup: no delay for the first file, and a missing library fails the start

    def chunks(request: Message) -> Iterator[FrameBatch]:
        return iter(
            decode(
                Path(request["path"]),
                max_chunk_frames=request["max_chunk_frames"],
                geometry=FrameGeometry(request["image_size"], request["resize_mode"]),
                num_frames=request["num_frames"],
                segment_ms=request["segment_ms"],
                policy=request["policy"],
                start_ms=request["start_ms"],
                end_ms=request["end_ms"],
                limits=limits,
                num_threads=request["num_threads"],
                decoder=setup["decoder"],
            )
        )

    def serve(request: Message) -> Iterator[FrameBatch | Message]:
        shape = (request["image_size"], request["image_size"], 3)
        try:
            for batch in chunks(request):
                if len(batch.frames) > request["max_chunk_frames"] or batch.frames.shape[1:] != shape:
                    raise ValueError(f"a chunk of shape {list(batch.frames.shape)}")
                yield batch
                del batch
        except DecodeError as error:
            yield {"error": error.code, "message": str(error), "internal": error.internal[:_MAX_ERROR_CHARS]}
        except MemoryError:
            yield {"error": "undecodable_video", "message": "Decoding the video takes more memory than is allowed."}
        except Exception as error:
            yield {"failed": f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]}
        else:
            yield {"end": True}

    return serve, _versions(str(setup["decoder"]))


def _versions(decoder: str) -> str:
    """Such as ``PyAV 18.1.0, FFmpeg 8.1.2``."""
    import av

    names = [f"PyAV {av.__version__}", f"FFmpeg {av.ffmpeg_version_info}"]
    if decoder == "torchcodec":
        from importlib.metadata import version

        names.insert(0, f"torchcodec {version('torchcodec')}")
    return ", ".join(names)


if __name__ == "__main__":
    main()

"""The decode process: ``python -m vidlex.service.decode.worker SOCKET_DESCRIPTOR PARENT_PID``.

Started by `service.decode.pool`, it restricts itself and then decodes one file at a time. It answers a request with the
first chunk of frames, and each ``next`` of the pool with another one, with the end or with an error. After ``stop`` it
drops the file. The chunks take turns in the slots of the shared memory, so that it fills one while the other is used.

Each file has a thread of its own, whose priority the service may lower (`service.decode.priority`).

Before it loads native code it gives up core dumps, writing files, address space beyond a limit and the network; before
it sees the first file, everything else that is not open yet (`service.decode.isolation`): it gets files as descriptors.
It dies with its parent. Standard library only outside `_load`, for a short start.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import mmap
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from vidlex.service.decode import wire
from vidlex.service.decode.isolation import lockdown
from vidlex.service.decode.isolation.probe import reachable_targets

if TYPE_CHECKING:
    from vidlex.model.types import FrameBatch

_MAX_OPEN_FILES = 64
_MAX_ERROR_CHARS = 2000

Message = dict[str, Any]
# from a request and the file's descriptor to its chunks and the last reply
Serve = Callable[[Message, int], "Iterator[FrameBatch | Message]"]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    setup, _ = wire.receive(channel)
    service_pid = int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent handles Ctrl-C in the terminal
        signal.signal(number, signal.SIG_IGN)
    _limit_resources(int(setup["memory_bytes"]))
    missing = lockdown.enter(service_pid, int(setup["max_threads"]))
    try:
        serve, decoder = _load(setup)
    except Exception as error:
        wire.send(channel, {"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    missing += lockdown.lock(service_pid)
    isolation = {"reachable": reachable_targets(service_pid, str(setup["beacon"])), "missing": missing}
    wire.send(channel, {"ready": True, "isolation": isolation, "decoder": decoder})
    with contextlib.suppress(wire.WireClosed):  # the pool has closed its end
        while True:
            request, descriptors = wire.receive(channel, max_descriptors=2)
            if "stop" in request or "next" in request:  # it crossed the last reply
                continue
            if len(descriptors) != 2:
                raise ValueError("the request has no descriptors for the frames and the file")
            frames, file = descriptors
            num_bytes = request["num_slots"] * _slot_bytes(request)
            try:
                with mmap.mmap(frames, num_bytes) as memory:
                    os.close(frames)
                    last = _in_thread(partial(_send_chunks, channel, serve(request, file), memory, request))
                    wire.send(channel, last)
            finally:
                os.close(file)


def _in_thread(work: Callable[[], Message]) -> Message:
    done: Future[Message] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="file")
    thread.start()
    thread.join()
    return done.result()


def _slot_bytes(request: Message) -> int:
    num_bytes: int = request["max_chunk_frames"] * request["image_size"] ** 2 * 3
    return num_bytes


def _send_chunks(
    channel: socket.socket, replies: Iterator[FrameBatch | Message], memory: mmap.mmap, request: Message
) -> Message:
    """Return the last reply."""
    slot_bytes = _slot_bytes(request)
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


def _limit_resources(memory_bytes: int) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit applies already
            resource.setrlimit(kind, (value, value))


def _load(setup: Message) -> tuple[Serve, str]:
    from vidlex.model.decode.limits import DecodeError, DecodeLimits
    from vidlex.model.decode.preload import preload
    from vidlex.model.decode.source import OpenFile
    from vidlex.model.decode.torchcodec_reader import load_torchcodec
    from vidlex.model.types import FrameGeometry

    module, _, name = str(setup["entry"]).partition(":")
    decode = getattr(importlib.import_module(module), name)
    limits = DecodeLimits(**setup["limits"])
    if setup["decoder"] == "torchcodec":
        tempfile.tempdir = "/"  # torch requires an existing directory; none is writable
        load_torchcodec()  # at startup: no delay for the first file, and a missing library fails the start

    preload()

    def chunks(request: Message, file: int) -> Iterator[FrameBatch]:
        return iter(
            decode(
                OpenFile(file),
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

    def serve(request: Message, file: int) -> Iterator[FrameBatch | Message]:
        shape = (request["image_size"], request["image_size"], 3)
        try:
            for batch in chunks(request, file):
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

"""The decode process: ``python -m vidlex.service.decode.worker SOCKET_DESCRIPTOR PARENT_PID``.

Started by `service.decode.pool`, it restricts itself and then decodes one file at a time. Before it loads native code
it gives up core dumps, writing files, address space beyond a limit, the network (where the system permits) and new
privileges. It dies with its parent. Standard library only outside `_load`, for a short start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlex.service.decode import wire

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MAX_OPEN_FILES = 64
_MAX_ERROR_CHARS = 2000

# From a request and the descriptor of the memory for its frames to the reply
Serve = Callable[[dict[str, Any], int | None], dict[str, Any]]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    setup, _ = wire.receive(channel)
    isolated = _restrict_process(int(setup["memory_bytes"]))
    _die_with_parent(int(sys.argv[2]))  # after _restrict_process: the kernel resets it when credentials change
    try:
        serve = _load(setup)
    except Exception as error:
        wire.send(channel, {"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error
    wire.send(channel, {"ready": True, "isolated": isolated})
    with contextlib.suppress(wire.WireClosed):  # the pool has closed its end
        while True:
            request, descriptor = wire.receive(channel)
            wire.send(channel, serve(request, descriptor))


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


def _load(setup: dict[str, Any]) -> Serve:
    from vidlex.model.decode.limits import DecodeError, DecodeLimits
    from vidlex.model.decode.torchcodec_reader import load_torchcodec
    from vidlex.model.types import FrameGeometry

    module, _, name = str(setup["entry"]).partition(":")
    decode = getattr(importlib.import_module(module), name)
    limits = DecodeLimits(**setup["limits"])
    if setup["decoder"] == "torchcodec":
        tempfile.tempdir = "/"  # torch requires an existing directory; none is writable
        load_torchcodec()  # at startup: no delay for the first file, and a missing library fails the start

    def serve(request: dict[str, Any], descriptor: int | None) -> dict[str, Any]:
        try:
            batch = decode(
                Path(request["path"]),
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
            if descriptor is None:
                raise ValueError("the request has no descriptor for the frames")
            with mmap.mmap(descriptor, batch.frames.nbytes) as shared:
                shared[:] = batch.frames.data.cast("B")
        except DecodeError as error:
            return {"error": error.code, "message": str(error), "internal": error.internal[:_MAX_ERROR_CHARS]}
        except MemoryError:
            return {"error": "undecodable_video", "message": "Decoding the video takes more memory than is allowed."}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]}
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return {"timestamps_ms": batch.timestamps_ms, "video": vars(batch.video)}

    return serve


if __name__ == "__main__":
    main()

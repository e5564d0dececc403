"""Reads videos in processes that can crash, hang and be killed, each owned by a thread of a pool."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from vidlex.model.sources.augmentation import Augmentation, Frames
from vidlex.model.types import ResizeMode

P = ParamSpec("P")
T = TypeVar("T")


class BrokenVideo(Exception):
    """The message is the reason. ``was_killed``: decoding it took too long or ended the process."""

    def __init__(self, reason: str, *, was_killed: bool = False) -> None:
        super().__init__(reason)
        self.was_killed = was_killed


class _DecoderCrashed(BrokenVideo):
    pass


class DecodePool:
    """``submit`` runs functions in the threads of the pool, and ``read`` may be called by those functions only."""

    def __init__(self, num_workers: int, *, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="train-decode")
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._is_closed = False

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._threads.submit(function, *args, **kwargs)

    def read(
        self,
        path: Path,
        out: Frames,
        *,
        resize_mode: ResizeMode,
        start_ms: int | None = None,
        end_ms: int | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Fills ``out`` [T, H, W, 3], contiguous. Raises BrokenVideo.

        After a crash once more in a new process: the cause may be another, such as too little memory for a moment.
        """
        request = {
            "path": str(path),
            "image_size": out.shape[1],
            "resize_mode": resize_mode,
            "num_frames": len(out),
            "start_ms": start_ms,
            "end_ms": end_ms,
            "augmentation": augmentation and asdict(augmentation),
        }
        try:
            self._request(request, out)
        except _DecoderCrashed:
            self._request(request, out)

    def _request(self, request: dict[str, Any], out: Frames) -> None:
        process = self._process()
        try:
            process.request(request, out.data.cast("B"), timeout_seconds=self.timeout_seconds)
        except BrokenVideo as error:
            if error.was_killed:
                self._end(process)
                self._check_open()  # otherwise ``close`` has killed it
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the decode pool is closed")

    def _process(self) -> _Process:
        self._check_open()
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _Process()
            self._processes.add(process)
        return process

    def _end(self, process: _Process) -> None:
        process.kill()
        self._processes.discard(process)
        self._own.process = None

    def close(self) -> None:
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()
        self._threads.shutdown(wait=True)


class _Process:
    # Must be created by a thread that outlives it: the kernel kills the process when that thread ends.

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vidlex.model.sources.decode_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # native libraries write contents of the file there
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            },
            start_new_session=True,  # Ctrl-C in the terminal signals the training only
        )
        self._requests = cast(io.BufferedWriter, self._process.stdin)
        self._replies = cast(io.BufferedReader, self._process.stdout)
        if json.loads(self._replies.readline() or b"{}") != {"ready": True}:
            self.kill()
            raise RuntimeError("the decode process did not start")

    def request(self, message: dict[str, Any], out: memoryview, *, timeout_seconds: float) -> None:
        """Raises BrokenVideo."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(timeout_seconds, end)
        timer.start()
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
            reply = json.loads(self._replies.readline() or b"{}")
            if error := reply.get("error"):
                raise BrokenVideo(error)
            if reply.get("num_bytes") != out.nbytes or self._replies.readinto(out) != out.nbytes:
                raise OSError("the reply ends early")
        except (OSError, ValueError) as error:
            if not is_late.is_set():
                raise _DecoderCrashed("the decoder crashed", was_killed=True) from error
        finally:
            timer.cancel()
        if is_late.is_set():  # perhaps after the last byte, but the process is dead all the same
            raise BrokenVideo(f"decoding takes more than {timeout_seconds:g} s", was_killed=True)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()

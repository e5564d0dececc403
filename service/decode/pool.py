"""Decode processes that may crash, hang or be taken over, and a service that goes on: ``DecodePool``.

Each process belongs to one thread of the pool, which starts it, hands it one file at a time, kills it when it takes
too long and starts another in its place. Frames come back through sealed shared memory; nothing that a process says
is believed before it is checked. The service's own process never loads a decoder.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import queue
import threading
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as WaitTimeout
from contextvars import Context, copy_context
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.types import DecoderName, FrameBatch, FrameGeometry, FramePolicy, VideoInfo
from vidlex.service.decode.process import DecodeProcess, ProcessCrashed, ProcessTimeout, StartFailed, shared_memory
from vidlex.service.errors import (
    InvalidParameter,
    Overloaded,
    ResolutionTooLarge,
    UndecodableVideo,
    UnsupportedMedia,
    VideoTooLong,
    VidlexError,
)

_log = logging.getLogger(__name__)

_ERRORS: dict[str, type[VidlexError]] = {
    error.code: error
    for error in (UndecodableVideo, VideoTooLong, ResolutionTooLarge, UnsupportedMedia, InvalidParameter)
}
_MAX_TEXT = 500


@dataclass(frozen=True)
class PoolLimits:
    """What one decode may cost, and how many may wait."""

    max_waiting: int = 64
    timeout_seconds: float = 60.0
    """Wall-clock time of one file, after which its process is killed."""
    memory_bytes: int = 2 * 2**30
    """Address space of one process."""
    max_jobs_per_process: int = 500
    """After so many files a process is replaced, should a native library leak."""
    start_timeout_seconds: float = 60.0
    decode: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class DecodeJob:
    """Which frames of a file are wanted, and in which shape."""

    geometry: FrameGeometry
    num_frames: int
    policy: FramePolicy = "uniform"
    start_ms: int | None = None
    end_ms: int | None = None
    segment_ms: int | None = None
    """With it, ``num_frames`` for each segment of this length: how many there are, the file tells as it is decoded."""


@dataclass(frozen=True)
class _Task:
    path: Path
    job: DecodeJob
    answer: Future[FrameBatch]
    context: Context = field(default_factory=copy_context)
    """Of the request, so that log lines about it carry its id."""


class DecodePool:
    """``start`` before the first ``decode``; ``close`` at the end. Every method may be called from any thread.

    ``entry`` names the function that decodes, as module:function with the signature of
    `model.decode.decoder.decode_frames`; ``num_threads`` is what a file is decoded with (default: its share of the
    cores among the files that are there: a lone request has all, many do not take the encoder's); ``decoder`` is
    that of `decode_frames`.
    """

    def __init__(
        self,
        num_workers: int,
        limits: PoolLimits | None = None,
        *,
        entry: str = "vidlex.model.decode.decoder:decode_frames",
        num_threads: int | None = None,
        decoder: DecoderName = "auto",
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be positive, got {num_workers = }")
        self._limits = limits or PoolLimits()
        self._setup = {
            "entry": entry,
            "decoder": decoder,
            "limits": asdict(self._limits.decode),
            "memory_bytes": self._limits.memory_bytes,
        }
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_threads = num_threads
        self._unfinished = 0
        self._num_restarts = 0
        self._processes: list[DecodeProcess | None] = [None] * num_workers
        self._gone_at: list[float | None] = [-math.inf] * num_workers
        """Since when a process is missing."""
        self._stopping = threading.Event()
        self._first_start: list[Future[None]] = [Future() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(slot,), name=f"decode-{slot}", daemon=True)
            for slot in range(num_workers)
        ]

    def start(self) -> None:
        """Start all processes and wait until each has loaded its decoder. Raises `StartFailed`."""
        for thread in self._threads:
            thread.start()
        try:
            for started in self._first_start:
                started.result()
        except StartFailed:
            self.close()
            raise

    @property
    def alive_workers(self) -> int:
        """Processes that live at this moment; one that was just killed counts again when its successor is ready."""
        return sum(process is not None and process.alive for process in self._processes)

    @property
    def longest_absence_seconds(self) -> float:
        """How long the process that is missing for longest has been so; 0 when none is, as far as was noticed."""
        if not all(thread.is_alive() for thread in self._threads):
            return math.inf
        since = [at for at in self._gone_at if at is not None]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def worker_pids(self) -> list[int]:
        return [process.pid for process in self._processes if process is not None and process.alive]

    @property
    def unfinished(self) -> int:
        """Files being decoded or waiting for it."""
        return self._unfinished

    @property
    def num_restarts(self) -> int:
        """Processes that took the place of one that had died, was killed, or was too old."""
        return self._num_restarts

    @property
    def isolated(self) -> bool:
        """Every process has left the network, as far as this system lets it."""
        return all(process is not None and process.isolated for process in self._processes)

    def decode(self, path: Path, job: DecodeJob, *, wait_seconds: float | None = None) -> FrameBatch:
        """Decode in one of the processes; blocks until it is done.

        Raises UndecodableVideo, VideoTooLong, ResolutionTooLarge, UnsupportedMedia or InvalidParameter for what is
        wrong with the file or the job, and Overloaded if too many others wait, or if this one had to wait for a
        process longer than ``wait_seconds``.
        """
        task = _Task(path.absolute(), job, Future())
        with self._lock:
            if self._stopping.is_set():
                raise Overloaded("The service is stopping.")
            if self._unfinished >= len(self._threads) + self._limits.max_waiting:
                raise Overloaded("Too many videos are waiting to be decoded.")
            if self._threads[0].ident is None:
                raise RuntimeError("the pool was not started")
            self._unfinished += 1
            self._tasks.put(task)  # inside the lock: after close() nothing may come that nobody would answer
        try:
            try:
                return task.answer.result(wait_seconds)
            except WaitTimeout:
                if task.answer.cancel():
                    raise Overloaded("No decoder was free in time.") from None
                return task.answer.result()  # it has begun, so it ends: its own time is bounded
        except CancelledError:
            raise Overloaded("The service is stopping.") from None
        finally:
            with self._lock:
                self._unfinished -= 1

    def close(self) -> None:
        """Kill all processes; those who still wait in ``decode`` get Overloaded. Safe to call again."""
        with self._lock:
            self._stopping.set()
        for process in self._processes:
            if process is not None:
                process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def __enter__(self) -> DecodePool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one thread per process: the process dies with the thread that started it (PR_SET_PDEATHSIG) --------------

    def _run(self, slot: int) -> None:
        try:
            self._begin(slot)
            while not self._stopping.is_set():
                self._revive(slot)  # one that died while idle is replaced before anybody needs it
                process = self._processes[slot]
                if self.alive_workers and not (process is not None and process.alive):
                    continue  # files are for the others, as long as this one cannot be started
                try:
                    task = self._tasks.get(timeout=1.0)
                except queue.Empty:
                    continue
                if task is None:
                    break
                if task.answer.set_running_or_notify_cancel():
                    task.context.run(self._answer, slot, task)
        finally:
            process = self._processes[slot]
            if process is not None:
                process.kill()
            if self._stopping.is_set():
                self._refuse_rest()

    def _begin(self, slot: int) -> None:
        try:
            self._processes[slot] = DecodeProcess(self._setup, self._limits.start_timeout_seconds)
        except StartFailed as error:
            self._first_start[slot].set_exception(error)
        else:
            self._gone_at[slot] = None
            self._first_start[slot].set_result(None)

    def _revive(self, slot: int) -> None:
        """See to it that ``slot`` has a live process that is not too old."""
        process = self._processes[slot]
        fresh = process is not None and process.jobs < self._limits.max_jobs_per_process
        if self._stopping.is_set() or (process is not None and process.alive and fresh):
            return
        if self._gone_at[slot] is None:
            self._gone_at[slot] = time.monotonic()
        if process is not None:
            process.kill()
        try:
            self._processes[slot] = DecodeProcess(self._setup, self._limits.start_timeout_seconds)
            self._gone_at[slot] = None
            with self._lock:
                self._num_restarts += 1
        except StartFailed as error:
            _log.error("a decode process cannot be started: %s", error)
            self._stopping.wait(1.0)
        if self._stopping.is_set() and (late := self._processes[slot]) is not None:
            late.kill()  # close() may have looked before it was there

    def _answer(self, slot: int, task: _Task) -> None:
        try:
            for _ in range(2):  # once more for one that died just now: nothing was asked of it yet
                self._revive(slot)
                process = self._processes[slot]
                if process is not None and process.alive:
                    break
            else:
                raise Overloaded("No decoder can be started at the moment.")
            task.answer.set_result(self._decode_in(process, task))
        except VidlexError as error:
            task.answer.set_exception(error)
        except Exception as error:
            _log.exception("a decode process gave a reply that makes no sense, and is killed")
            if (process := self._processes[slot]) is not None:
                process.kill()
            task.answer.set_exception(UndecodableVideo(internal=f"{type(error).__name__}: {error}"))

    def _decode_in(self, process: DecodeProcess, task: _Task) -> FrameBatch:
        job, limits = task.job, self._limits
        size = job.geometry.image_size
        most = limits.decode.max_frames
        if not 1 <= job.num_frames <= most:
            raise InvalidParameter(f"num_frames must be between 1 and {most}.")
        request = {
            "path": os.fspath(task.path),
            "image_size": size,
            "resize_mode": job.geometry.resize_mode,
            "num_frames": job.num_frames,
            "segment_ms": job.segment_ms,
            "policy": job.policy,
            "start_ms": job.start_ms,
            "end_ms": job.end_ms,
            "num_threads": self._num_threads or _fair_threads(self._unfinished),
        }
        # Memory that nobody writes to is none: segments may have as much as there may be frames.
        room = job.num_frames if job.segment_ms is None else most
        descriptor, memory = shared_memory(room * size * size * 3)
        began = time.monotonic()
        try:
            reply = process.ask(request, descriptor, limits.timeout_seconds)
        except ProcessTimeout:
            _log.warning("a decode process was killed after %.1f s", limits.timeout_seconds)
            raise UndecodableVideo(f"Decoding the video took longer than {limits.timeout_seconds:g} s.") from None
        except ProcessCrashed as error:
            if self._stopping.is_set():
                raise Overloaded("The service is stopping.") from None
            _log.warning("a decode process died after %.1f s: %s", time.monotonic() - began, error)
            raise UndecodableVideo("The video made the decoder fail.", internal=str(error)) from None
        finally:
            os.close(descriptor)
        if reply.get("error") == "too_many_frames":
            raise too_many_frames(most)
        return _checked(reply, memory, job, room)

    def _refuse_rest(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            if task is None:  # meant for another thread
                self._tasks.put(None)
                return
            task.answer.cancel()


def _fair_threads(num_files: int) -> int:
    """All cores for a lone file; one thread each where as many are decoded, or wait, as there are cores."""
    return max(1, (os.cpu_count() or 1) // max(1, num_files))


def too_many_frames(max_frames: int) -> InvalidParameter:
    return InvalidParameter(
        f"The request would sample more than {max_frames} frames; lower num_frames, raise segment_ms or shorten the "
        "window",
        max_frames=max_frames,
    )


def _checked(reply: dict[str, Any], memory: mmap.mmap, job: DecodeJob, room: int) -> FrameBatch:
    """The reply as a FrameBatch over ``memory``, which has ``room`` frames, or as the error that it is."""
    if "error" in reply:
        error = _ERRORS.get(str(reply["error"]), UndecodableVideo)
        raise error(str(reply.get("message", ""))[:_MAX_TEXT], internal=str(reply.get("internal", "")))
    if "failed" in reply:
        _log.error("a decode process failed: %s", reply["failed"])
        raise UndecodableVideo(internal=str(reply["failed"]))
    timestamps_ms = tuple(int(t) for t in reply["timestamps_ms"])
    num_frames = job.num_frames if job.segment_ms is None else len(timestamps_ms)
    if num_frames > room or num_frames % job.num_frames:
        raise ValueError(f"{num_frames} frames for segments of {job.num_frames}")
    side = job.geometry.image_size
    frames = np.frombuffer(memory, np.uint8, num_frames * side * side * 3).reshape(num_frames, side, side, 3)
    video = reply["video"]
    info = VideoInfo(
        duration_ms=int(video["duration_ms"]),
        width=int(video["width"]),
        height=int(video["height"]),
        fps=float(video["fps"]),
        codec=str(video["codec"])[:32],
        num_frames=int(video["num_frames"]),
        num_bytes=int(video["num_bytes"]),
    )
    return FrameBatch(frames, timestamps_ms, info)

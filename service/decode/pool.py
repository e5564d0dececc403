"""Decodes untrusted files in separate processes, which may crash, hang or be compromised.

Each process belongs to one thread of the pool, which starts it, sends it one file at a time, kills it on a timeout and
replaces it. Frames are returned in sealed shared memory, in chunks: while the request uses one, the process decodes the
next, and then waits. Replies are untrusted and validated. The service's own process never loads a decoder.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.types import DecoderName, FrameGeometry, FramePolicy
from vidlex.service.decode.chunks import ChunkStream
from vidlex.service.decode.process import DecodeProcess, ProcessCrashed, ProcessTimeout, StartFailed, shared_memory
from vidlex.service.decode.replies import ReplyReader
from vidlex.service.errors import InvalidParameter, Overloaded, UndecodableVideo, VidlexError

_log = structlog.get_logger("vidlex.decode")

_NUM_SLOTS = 2  # chunks in shared memory: one in use, one that the process writes
_MAX_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PoolLimits:
    max_waiting: int = 64
    timeout_seconds: float = 60.0  # per chunk, in wall-clock time; then its process is killed
    max_chunk_frames: int = 32  # fewer of large ones
    memory_bytes: int = 2 * 2**30  # address space per process
    max_jobs_per_process: int = 500  # then it is replaced, in case a native library leaks
    start_timeout_seconds: float = 60.0
    decode: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class DecodeJob:
    geometry: FrameGeometry
    num_frames: int
    policy: FramePolicy = "uniform"
    start_ms: int | None = None
    end_ms: int | None = None
    segment_ms: int | None = None  # if set, num_frames are sampled from each segment of this length


@dataclass(frozen=True)
class _Task:
    path: Path
    job: DecodeJob
    stream: ChunkStream
    context: Context = field(default_factory=copy_context)  # of the request, so that log lines about it carry its id


class DecodePool:
    """Call ``start`` first, and ``close`` last: it lets pending calls raise Overloaded. Thread-safe.

    ``entry`` is the decode function, as module:function with the signature of `model.decode.decoder.decode_chunks`.
    ``num_threads`` are threads per file; by default the cores are divided among the unfinished files.
    """

    def __init__(
        self,
        num_workers: int,
        limits: PoolLimits | None = None,
        *,
        entry: str = "vidlex.model.decode.decoder:decode_chunks",
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
        self._num_unfinished = 0
        self._num_restarts = 0
        self._processes: list[DecodeProcess | None] = [None] * num_workers
        self._streams: list[ChunkStream | None] = [None] * num_workers  # of the files in progress
        # Per slot, the time of time.monotonic when its process was found missing; None while it is running.
        self._missing_since: list[float | None] = [-math.inf] * num_workers
        self._stopping = threading.Event()
        self._initial_starts: list[Future[None]] = [Future() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(slot,), name=f"decode-{slot}", daemon=True)
            for slot in range(num_workers)
        ]

    def start(self) -> None:
        """Wait until each process has loaded its decoder. Raises StartFailed."""
        for thread in self._threads:
            thread.start()
        try:
            for started in self._initial_starts:
                started.result()
        except StartFailed:
            self.close()
            raise

    @property
    def num_alive(self) -> int:
        return sum(process is not None and process.is_alive for process in self._processes)

    @property
    def longest_outage_seconds(self) -> float:
        if not all(thread.is_alive() for thread in self._threads):
            return math.inf
        since = [at for at in self._missing_since if at is not None]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def num_unfinished(self) -> int:
        return self._num_unfinished

    @property
    def num_restarts(self) -> int:
        return self._num_restarts

    @property
    def decoder(self) -> str:
        """The libraries of the decode processes with their versions; empty before the start."""
        return next((process.decoder for process in self._processes if process is not None), "")

    @contextmanager
    def decode_chunks(
        self,
        path: Path,
        job: DecodeJob,
        *,
        wait_seconds: float | None = None,
        deadline: float = math.inf,
        cancelled: threading.Event | None = None,
    ) -> Iterator[ChunkStream]:
        """The frames of one file in chunks, each valid until the next one. Blocks until a process is free.

        At the end of the context, or once ``deadline`` (of time.monotonic) has passed or ``cancelled`` is set, the
        process drops the file. Raises Overloaded then, if the queue is full, the pool is closed, or no process was free
        within ``wait_seconds``, and UndecodableVideo, VideoTooLong, ResolutionTooLarge, UnsupportedMedia or
        InvalidParameter for an invalid file or job.
        """
        max_frames = self._limits.decode.max_frames
        if not 1 <= job.num_frames <= max_frames:
            raise InvalidParameter(f"num_frames must be between 1 and {max_frames}.")
        task = _Task(path.absolute(), job, ChunkStream(deadline=deadline, cancelled=cancelled))
        with self._lock:
            if self._stopping.is_set():
                raise Overloaded("The service is stopping.")
            if self._num_unfinished >= len(self._threads) + self._limits.max_waiting:
                raise Overloaded("Too many videos are waiting to be decoded.")
            if self._threads[0].ident is None:
                raise RuntimeError("the pool was not started")
            self._num_unfinished += 1
            self._tasks.put(task)  # under the lock: a task queued after close() would never be answered
        try:
            task.stream.wait_for_start(wait_seconds)
            yield task.stream
        finally:
            task.stream.close()
            with self._lock:
                self._num_unfinished -= 1

    def close(self) -> None:
        with self._lock:
            self._stopping.set()
        for stream in self._streams:
            if stream is not None:
                stream.end(Overloaded("The service is stopping."))
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

    # --- one thread per process: the process dies with the thread that started it (PR_SET_PDEATHSIG)

    def _run(self, slot: int) -> None:
        try:
            self._start_process(slot)
            while not self._stopping.is_set():
                self._ensure_process(slot)  # replace one that died while idle
                process = self._processes[slot]
                if self.num_alive and not (process is not None and process.is_alive):
                    continue  # leave the files to the other processes while this one cannot be started
                try:
                    task = self._tasks.get(timeout=1.0)
                except queue.Empty:
                    continue
                if task is None:
                    break
                self._streams[slot] = task.stream
                if task.stream.begin():
                    task.context.run(self._process_task, slot, task)
                self._streams[slot] = None
        finally:
            process = self._processes[slot]
            if process is not None:
                process.kill()
            if self._stopping.is_set():
                self._cancel_queued()

    def _start_process(self, slot: int) -> None:
        try:
            self._processes[slot] = DecodeProcess(self._setup, self._limits.start_timeout_seconds)
        except StartFailed as error:
            self._initial_starts[slot].set_exception(error)
        else:
            self._missing_since[slot] = None
            self._initial_starts[slot].set_result(None)

    def _ensure_process(self, slot: int) -> None:
        process = self._processes[slot]
        is_reusable = process is not None and process.num_jobs < self._limits.max_jobs_per_process
        if self._stopping.is_set() or (process is not None and process.is_alive and is_reusable):
            return
        if self._missing_since[slot] is None:
            self._missing_since[slot] = time.monotonic()
        if process is not None:
            process.kill()
        try:
            self._processes[slot] = DecodeProcess(self._setup, self._limits.start_timeout_seconds)
            self._missing_since[slot] = None
            with self._lock:
                self._num_restarts += 1
        except StartFailed as error:
            _log.error("decode_process_start_failed", error=str(error))
            self._stopping.wait(1.0)
        if self._stopping.is_set() and (process := self._processes[slot]) is not None:
            process.kill()  # it may have started after close() killed the others

    def _process_task(self, slot: int, task: _Task) -> None:
        try:
            for _ in range(2):  # twice: a new process may die before it receives the request
                self._ensure_process(slot)
                process = self._processes[slot]
                if process is not None and process.is_alive:
                    break
            else:
                raise Overloaded("No decoder can be started at the moment.")
            self._decode_with(process, task)
        except VidlexError as error:
            task.stream.end(error)
        except Exception as error:
            process = self._processes[slot]
            _log.exception("decode_reply_invalid", pid=None if process is None else process.pid)
            if process is not None:
                process.kill()
            task.stream.end(UndecodableVideo(internal=f"{type(error).__name__}: {error}"))

    def _decode_with(self, process: DecodeProcess, task: _Task) -> None:
        timeout_seconds = self._limits.timeout_seconds
        started = time.monotonic()
        try:
            self._exchange(process, task)
        except ProcessTimeout:
            _log.warning("decode_timeout", pid=process.pid, seconds=timeout_seconds)
            raise UndecodableVideo(f"Decoding the video took longer than {timeout_seconds:g} s.") from None
        except ProcessCrashed as error:
            if self._stopping.is_set():
                raise Overloaded("The service is stopping.") from None
            seconds = round(time.monotonic() - started, 1)
            _log.warning("decode_process_crashed", pid=process.pid, seconds=seconds, error=str(error))
            raise UndecodableVideo("The video made the decoder fail.", internal=str(error)) from None

    def _exchange(self, process: DecodeProcess, task: _Task) -> None:
        """Offer the process's chunks until the last one, or until the request wants no more."""
        job, stream, limits = task.job, task.stream, self._limits
        size = job.geometry.image_size
        is_fixed = job.segment_ms is None and job.policy != "shots"
        max_frames = job.num_frames if is_fixed else max(job.num_frames, limits.decode.max_total_frames)
        max_chunk_frames = max(1, min(limits.max_chunk_frames, max_frames, _MAX_CHUNK_BYTES // (size * size * 3)))
        request: dict[str, Any] = {
            "path": os.fspath(task.path),
            "image_size": size,
            "resize_mode": job.geometry.resize_mode,
            "num_frames": job.num_frames,
            "segment_ms": job.segment_ms,
            "policy": job.policy,
            "start_ms": job.start_ms,
            "end_ms": job.end_ms,
            "num_threads": self._num_threads or _threads_per_file(self._num_unfinished),
            "max_chunk_frames": max_chunk_frames,
            "num_slots": _NUM_SLOTS,
        }
        # Pages that are never written take no memory, so that the slots cost a short video nothing.
        descriptor, memory = shared_memory(_NUM_SLOTS * max_chunk_frames * size * size * 3)
        reader = ReplyReader(
            memory,
            side=size,
            max_chunk_frames=max_chunk_frames,
            num_slots=_NUM_SLOTS,
            max_frames=max_frames,
            num_frames=None if job.policy == "shots" else job.num_frames,
        )
        process.num_jobs += 1
        try:
            process.send(request, descriptor)
        finally:
            os.close(descriptor)
        while (reply := process.receive(limits.timeout_seconds, give_up=lambda: stream.is_over)) is not None:
            if "timestamps_ms" not in reply:
                reader.finish(reply)
                stream.end()
                return
            if not stream.offer(reader.chunk(reply)):
                break
            process.send({"next": True})  # the chunk before is not in use any more
        process.drop_file()

    def _cancel_queued(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            if task is None:  # the stop signal of another thread
                self._tasks.put(None)
                return
            task.stream.end(Overloaded("The service is stopping."))


def _threads_per_file(num_files: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, num_files))

"""Decodes untrusted files in separate processes, which may crash, hang or be compromised.

Each process belongs to one thread of the pool, which starts it, sends it one file at a time, kills it on a timeout and
replaces it. Frames are returned in sealed shared memory, in chunks: while the request uses one, the process decodes the
next, and then waits. Replies are untrusted and validated. The service's own process never loads a decoder.
Clients share the processes: see `FileQueue`. Its spare processes are started once a second client has sent a file.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
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
from vidlex.service.decode.file_queue import FileQueue, QueuedFile
from vidlex.service.decode.isolation.lockdown import protect_service
from vidlex.service.decode.isolation.report import Isolation, IsolationLevel, least
from vidlex.service.decode.process import (
    DecodeProcess,
    ProcessCrashed,
    ProcessExceeded,
    ProcessTimeout,
    StartFailed,
    opened_file,
    shared_memory,
)
from vidlex.service.decode.process_watch import ProcessWatch, max_threads
from vidlex.service.decode.replies import ReplyReader
from vidlex.service.decode.usage import default_budget_bytes
from vidlex.service.errors import InvalidParameter, Overloaded, UndecodableVideo, VidlexError
from vidlex.service.sharing.requester import Requester

_log = structlog.get_logger("vidlex.decode")

_NUM_SLOTS = 2  # chunks in shared memory: one in use, one that the process writes
_MAX_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PoolLimits:
    max_waiting: int = 64
    timeout_seconds: float = 60.0  # per chunk, in wall-clock time; then its process is killed
    max_chunk_frames: int = 32  # fewer of large ones
    memory_bytes: int = 2 * 2**30  # address space per process
    total_memory_bytes: int | None = None  # of the files in all processes; None: half of the machine's or container's
    required_isolation: IsolationLevel = "none"  # of processes that may start
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


@dataclass(eq=False)
class _Task(QueuedFile):
    path: Path
    job: DecodeJob
    stream: ChunkStream
    context: Context = field(default_factory=copy_context)  # of the request, so that log lines about it carry its id


class DecodePool:
    """Call ``start`` first, and ``close`` last: it lets pending calls raise Overloaded. Thread-safe.

    ``entry`` is the decode function, as module:function with the signature of `model.decode.decoder.decode_chunks`.
    ``num_threads`` are threads per file; by default the cores are divided among the clients, and a client's among its
    unfinished files. ``num_spares`` are processes in addition to ``num_workers``.
    """

    def __init__(
        self,
        num_workers: int,
        limits: PoolLimits | None = None,
        *,
        entry: str = "vidlex.model.decode.decoder:decode_chunks",
        num_spares: int = 0,
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
            "max_threads": max_threads(),
        }
        self._num_workers = num_workers
        num_slots = num_workers + num_spares
        self._tasks = FileQueue[_Task](num_workers + self._limits.max_waiting)
        self._lock = threading.Lock()
        self._num_threads = num_threads
        self._num_restarts = 0
        self.busy_seconds = 0.0  # of all processes together: how long they were waited for
        # The first ``num_workers`` slots are workers, the others spares.
        self._processes: list[DecodeProcess | None] = [None] * num_slots
        self._streams: list[ChunkStream | None] = [None] * num_slots  # of the files in progress
        # Per worker, the time of time.monotonic when its process was found missing; None while it is running.
        self._missing_since: list[float | None] = [-math.inf] * num_workers + [None] * num_spares
        self._stopping = threading.Event()
        self._initial_starts: list[Future[None]] = [Future() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(slot,), name=f"decode-{slot}", daemon=True)
            for slot in range(num_slots)
        ]

        budget_bytes = self._limits.total_memory_bytes or default_budget_bytes()
        self._watch = ProcessWatch(lambda: self._processes, budget_bytes=budget_bytes)

    def start(self) -> None:
        """Wait until each process has loaded its decoder. Raises StartFailed."""
        protect_service()
        self._watch.start()
        for thread in self._threads:
            thread.start()
        try:
            for started in self._initial_starts:
                started.result()
        except StartFailed:
            self.close()
            raise
        if (found := self.isolation) is not None:
            log = _log.info if found.level == "full" else _log.warning
            log("decode_isolation", isolated=found.level, reachable=list(found.reachable), missing=list(found.missing))

    @property
    def isolation(self) -> Isolation | None:
        """The least of the processes; None before the start."""
        return least(process.isolation for process in self._processes if process is not None)

    @property
    def num_alive(self) -> int:
        """Without spares."""
        return sum(map(self._is_alive, range(self._num_workers)))

    def _is_alive(self, slot: int) -> bool:
        process = self._processes[slot]
        return process is not None and process.is_alive

    @property
    def longest_outage_seconds(self) -> float:
        if not all(thread.is_alive() for thread in self._threads):
            return math.inf
        since = [at for at in self._missing_since[: self._num_workers] if at is not None]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def num_unfinished(self) -> int:
        return self._tasks.num_unfinished

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
        requester: Requester | None = None,
        wait_seconds: float = math.inf,
    ) -> Iterator[ChunkStream]:
        """The frames of one file in chunks, each valid until the next one. Blocks until a process is free.

        At the end of the context, or once the requester's deadline has passed or it has given up, the process drops the
        file. Raises Overloaded then, if the queue is full, the pool is closed, or no process was free within
        ``wait_seconds``, and UndecodableVideo, VideoTooLong, ResolutionTooLarge, UnsupportedMedia or InvalidParameter
        for an invalid file or job.
        """
        max_frames = self._limits.decode.max_frames
        if not 1 <= job.num_frames <= max_frames:
            raise InvalidParameter(f"num_frames must be between 1 and {max_frames}.")
        asking = requester or Requester()
        stream = ChunkStream(deadline=asking.deadline, cancelled=asking.cancelled)
        task = _Task(path.absolute(), job, stream, client=asking.client)
        if self._threads[0].ident is None:
            raise RuntimeError("the pool was not started")
        self._tasks.add(task)
        try:
            stream.wait_for_start(wait_seconds)
            yield stream
        finally:
            stream.close()
            self._tasks.remove(task)

    def close(self) -> None:
        self._stopping.set()
        streams = [task.stream for task in self._tasks.close()]
        for stream in (*streams, *self._streams):
            if stream is not None:
                stream.end(Overloaded("The service is stopping."))
        for process in self._processes:
            if process is not None:
                process.kill()
        self._watch.stop()
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
            if slot < self._num_workers:
                self._start_process(slot)
            else:
                self._tasks.two_clients.wait()
            while not self._stopping.is_set():
                self._ensure_process(slot)  # replace one that died while idle
                if not self._is_alive(slot) and any(map(self._is_alive, range(len(self._threads)))):
                    continue  # leave the files to the other processes while this one cannot be started
                task = self._tasks.take(is_spare=slot >= self._num_workers)
                if task is None:
                    continue
                self._streams[slot] = task.stream
                try:
                    if task.stream.begin():
                        task.context.run(self._process_task, slot, task)
                finally:
                    self._streams[slot] = None
                    self._tasks.finish(task)
        finally:
            process = self._processes[slot]
            if process is not None:
                process.kill()

    def _start_process(self, slot: int) -> None:
        try:
            self._processes[slot] = self._new_process()
        except StartFailed as error:
            self._initial_starts[slot].set_exception(error)
        else:
            self._missing_since[slot] = None
            self._initial_starts[slot].set_result(None)

    def _new_process(self) -> DecodeProcess:
        limits = self._limits
        return DecodeProcess(self._setup, limits.start_timeout_seconds, required_isolation=limits.required_isolation)

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
            self._processes[slot] = self._new_process()
            self._missing_since[slot] = None
            if process is not None:
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
        except ProcessExceeded as error:
            if error.excess == "budget":
                raise Overloaded("The videos take more memory than there is.", limit="decode_memory") from None
            if error.excess == "memory":
                raise UndecodableVideo("Decoding the video takes more memory than is allowed.") from None
            raise UndecodableVideo("The video made the decoder fail.", internal=str(error)) from None
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
            "image_size": size,
            "resize_mode": job.geometry.resize_mode,
            "num_frames": job.num_frames,
            "segment_ms": job.segment_ms,
            "policy": job.policy,
            "start_ms": job.start_ms,
            "end_ms": job.end_ms,
            "num_threads": self._num_threads or self._tasks.num_threads(task),
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

        def must_stop() -> bool:
            self._charge(process, task)
            return stream.is_over

        process.num_jobs += 1
        try:
            with opened_file(task.path) as file:
                process.send(request, [descriptor, file])
                self._charge(process, task)
        finally:
            os.close(descriptor)
        while (reply := self._receive(process, must_stop)) is not None:
            if "timestamps_ms" not in reply:
                reader.finish(reply)
                stream.end()
                return
            if not stream.offer(reader.chunk(reply)):
                break
            self._charge(process, task)
            process.send({"next": True})  # the chunk before is not in use any more
        process.drop_file()

    def _charge(self, process: DecodeProcess, task: _Task) -> None:
        if self._tasks.charge(task):
            process.lower_priority()

    def _receive(self, process: DecodeProcess, must_stop: Callable[[], bool]) -> dict[str, Any] | None:
        started = time.monotonic()
        reply = process.receive(self._limits.timeout_seconds, give_up=must_stop)
        with self._lock:
            self.busy_seconds += time.monotonic() - started
        return reply

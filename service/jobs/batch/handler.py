"""The kind ``batch``: the videos of a manifest, several at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from vidlex.service.errors import (
    EncodeFailed,
    InvalidParameter,
    ModelLoading,
    Overloaded,
    Stopping,
    StorageFull,
    StoreUnavailable,
    VidlexError,
)
from vidlex.service.jobs.attempt import JOB_TIMEOUT
from vidlex.service.jobs.batch.manifest import MAX_MANIFEST_BYTES, ManifestLine, count_lines, read_manifest
from vidlex.service.jobs.batch.outputs import BatchFile, BatchOutputs
from vidlex.service.jobs.classify import JobVideos, requester_of
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job, JobProgress
from vidlex.service.jobs.sources import JobSources
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.batch import BatchLine
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.sharing.requester import Requester
from vidlex.service.views.keeping import params_of_line

_NUM_TRIES = 3  # of a video on which the service fails
_RETRY_SECONDS = 1.0
_WAIT_SECONDS = 0.2
_MANIFEST = "manifest.jsonl"
_OF_THE_JOB = (StoreUnavailable, ModelLoading, Stopping, StorageFull)  # not of one video

_log = structlog.get_logger("vidlex.jobs")


@dataclass(frozen=True, eq=False)
class _Videos:
    """What all batches of a process share."""

    sources: JobSources
    videos: JobVideos
    num_parallel: int
    video_seconds: float
    places: threading.Semaphore


class BatchHandler:
    """See JobHandler. At most ``num_parallel`` videos of all batches of this process are at work.

    ``video_seconds`` is the timeout of one video. What a run has finished is kept if the process is killed: the next
    one does the rest.
    """

    def __init__(
        self, files: JobFiles, sources: JobSources, videos: JobVideos, *, num_parallel: int, video_seconds: float
    ) -> None:
        self._files = files
        self._sources = sources
        self._videos = _Videos(sources, videos, num_parallel, video_seconds, threading.Semaphore(num_parallel))

    def __call__(self, job: Job, work: JobWork) -> Mapping[str, Any]:
        params = validate(ClassifyParams, job.params)
        folder = self._files.output_folder(job)
        manifest = self._manifest(job, work, folder)
        total = count_lines(manifest)
        with BatchOutputs(
            folder,
            lambda num_bytes: self._files.take_bytes(job.client, num_bytes),
            started_at_ms=job.started_at_ms or 0,
        ) as outputs:
            _Run(self._videos, job, work, params, outputs).classify(read_manifest(manifest), total)
            files = outputs.finish()
        num_failed = files["errors"].num_lines
        return {
            "object": "batch.result",
            "request_counts": {"total": total, "completed": total - num_failed, "failed": num_failed},
            "output": _file_view(files["output"]),
            "errors": _file_view(files["errors"]),
        }

    def _manifest(self, job: Job, work: JobWork, folder: Path) -> Path:
        """That of a URL is read once, so that all runs see the same lines."""
        if job.input is not None and job.input.kind == "upload":
            return self._files.path(job.input)
        path = folder / _MANIFEST
        if path.is_file():
            return path

        def report(done: int, total: int | None) -> None:
            work.report(JobProgress("fetch", "bytes", done, total))

        with self._sources.opened(job.input, requester_of(job, work), report) as source:
            if source.num_bytes > MAX_MANIFEST_BYTES:
                raise InvalidParameter(f"The manifest has more than {MAX_MANIFEST_BYTES} bytes")
            self._files.take_bytes(job.client, source.num_bytes)
            new = folder / f"{_MANIFEST}.{secrets.token_hex(8)}"
            try:
                with source.path.open("rb") as read, new.open("xb") as write:
                    shutil.copyfileobj(read, write)
                    write.flush()
                    os.fsync(write.fileno())
                with contextlib.suppress(FileExistsError):  # of another attempt, which is the one that counts
                    os.link(new, path)
            finally:
                new.unlink(missing_ok=True)
        return path


class _Run:
    """Of one job. What ends all of it is raised once no video is at work any more."""

    def __init__(self, videos: _Videos, job: Job, work: JobWork, params: ClassifyParams, outputs: BatchOutputs) -> None:
        self._videos = videos
        self._job = job
        self._work = work
        self._params = params
        self._outputs = outputs
        self._total = 0
        self._stop = threading.Event()
        self._error: Exception | None = None

    def classify(self, lines: Iterator[ManifestLine], total: int) -> None:
        self._total = total
        self._report()
        places = self._videos.places
        with ThreadPoolExecutor(self._videos.num_parallel, thread_name_prefix="vidlex-batch") as threads:
            try:
                pending: set[Future[None]] = set()
                for line in lines:
                    if line.number not in self._outputs.done:
                        self._while_waiting(lambda: places.acquire(timeout=_WAIT_SECONDS))
                        pending = {future for future in pending if not future.done()}
                        pending.add(threads.submit(self._do, line))
                self._while_waiting(lambda: not wait(pending, timeout=_WAIT_SECONDS).not_done)
            finally:
                self._stop.set()
        self._check()

    def _while_waiting(self, is_over: Callable[[], bool]) -> None:
        while True:
            self._check()
            if is_over():
                return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._work.cancelled.is_set():
            raise Overloaded("The job was cancelled")

    def _do(self, line: ManifestLine) -> None:
        try:
            if not self._stop.is_set():
                self._classify_line(line)
        except Exception as error:
            self._error = self._error or error
            self._stop.set()
        finally:
            self._videos.places.release()

    def _classify_line(self, line: ManifestLine) -> None:
        known: dict[str, Any] = {"custom_id": line.line.custom_id if line.line else None}
        if line.line is not None and line.line.metadata is not None:
            known["metadata"] = line.line.metadata
        result, error = None, line.error
        if line.line is not None:
            try:
                result = self._result(line.line)
            except _OF_THE_JOB:
                raise
            except VidlexError as failure:
                error = failure
            except Exception:
                _log.exception("batch_video_crashed", job_id=self._job.id, line=line.number)
                error = VidlexError("The service failed on this video")
        if self._stop.is_set() or self._work.cancelled.is_set():
            return  # the error may be due to this, and the line will be done again
        if error is None:
            self._outputs.write("output", line.number, {**known, "result": result})
        else:
            code = JOB_TIMEOUT if isinstance(error, Overloaded) else error.code  # it was tried until then
            self._outputs.write("errors", line.number, {**known, "error": {"code": code, "detail": str(error)}})
        self._report()

    def _result(self, line: BatchLine) -> dict[str, Any]:
        deadline = min(self._work.deadline, time.monotonic() + self._videos.video_seconds)
        requester = Requester(self._job.client, deadline, self._stop)
        for num_left in reversed(range(_NUM_TRIES)):
            try:
                with self._videos.sources.fetched(line.address, requester) as file:
                    params = params_of_line(line.params or self._params, line.custom_id, line.metadata)
                    return self._videos.videos.classify(file, params, self._job, requester)
            except Exception as error:
                may_pass = isinstance(error, EncodeFailed) or not isinstance(error, VidlexError)
                if not may_pass or not num_left or self._stop.wait(_RETRY_SECONDS):
                    raise
        raise AssertionError

    def _report(self) -> None:
        done = len(self._outputs.done)
        self._work.report(JobProgress("classify", "videos", done, self._total, self._outputs.num_failed))


def _file_view(file: BatchFile) -> dict[str, Any]:
    return {"name": file.name, "lines": file.num_lines, "bytes": file.num_bytes}

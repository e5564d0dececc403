"""The kind of job that gives kept videos features of the served model: read again from their URIs, with their sampling.

A video that has features of the model is passed over, so that an attempt goes on where the last one ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.errors import (
    ByteQuotaExceeded,
    FetchFailed,
    ModelConflict,
    ModelLoading,
    NotFound,
    Overloaded,
    Stopping,
    StorageFull,
    StoreUnavailable,
    VidlexError,
)
from vidlex.service.jobs.classify import patiently, requester_of
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job, JobProgress
from vidlex.service.jobs.sources import JobSources
from vidlex.service.machine.version import service_version
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.videos.keeping import Keeper, KeepOptions, keep_classification
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.records import KeptVideo
from vidlex.service.videos.store import KeptVideoStore

MAX_VIDEO_IDS = 1000  # of one job
MAX_SHOWN = 100  # failures and ids in a result
_PAGE_VIDEOS = 200
_OF_THE_JOB = (  # not of one video
    StoreUnavailable, ModelLoading, ModelConflict, Stopping, StorageFull, ByteQuotaExceeded, Overloaded,
)  # fmt: skip

_log = structlog.get_logger("vidlex.retagging")


@dataclass(frozen=True)
class ReencodeParams:
    """Of a job, as JSON. ``model``: fingerprint; ``video_ids``: None for all videos that lack features of it."""

    model: str
    video_ids: Sequence[str] | None = None

    def as_json(self) -> dict[str, Any]:
        return {"model": self.model, "video_ids": None if self.video_ids is None else list(self.video_ids)}


@dataclass(frozen=True, eq=False)
class ReencodeParts:
    models: ModelRegistry
    videos: KeptVideoStore
    sources: JobSources
    classifier: VideoClassifier
    num_parallel: int


class ReencodeHandler:
    """See JobHandler."""

    def __init__(self, parts: ReencodeParts) -> None:
        self._parts = parts

    def __call__(self, job: Job, work: JobWork) -> Mapping[str, Any]:
        """Raises ModelConflict if another model is served by now, and what the stores and the engine raise."""
        return _Run(self._parts, job, work).run()


@dataclass
class _Counts:
    reencoded: int = 0
    failed: int = 0
    without_uri: int = 0
    removed: int = 0  # while the job ran
    failures: list[dict[str, str]] = field(default_factory=list)
    ids_without_uri: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.reencoded + self.failed + self.without_uri + self.removed


class _Run:
    """One attempt at a job."""

    def __init__(self, parts: ReencodeParts, job: Job, work: JobWork) -> None:
        self._parts = parts
        self._job = job
        self._work = work
        self._params = ReencodeParams(**job.params)
        self._requester = requester_of(job, work)
        self._counts = _Counts()
        self._lock = threading.Lock()

    def run(self) -> dict[str, Any]:
        with self._vocabulary():
            total = self._count()
        self._report(total)
        pending: set[Future[None]] = set()
        with ThreadPoolExecutor(self._parts.num_parallel, thread_name_prefix="reencode") as threads:
            try:
                for video in self._missing():
                    self._requester.check()
                    if video.uri is None:
                        self._count_without_uri(video)
                    else:
                        pending.add(threads.submit(self._reencode, video, video.uri))
                    while len(pending) >= 2 * self._parts.num_parallel:
                        pending = self._finished(pending)
                        self._report(total)
                while pending:
                    pending = self._finished(pending)
                    self._report(total)
            finally:
                for future in pending:
                    future.cancel()
        counts = self._counts
        return {
            "object": "videos.reencode",
            "model": self._params.model,
            "num_reencoded": counts.reencoded,
            "num_failed": counts.failed,
            "num_without_uri": counts.without_uri,
            "num_removed": counts.removed,
            "failures": counts.failures,
            "ids_without_uri": counts.ids_without_uri,
        }

    def _count(self) -> int:
        namespace, ids = self._job.namespace, self._params.video_ids
        if ids is not None:
            return len(set(ids))
        num_videos, _ = self._parts.videos.usage(namespace)
        return max(0, num_videos - self._parts.videos.generations(namespace).get(self._params.model, 0))

    def _missing(self) -> Iterator[KeptVideo]:
        videos, namespace, model = self._parts.videos, self._job.namespace, self._params.model
        if self._params.video_ids is not None:
            for video in videos.get_many(namespace, list(dict.fromkeys(self._params.video_ids))):
                if model not in video.generations:
                    yield video
            return
        after: str | None = None
        wanted = VideoFilter(missing_fingerprint=model)
        while True:
            page = videos.page(namespace, wanted, limit=_PAGE_VIDEOS, after_id=after, check=self._requester.check)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def _finished(self, pending: set[Future[None]]) -> set[Future[None]]:
        """Those that are not. Raises what ends the job."""
        done, rest = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        self._requester.check()
        return rest

    def _reencode(self, video: KeptVideo, uri: str) -> None:
        """Raises only errors of the job."""
        try:
            is_kept = self._encode(video, uri)
        except _OF_THE_JOB:
            raise
        except VidlexError as error:
            _log.info("video_not_reencoded", video_id=video.id, code=error.code, internal=error.internal)
            with self._lock:
                self._counts.failed += 1
                if len(self._counts.failures) < MAX_SHOWN:
                    self._counts.failures.append({"video_id": video.id, "code": error.code, "detail": str(error)})
            return
        with self._lock:
            self._counts.reencoded += is_kept
            self._counts.removed += not is_kept

    def _encode(self, video: KeptVideo, uri: str) -> bool:
        """Whether the video still exists."""
        options = options_of(video)
        with self._parts.sources.fetched(uri, self._requester) as file:
            if file.sha256 != video.sha256:
                raise FetchFailed("The URL has another content than the video that was kept")
            with self._vocabulary() as vocabulary:
                result = patiently(
                    lambda: self._parts.classifier.classify(
                        file.path, options, vocabulary, sha256=file.sha256, requester=self._requester
                    ),
                    self._requester,
                )
        store, namespace = self._parts.videos, self._job.namespace
        if not store.get_many(namespace, [video.id]):
            return False
        keeper = Keeper(
            namespace=namespace,
            client=video.client,
            service=f"vidlex {service_version()}",
            frames_at=lambda times_ms, pixels: [],  # the thumbnails stay as they are
        )
        kept = keep_classification(store, result, options, KeepOptions(), keeper)
        if kept.id == video.id:
            return True
        with suppress(NotFound):  # the video was removed in between, and made again
            store.remove(namespace, kept.id)
        return False

    def _vocabulary(self) -> _Acquired:
        """Raises ModelConflict."""
        return _Acquired(self._parts.models, self._job, self._params.model)

    def _count_without_uri(self, video: KeptVideo) -> None:
        with self._lock:
            self._counts.without_uri += 1
            if len(self._counts.ids_without_uri) < MAX_SHOWN:
                self._counts.ids_without_uri.append(video.id)

    def _report(self, total: int) -> None:
        with self._lock:
            done, num_failed = self._counts.done, self._counts.failed + self._counts.without_uri
        self._work.report(JobProgress("encode", "videos", done, max(done, total), num_failed))


class _Acquired:
    """A vocabulary of the model, for the duration of a block."""

    def __init__(self, models: ModelRegistry, job: Job, model: str) -> None:
        self._vocabulary = models.acquire(job.namespace, job.client)
        if self._vocabulary.facts.fingerprint != model:
            self._vocabulary.release()
            raise ModelConflict("Another model is served than when the job was submitted; submit it again")

    def __enter__(self) -> Vocabulary:
        return self._vocabulary

    def __exit__(self, *_: object) -> None:
        self._vocabulary.release()


def options_of(video: KeptVideo) -> ClassifyOptions:
    """That lead to the sampling of the video, with the model's labels left out."""
    sampling = video.sampling
    segment_ms = sampling.get("segment_ms")
    return ClassifyOptions(
        label_ids=[],
        num_frames=sampling["num_frames"],
        frame_policy=sampling["frame_policy"],
        aggregate_by=sampling["aggregate_by"],
        start_ms=sampling.get("start_ms"),
        end_ms=sampling.get("end_ms"),
        **({} if segment_ms is None else {"segment_ms": segment_ms}),
    )

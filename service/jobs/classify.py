"""The kind ``classify``: one video, with the answer that POST /classify gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from vidlex.service.classification.classifier import OnPart, PartialClassification, VideoClassifier
from vidlex.service.errors import InvalidParameter, Overloaded, VidlexError
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job, JobProgress
from vidlex.service.jobs.sources import JobSources, SourceFile
from vidlex.service.machine.version import service_version
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.keeping import Keeper, keep_classification
from vidlex.service.videos.store import KeptVideoStore
from vidlex.service.views.classification import classification_view, classify_options
from vidlex.service.views.keeping import keep_options

ResultT = TypeVar("ResultT")

NUM_PARTIAL_LABELS = 5
_LABELS_SECONDS = 2.0  # between two events with labels
_LABELS_SHARE = 10  # and at least that many times what computing the last one took
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 15.0


class JobVideos:
    """Classifies videos for the handlers of jobs. Thread-safe."""

    def __init__(self, models: ModelRegistry, videos: VideoClassifier, kept: KeptVideoStore) -> None:
        self._models = models
        self._kept = kept
        self._videos = videos
        self._service = f"vidlex {service_version()}"

    def classify(
        self,
        file: SourceFile,
        params: ClassifyParams,
        job: Job,
        requester: Requester,
        on_part: OnPart | None = None,
    ) -> dict[str, Any]:
        """The JSON of a ClassificationView. Waits while the service is overloaded, as long as the requester does.

        Raises what ``VideoClassifier.classify``, ``ModelRegistry.acquire`` and ``keep_classification`` raise.
        """
        keep = keep_options(params, uri=file.uri)
        if keep is not None and not job.params.get("keep"):  # the key was asked for its scope by these
            raise InvalidParameter("A video of a batch is kept only if the params of the batch say keep too")

        def work() -> dict[str, Any]:
            vocabulary = self._models.acquire(job.namespace, job.client)
            try:
                result = self._videos.classify(
                    file.path,
                    classify_options(params),
                    vocabulary,
                    sha256=file.sha256,
                    requester=requester,
                    on_part=on_part,
                )
                video_id = None
                if keep is not None:
                    keeper = Keeper(
                        namespace=job.namespace,
                        client=job.client,
                        service=self._service,
                        frames_at=partial(self._videos.frames_at, file.path, requester=requester),
                    )
                    video_id = keep_classification(self._kept, result, classify_options(params), keep, keeper).id
                view = classification_view(result, params, vocabulary, service=self._service, video_id=video_id)
                return view.model_dump(mode="json")
            finally:
                vocabulary.release()

        return patiently(work, requester)


class ClassifyHandler:
    """See JobHandler. ``params`` of the job are those of POST /classify, without a deadline."""

    def __init__(self, sources: JobSources, videos: JobVideos) -> None:
        self._sources = sources
        self._videos = videos

    def __call__(self, job: Job, work: JobWork) -> Mapping[str, Any]:
        params = validate(ClassifyParams, job.params)
        requester = requester_of(job, work)
        report = PartReporter(work)
        with self._sources.opened(job.input, requester, report.on_bytes) as file:
            work.report(JobProgress("decode", "frames", 0))
            return self._videos.classify(file, params, job, requester, report)


class PartReporter:
    """Of one video: reports its bytes and frames, and emits the labels until now."""

    def __init__(self, work: JobWork) -> None:
        self._work = work
        self._next_labels_at = 0.0  # of time.monotonic

    def on_bytes(self, done: int, total: int | None) -> None:
        self._work.report(JobProgress("fetch", "bytes", done, total))

    def __call__(self, part: PartialClassification) -> None:
        self._work.report(JobProgress("encode", "frames", part.num_frames))
        started = time.monotonic()
        if started < self._next_labels_at:
            return
        try:
            labels = part.rank(NUM_PARTIAL_LABELS)
        except VidlexError:  # the result says what is wrong
            labels = []
        data = {
            "until_ms": part.until_ms,
            "end_ms": part.end_ms,
            "frames": part.num_frames,
            "labels": [
                {
                    "id": None if scored.label is None else scored.label.id,
                    "name": scored.name,
                    "score": round(scored.score, 4),
                    "matched": scored.matched,
                }
                for scored in labels
            ],
        }
        self._work.emit("labels", data)
        took = time.monotonic() - started
        self._next_labels_at = started + max(_LABELS_SECONDS, _LABELS_SHARE * took)


def requester_of(job: Job, work: JobWork) -> Requester:
    return Requester(job.client, work.deadline, work.cancelled)


def patiently(action: Callable[[], ResultT], requester: Requester) -> ResultT:
    """Tries again while too much is queued, which passes. Raises what ``action`` raises, and Overloaded at the end."""
    pause_seconds = _MIN_PAUSE_SECONDS
    while True:
        try:
            return action()
        except Overloaded:
            left = requester.deadline - time.monotonic()
            if left <= pause_seconds or requester.cancelled.wait(pause_seconds):
                raise
            pause_seconds = min(_MAX_PAUSE_SECONDS, 2 * pause_seconds)

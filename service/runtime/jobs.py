"""The parts of jobs: their store, their files, what they read, what works on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from vidlex.service.bounds import MAX_CLASSIFICATION_BYTES
from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.jobs.batch.handler import BatchHandler
from vidlex.service.jobs.classify import ClassifyHandler, JobVideos
from vidlex.service.jobs.event_reader import EventReader
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.handlers import JobHandler
from vidlex.service.jobs.records import Job, JobDefaults, JobKind
from vidlex.service.jobs.runner import JobRunner, RunnerOptions
from vidlex.service.jobs.sources import JobSources
from vidlex.service.jobs.store import JobLimits, JobStore, QueueWebhook
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.outbound.requests import Outbound
from vidlex.service.runtime.store_connection import StoreConnection
from vidlex.service.settings import Settings
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.videos.store import KeptVideoStore


class JobParts:
    """``start`` first, ``close`` last. Other parts add their kinds to ``handlers`` before the start."""

    def __init__(
        self,
        settings: Settings,
        store: StoreConnection,
        models: ModelRegistry,
        videos: VideoClassifier,
        metrics: Metrics,
        *,
        fetching: Outbound,
        kept_videos: KeptVideoStore,
        queue_webhook: QueueWebhook,
        is_draining: Callable[[], bool],
    ) -> None:
        """Raises StorageFull, and OSError if the jobs' folder cannot be used."""
        limits = JobLimits(
            settings.max_queued_jobs,
            settings.job_lease_seconds,
            max_result_bytes=2 * MAX_CLASSIFICATION_BYTES,
            max_namespace_bytes=settings.max_job_record_bytes,
        )
        self.store = JobStore(store.client, limits, queue_webhook, guard=store.guard.check)
        self.files = JobFiles(settings.jobs_dir or settings.data_dir / "jobs", settings.max_job_bytes)
        self.files.open()
        self.sources = JobSources(
            self.files,
            fetching,
            settings.downloads_dir,
            buckets=settings.fetch_buckets,
            max_bytes=settings.max_fetch_bytes,
            timeout_seconds=settings.fetch_timeout_seconds,
        )
        self.videos = JobVideos(models, videos, kept_videos)
        self.defaults = JobDefaults(
            settings.job_attempts,
            settings.job_timeout_seconds,
            settings.job_queue_seconds,
            settings.job_result_seconds,
        )
        self.events = EventReader(self.store.read_events, self.store.poll_events)
        self.handlers: dict[JobKind, JobHandler] = {
            "classify": ClassifyHandler(self.sources, self.videos),
            "batch": BatchHandler(
                self.files,
                self.sources,
                self.videos,
                num_parallel=settings.decode_workers,
                video_seconds=settings.job_timeout_seconds,
            ),
        }
        num_workers = num_job_workers(settings)
        # Batches share the places of their handler: many at a time take turns video by video.
        own_places: dict[JobKind, int] = {"batch": 4 * num_workers, "backfill": num_workers, "reencode": num_workers}
        options = RunnerOptions(
            num_workers,
            own_places,
            (self.files.place,),
            settings.job_lease_seconds,
            turn_kinds=frozenset({"batch", "reencode"}),
        )
        self.runner = JobRunner(
            self.store,
            self.handlers,
            options,
            metrics,
            on_succeeded=self._remove_input,
            on_removed=self.files.remove_files_of,
            chores=self._remove_orphans,
            is_draining=is_draining,
        )
        self._cleanup = ExitStack()

    def start(self) -> None:
        self._cleanup.callback(self.events.close)
        self._cleanup.callback(self.sources.close)
        self.sources.start()
        self._cleanup.callback(self.runner.close)
        self.runner.start()

    def close(self) -> None:
        """Running jobs are given back."""
        self._cleanup.close()

    def _remove_input(self, job: Job) -> None:
        if job.input is not None:
            self.files.remove(job.input)

    def _remove_orphans(self) -> None:
        self.files.sweep(self.store.inputs_in_use, self.store.existing)


def num_job_workers(settings: Settings) -> int:
    return settings.decode_workers if settings.job_workers is None else settings.job_workers

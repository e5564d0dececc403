"""Builds, starts and stops the parts that work behind the requests: jobs, webhooks, kept videos, feedback."""

from __future__ import annotations

from collections.abc import Callable

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.feedback.feedback import Feedback
from vidlex.service.feedback.store import FeedbackStore
from vidlex.service.http.background import Background
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Outbound
from vidlex.service.runtime.jobs import JobParts
from vidlex.service.runtime.retagging import RetaggingParts
from vidlex.service.runtime.store_connection import StoreConnection
from vidlex.service.settings import Settings
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.videos.store import KeptVideoStore, VideoLimits
from vidlex.service.videos.sweeper import VideoSweeper
from vidlex.service.webhooks.sender import SenderLimits, WebhookSender
from vidlex.service.webhooks.store import WebhookStore


class BackgroundParts:
    """``start`` after the models are served; ``close`` before they are. While ``is_draining``, no job is taken."""

    def __init__(
        self,
        settings: Settings,
        store: StoreConnection,
        models: ModelRegistry,
        videos: VideoClassifier,
        metrics: Metrics,
        *,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        webhooks = WebhookStore(store.client, guard=store.guard.check)
        webhook_policy = UrlPolicy.configured(settings.webhook_hosts, settings.private_networks)
        timeout_seconds = settings.webhook_timeout_seconds
        self._sender = WebhookSender(
            webhooks,
            Outbound(webhook_policy),
            SenderLimits.of_timeout(timeout_seconds),
            on_attempt=metrics.on_webhook_attempt,
        )
        kept_videos = KeptVideoStore(
            store.client,
            settings.videos_dir or settings.data_dir / "videos",
            VideoLimits(settings.max_kept_bytes, settings.kept_video_seconds or None),
            guard=store.guard.check,
        )
        feedback = Feedback(
            FeedbackStore(store.client, guard=store.guard.check),
            kept_videos,
            min_judgements=settings.feedback_min,
            apply_automatically=settings.feedback_apply == "auto",
        )
        self._sweeper = VideoSweeper(kept_videos)
        fetching = Outbound(UrlPolicy.configured(settings.fetch_hosts, settings.private_networks))
        self.jobs = JobParts(
            settings,
            store,
            models,
            videos,
            metrics,
            fetching=fetching,
            kept_videos=kept_videos,
            queue_webhook=webhooks.queue,
            is_draining=is_draining,
        )
        retagging = RetaggingParts(settings, store, models, videos, kept_videos, webhooks=webhooks, jobs=self.jobs)
        self.parts = Background(
            kept_videos=kept_videos,
            label_matches=retagging.matches,
            video_search=retagging.search,
            webhooks=webhooks,
            webhook_policy=webhook_policy,
            fetching=fetching,
            jobs=self.jobs.store,
            job_files=self.jobs.files,
            job_sources=self.jobs.sources,
            job_limits=self.jobs.defaults,
            job_events=self.jobs.events,
            job_runner=self.jobs.runner,
            feedback=feedback,
        )

    def start(self) -> None:
        self._sender.start()
        self._sweeper.start()
        self.jobs.start()

    def close(self) -> None:
        self.jobs.close()
        self._sender.close()
        self._sweeper.close()

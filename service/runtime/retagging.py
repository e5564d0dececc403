"""The parts that apply new labels and new models to kept videos, and search them."""

from __future__ import annotations

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.retagging.backfill import BackfillHandler
from vidlex.service.retagging.codes import CodeCache
from vidlex.service.retagging.matches import MatchStore
from vidlex.service.retagging.reencode import ReencodeHandler, ReencodeParts
from vidlex.service.retagging.search import VideoSearch
from vidlex.service.runtime.jobs import JobParts
from vidlex.service.runtime.store_connection import StoreConnection
from vidlex.service.settings import Settings
from vidlex.service.videos.store import KeptVideoStore
from vidlex.service.webhooks.store import WebhookStore


class RetaggingParts:
    """Adds its kinds to the handlers of ``jobs``, which must not have started."""

    def __init__(
        self,
        settings: Settings,
        store: StoreConnection,
        models: ModelRegistry,
        videos: VideoClassifier,
        kept_videos: KeptVideoStore,
        *,
        webhooks: WebhookStore,
        jobs: JobParts,
    ) -> None:
        root = settings.videos_dir or settings.data_dir / "videos"
        self.matches = MatchStore(store.client, root, settings.max_kept_bytes, guard=store.guard.check)
        self.search = VideoSearch(kept_videos, CodeCache(settings.search_bytes))
        jobs.handlers["backfill"] = BackfillHandler(models, kept_videos, self.matches, webhooks)
        jobs.handlers["reencode"] = ReencodeHandler(
            ReencodeParts(models, kept_videos, jobs.sources, videos, settings.decode_workers)
        )

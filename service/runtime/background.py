"""Builds, starts and stops the parts that work behind the requests: jobs, webhooks, kept videos, feedback."""

from __future__ import annotations

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.http.background import Background
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.runtime.store_connection import StoreConnection
from vidlex.service.settings import Settings
from vidlex.service.telemetry.metrics import Metrics


class BackgroundParts:
    """``start`` after the models are served; ``close`` before they are."""

    def __init__(
        self,
        settings: Settings,
        store: StoreConnection,
        models: ModelRegistry,
        videos: VideoClassifier,
        metrics: Metrics,
    ) -> None:
        self.parts = Background()

    def start(self) -> None: ...

    def close(self) -> None: ...

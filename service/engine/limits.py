"""Limits of the engine, derived from the settings."""

from __future__ import annotations

from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.settings import Settings


def engine_limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_queued_frames=settings.max_queued_frames,
        max_queued_labels=settings.max_queued_labels,
        max_batch_frames=settings.max_batch_frames,
        max_batch_labels=settings.max_batch_labels,
    )

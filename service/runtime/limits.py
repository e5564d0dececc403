"""Derives the limits of each part from the settings."""

from __future__ import annotations

from vidlex.model.decode.limits import DecodeLimits
from vidlex.service.decode.pool import PoolLimits
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.http.uploads import UploadLimits
from vidlex.service.models.served_model import ServedLimits
from vidlex.service.settings import Settings


def upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_bytes=settings.max_upload_bytes,
        max_json_bytes=settings.max_json_bytes,
        max_spool_bytes=settings.max_spool_bytes,
        max_uploads=settings.max_waiting_uploads,
        idle_seconds=settings.upload_idle_seconds,
        timeout_seconds=settings.upload_timeout_seconds,
    )


def pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        max_waiting=settings.max_waiting_videos,
        timeout_seconds=settings.decode_timeout_seconds,
        memory_bytes=settings.decode_memory_bytes,
        total_memory_bytes=settings.decode_total_memory_bytes,
        required_isolation=settings.require_isolation,
        decode=DecodeLimits(
            max_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            max_duration_ms=settings.max_duration_ms,
            max_frames=settings.max_frames,
            max_total_frames=max(settings.max_frames, settings.max_total_frames),
            max_looks=settings.max_looks,
        ),
    )


def num_spare_decoders(settings: Settings) -> int:
    return max(2, settings.decode_workers // 2)


def engine_limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_queued_frames=settings.max_queued_frames,
        max_queued_labels=settings.max_queued_labels,
        max_batch_frames=settings.max_batch_frames,
        max_batch_labels=settings.max_batch_labels,
    )


def served_limits(settings: Settings) -> ServedLimits:
    return ServedLimits(
        max_namespaces=settings.max_namespaces,
        label_timeout_seconds=settings.label_timeout_seconds,
        candidate_cache_bytes=settings.candidate_cache_bytes,
        storage=settings.index_vectors,
        approximate=settings.index == "approximate",
    )

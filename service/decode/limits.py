"""Limits of the decode processes, derived from the settings."""

from __future__ import annotations

from vidlex.model.decode.limits import DecodeLimits
from vidlex.service.decode.pool import PoolLimits
from vidlex.service.settings import Settings


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

"""Limits of the parts that only a service has, derived from the settings."""

from __future__ import annotations

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


def num_spare_decoders(settings: Settings) -> int:
    return max(2, settings.decode_workers // 2)


def served_limits(settings: Settings) -> ServedLimits:
    return ServedLimits(
        max_namespaces=settings.max_namespaces,
        label_timeout_seconds=settings.label_timeout_seconds,
        candidate_cache_bytes=settings.candidate_cache_bytes,
        storage=settings.index_vectors,
        approximate=settings.index == "approximate",
    )

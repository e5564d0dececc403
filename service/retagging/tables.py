"""Features of the served model, and how many kept videos have none."""

from __future__ import annotations

from vidlex.service.errors import FeatureGenerationMissing
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.store import KeptVideoStore


def table_of(videos: KeptVideoStore, namespace: str, fingerprint: str) -> KeptTable:
    """Raises FeatureGenerationMissing if there are kept videos, but none of this encoder."""
    table = videos.table(namespace, fingerprint)
    if not table.num_videos and any(videos.generations(namespace).values()):
        raise FeatureGenerationMissing
    return table


def count_missing(videos: KeptVideoStore, namespace: str, table: KeptTable) -> int:
    """Kept videos without features in ``table``; of about the same moment."""
    return max(0, videos.usage(namespace)[0] - table.num_videos)

"""What matches a label, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import redis

from support.stores import guard_of
from vidlex.service.retagging.match_files import ID_TYPE, MatchedVideos
from vidlex.service.retagging.matches import MatchRecord, MatchStore
from vidlex.service.videos.keys import first_id_of


def match_store(client: redis.Redis, folder: Path, *, max_bytes: int = 2**30) -> MatchStore:
    return MatchStore(client, folder, max_bytes, guard=guard_of(client))


def matched_videos(num: int, *, num_gained: int = 0, num_lost: int = 0) -> MatchedVideos:
    """The last ones are gained."""
    ids = np.array([first_id_of(1 + i) for i in range(num + num_lost)], ID_TYPE)
    times = np.arange(num, dtype=np.int64)
    scores = np.linspace(0.5, 1, num, dtype=np.float32)
    return MatchedVideos(ids[:num], scores, times, times + 1, times >= num - num_gained, ids[num:])


def match_record(label_id: str, job_id: str) -> MatchRecord:
    return MatchRecord(label_id, job_id, "", 0, "encoder-1", None, 1, 0.5, 9, 9, 0, 0, 0)

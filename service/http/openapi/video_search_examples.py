"""Examples of the bodies of searches among kept videos, of backfills and of re-encoding."""

from __future__ import annotations

from typing import Any

from vidlex.service.http.openapi.job_examples import JOB_ID, QUEUED_JOB

_TIME_MS = 1796145973690
_VIDEO_ID = "vid_01m8sa92dpz006bms3r0pj6t"
_LOST_ID = "vid_01m8sa92e3k2jw8q0d5c7xnv"
_LABEL_ID = "lbl_000000020000wn88xex5bvdb"
_FINGERPRINT = "photo-small-4f6c1a"
_JOB: dict[str, Any] = QUEUED_JOB | {
    "kind": "backfill",
    "input": None,
    "metadata": {"run": 3},
    "created_at_ms": _TIME_MS,
    "expires_at_ms": _TIME_MS + 86_400_000,
}
_DONE: dict[str, Any] = _JOB | {
    "state": "succeeded",
    "attempts": 1,
    "progress": {"stage": "match", "unit": "segments", "done": 9600, "total": 9600, "num_failed": 0},
    "started_at_ms": _TIME_MS + 12,
    "finished_at_ms": _TIME_MS + 154,
    "expires_at_ms": _TIME_MS + 604_800_000,
    "result_url": f"/jobs/{JOB_ID}/result",
}

VIDEO_SEARCH_REQUESTS: dict[str, dict[str, Any]] = {
    "search_videos": {
        "text": {"text": "a dog that jumps", "limit": 5, "segments": True, "filters": {"metadata": {"team": "pets"}}},
        "example": {"video_id": _VIDEO_ID, "start_ms": 4000, "end_ms": 8000},
    },
    "backfill_videos": {
        "labels": {"label_ids": [_LABEL_ID], "webhook": {"url": "https://hooks.example/vidlex"}},
        "new": {"since_revision": 41},
    },
    "reencode_videos": {"all": {}, "some": {"video_ids": [_VIDEO_ID], "metadata": {"run": 3}}},
}

VIDEO_SEARCH_RESPONSES: dict[tuple[str, str], dict[str, Any]] = {
    ("search_videos", "200"): {
        "found": {
            "object": "videos.search",
            "data": [
                {
                    "video_id": _VIDEO_ID,
                    "client_id": "clip-17",
                    "uri": "s3://team-videos/17.mp4",
                    "metadata": {"team": "pets"},
                    "duration_ms": 12_000,
                    "created_at_ms": _TIME_MS,
                    "score": 0.93,
                    "similarity": 0.31,
                    "num_segments": 3,
                    "segments": [{"start_ms": 4000, "end_ms": 8000, "score": 0.93}],
                }
            ],
            "scores": "probability",
            "model": {"id": "photo-small", "fingerprint": _FINGERPRINT},
            "calibration": None,
            "vocabulary_revision": 42,
            "num_videos": 1200,
            "num_segments": 9600,
            "num_missing": 0,
            "approximate": False,
            "complete": True,
        }
    },
    ("backfill_videos", "202"): {"queued": _JOB},
    ("backfill_videos", "200"): {"repeated": _DONE},
    ("reencode_videos", "202"): {"queued": _JOB | {"kind": "reencode"}},
    ("reencode_videos", "200"): {"repeated": _DONE | {"kind": "reencode"}},
    ("get_video_generations", "200"): {
        "generations": {
            "object": "videos.generations",
            "data": [
                {"model": _FINGERPRINT, "num_videos": 1000, "served": True},
                {"model": "emoji-base-90b2de", "num_videos": 1200, "served": False},
            ],
            "num_videos": 1200,
            "num_missing": 200,
            "sample_missing_ids": [_VIDEO_ID],
        }
    },
    ("list_label_videos", "200"): {
        "page": {
            "object": "list",
            "data": [
                {"video_id": _VIDEO_ID, "score": 0.93, "start_ms": 4000, "end_ms": 8000, "change": "gained"},
                {"video_id": _LOST_ID, "score": 0.71, "start_ms": 0, "end_ms": 4000, "change": None},
            ],
            "has_more": False,
            "first_id": _VIDEO_ID,
            "last_id": _LOST_ID,
            "job_id": JOB_ID,
            "model": _FINGERPRINT,
            "calibration": None,
            "vocabulary_revision": 42,
            "threshold": 0.5,
            "num_videos": 1200,
            "num_matched": 2,
            "num_gained": 1,
            "num_lost": 0,
            "created_at_ms": _TIME_MS,
        }
    },
}

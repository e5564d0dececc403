"""Examples of the bodies of kept videos."""

from __future__ import annotations

from typing import Any

_ID = "vid_01m8sa92dpz006bms3r0pj6t"
_TIME_MS = 1796145973690
_FINGERPRINT = "photo-small-4f6c1a"
_VIDEO: dict[str, Any] = {
    "object": "video",
    "id": _ID,
    "client_id": "upload-17",
    "sha256": "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4",
    "uri": "s3://videos/17.mp4",
    "metadata": {"channel": 4},
    "sampling": {
        "aggregate_by": "segments",
        "frame_policy": "uniform",
        "num_frames": 8,
        "segment_ms": 1000,
        "start_ms": None,
        "end_ms": None,
    },
    "facts": {
        "duration_ms": 2000,
        "start_ms": 0,
        "width": 320,
        "height": 240,
        "fps": 24.0,
        "codec": "h264",
        "bytes": 183052,
    },
    "encoding": {
        "service": "vidlex 0.1.0",
        "decoder": "PyAV 18.1.0, FFmpeg 8.1.2",
        "model": "photo-small",
        "fingerprint": _FINGERPRINT,
        "encoder": "fast bfloat16",
        "frame_policy": "uniform",
        "frames_requested": 16,
        "frames_decoded": 16,
        "frames_failed": 0,
        "frames_blank": 0,
    },
    "generations": [{"fingerprint": _FINGERPRINT, "num_segments": 2}],
    "bytes": 5878,
    "created_at_ms": _TIME_MS,
    "updated_at_ms": _TIME_MS,
    "expires_at_ms": None,
}
_SEGMENTS = [{"start_ms": 0, "end_ms": 1000}, {"start_ms": 1000, "end_ms": 2000}]
_THUMBNAIL = {"start_ms": 1000, "end_ms": 2000, "at_ms": 1500, "url": f"/videos/{_ID}/thumbnails/0"}

VIDEO_RESPONSES: dict[tuple[str, str], dict[str, Any]] = {
    ("list_videos", "200"): {
        "page": {"object": "list", "data": [_VIDEO], "has_more": False, "first_id": _ID, "last_id": _ID}
    },
    ("get_video", "200"): {"video": _VIDEO | {"segments": _SEGMENTS, "thumbnails": [_THUMBNAIL]}},
    ("get_video_thumbnail", "200"): {"picture": "the bytes of a JPEG"},
    ("get_video_features", "200"): {
        "features": {
            "object": "video.features",
            "id": _ID,
            "fingerprint": _FINGERPRINT,
            "num_segments": 2,
            "offset": 1,
            "data": [_SEGMENTS[1] | {"vector": [0.6, 0.7998046875]}],
        }
    },
}

"""Examples of bodies in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from vidlex.service.errors import LabelExists
from vidlex.service.http.openapi import job_examples
from vidlex.service.http.openapi.errors import example_problem
from vidlex.service.http.openapi.feedback_examples import FEEDBACK_REQUESTS, FEEDBACK_RESPONSES
from vidlex.service.http.openapi.video_examples import VIDEO_RESPONSES
from vidlex.service.http.openapi.video_search_examples import VIDEO_SEARCH_REQUESTS, VIDEO_SEARCH_RESPONSES
from vidlex.service.http.openapi.webhook_examples import WEBHOOK_REQUESTS, WEBHOOK_RESPONSES

_TIME_MS = 1796057582384
_DOG: dict[str, Any] = {
    "object": "label",
    "id": "lbl_000000010000vn7hc6x9xe2f",
    "name": "dog",
    "aliases": [],
    "categories": ["animal"],
    "parents": [],
    "threshold": None,
    "metadata": {},
    "created_at_ms": _TIME_MS,
    "updated_at_ms": _TIME_MS,
    "revision": 1,
    "warnings": [],
    "etag": "1-1a22d5fcb30",
}
_RETRIEVER = _DOG | {
    "id": "lbl_000000020000wn88xex5bvdb",
    "name": "golden retriever",
    "aliases": ["goldie"],
    "parents": [{"id": _DOG["id"], "name": "dog"}],
    "threshold": 0.6,
    "revision": 2,
    "etag": "2-1a22d5fcb30.6c1d2f",
}
_NEW_LABEL = {"name": "golden retriever", "aliases": ["goldie"], "categories": ["animal"], "parents": ["dog"]}
_MODEL = {"id": "photo-small", "fingerprint": "photo-small-4f6c1a"}
_NEXT_MODEL = {"id": "emoji-base", "fingerprint": "emoji-base-90b2de"}
_CARD = {
    "object": "label.card",
    "id": _RETRIEVER["id"],
    "name": "golden retriever",
    "prompts": ["a video of a golden retriever"],
    "attributes": [["dog", "fur", "golden"]],
    "neighbours": [{"id": _DOG["id"], "name": "dog", "similarity": 0.81, "distance": 0.31}],
    "warnings": [],
    "model": _MODEL,
    "vocabulary_revision": 2,
}
_PREVIEW = _CARD | {"id": None}
_REFUSED = {"index": 1, "status": 409, "error": example_problem(LabelExists)}
_KEY = {
    "object": "api_key",
    "id": "051f58579272",
    "name": "importer",
    "scope": "write",
    "namespace": "zoo",
    "created_at_ms": _TIME_MS,
    "expires_at_ms": None,
    "last_used_at_ms": None,
    "requests_per_second": None,
    "burst": None,
    "max_labels": 1000,
}
_CLASSIFICATION = {
    "object": "video.classification",
    "video": {
        "sha256": "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4",
        "duration_ms": 2000,
        "start_ms": 0,
        "width": 320,
        "height": 240,
        "fps": 24.0,
        "codec": "h264",
        "bytes": 183052,
    },
    "coverage": {
        "frame_policy": "uniform",
        "frames_requested": 4,
        "frames_decoded": 4,
        "frames_failed": 0,
        "frames_blank": 0,
        "timestamps_ms": [250, 750, 1250, 1750],
    },
    "labels": [
        {
            "id": _RETRIEVER["id"],
            "name": "golden retriever",
            "score": 0.93,
            "similarity": 0.31,
            "threshold": 0.6,
            "matched": True,
            "categories": ["animal"],
            "segments": [
                {"start_ms": 0, "end_ms": 1000, "score": 0.12},
                {"start_ms": 1000, "end_ms": 2000, "score": 0.93},
            ],
            "stretches": [{"start_ms": 1000, "end_ms": 2000, "score": 0.93, "peak_ms": 1500}],
        }
    ],
    "model": _MODEL,
    "calibration": None,
    "vocabulary_revision": 2,
    "video_id": None,
    "usage": {"decode_ms": 21, "encode_ms": 64, "match_ms": 1, "queue_ms": 0, "cached": False},
    "warnings": [],
    "receipt": {
        "id": "5e06ee43bd26046ec9fef7464fa0f7ce4ebaba167c4a7f59e39aa3cf356521f4",
        "service": "vidlex 0.1.0",
        "sha256": "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4",
        "decoder": "PyAV 18.1.0, FFmpeg 8.1.2",
        "model": _MODEL["fingerprint"],
        "encoder": "fast bfloat16",
        "calibration": None,
        "namespace": "default",
        "vocabulary_revision": 2,
        "label_vectors": "float32",
        "aggregate_by": "segments",
        "frame_policy": "uniform",
        "num_frames": 2,
        "segment_ms": 1000,
        "start_ms": 0,
        "end_ms": 2000,
        "timestamps_sha256": "32cca1d018a2cfe2c376a724cf14b5c746527c1a824f6b2c0af48334582c9b08",
        "frames_failed": 0,
    },
}


_CALIBRATION = {
    "object": "calibration",
    "fingerprint": "5b0c7ad91e3f2468",
    "model": _MODEL,
    "source": "videos",
    "num_videos": 16,
    "created_at_ms": _TIME_MS,
    "has_platt": False,
    "num_recent_videos": 0,
    "stored": True,
    "vocabulary_revision": 3,
    "labels": [
        {
            "id": _DOG["id"],
            "name": "dog",
            "mean_similarity": 0.21,
            "std_similarity": 0.03,
            "share_before": 0.41,
            "share_after": 0.02,
            "hub": False,
        }
    ],
}


def _loaded(model: dict[str, str], num_encoded: int) -> dict[str, Any]:
    progress = {"loaded": True, "num_encoded": num_encoded, "num_refused": 0, "complete": num_encoded == 2}
    return {"model": model["id"], **model, **progress}


def _models(served: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "object": "models",
        "configured": "photo-small",
        "served": _loaded(served, 2),
        "previous": None,
        "prepared": None,
        "loading": None,
        "problem": None,
        "num_labels": 2,
        "generations": [{"namespace": "default", "fingerprint": served["fingerprint"], "num_labels": 2}],
        **more,
    }


_PREPARED = _models(_MODEL, prepared=_loaded(_NEXT_MODEL, 1))
_CHECKS = {
    name: {"ok": True, "detail": detail}
    for name, detail in {
        "store": "answers",
        "schema": "up to date",
        "model": "photo-small fast bfloat16",
        "encoder": "the last forward pass succeeded",
        "index": "2 labels",
        "decoders": "4 of 4 alive",
        "isolation": "full",
    }.items()
}

# By operationId and name.
REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    **WEBHOOK_REQUESTS,
    **job_examples.REQUESTS,
    **VIDEO_SEARCH_REQUESTS,
    **FEEDBACK_REQUESTS,
    "create_labels": {
        "label": _NEW_LABEL,
        "batch": {"labels": [{"name": "dog", "categories": ["animal"]}, _NEW_LABEL]},
    },
    "update_label": {"threshold": {"threshold": 0.6}, "name": {"name": "golden retriever", "aliases": ["goldie"]}},
    "preview_labels": {
        "label": {"name": "golden retriever"},
        "batch": {"labels": [{"name": "golden retriever"}, {"name": "dog"}]},
    },
    "put_calibration": {
        "statistics": {
            "source": "statistics",
            "statistics": {
                "model": "dummy-1",
                "num_videos": 16,
                "mean": "AACAPgAAgD4AAIA+",
                "basis": "zczMPQAAAAAAAAAA",
                "residual": 0.0001,
            },
        },
        "recent": {"source": "recent", "dry_run": True},
    },
    "prepare_model": {"zoo": {"model": "emoji-base"}},
    "drop_model": {"fingerprint": {"fingerprint": _NEXT_MODEL["fingerprint"]}},
    "create_key": {
        "writer": {"name": "importer", "scope": "write", "namespace": "zoo", "max_labels": 1000},
        "reader": {"name": "dashboard", "scope": "read", "expires_in_seconds": 2_592_000},
    },
}

# By operationId and status.
RESPONSE_EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    **WEBHOOK_RESPONSES,
    **job_examples.responses(_CLASSIFICATION),
    **VIDEO_SEARCH_RESPONSES,
    **FEEDBACK_RESPONSES,
    **VIDEO_RESPONSES,
    ("create_labels", "201"): {"label": _RETRIEVER},
    ("create_labels", "200"): {
        "existing": _RETRIEVER,
        "batch": {
            "object": "list",
            "data": [{"index": 0, "status": 201, "label": _RETRIEVER, "error": None}, _REFUSED | {"label": None}],
        },
    },
    ("list_labels", "200"): {
        "page": {
            "object": "list",
            "data": [_DOG, _RETRIEVER],
            "has_more": False,
            "first_id": _DOG["id"],
            "last_id": _RETRIEVER["id"],
        }
    },
    ("get_label", "200"): {"label": _RETRIEVER},
    ("update_label", "200"): {"label": _RETRIEVER},
    ("get_label_card", "200"): {"card": _CARD},
    ("preview_labels", "200"): {
        "card": _PREVIEW,
        "batch": {
            "object": "list",
            "data": [{"index": 0, "status": 200, "card": _PREVIEW, "error": None}],
        },
    },
    ("classify_video", "200"): {"segments": _CLASSIFICATION},
    ("get_calibration", "200"): {"calibration": _CALIBRATION},
    ("put_calibration", "200"): {"calibration": _CALIBRATION},
    ("get_models", "200"): {"models": _PREPARED},
    ("prepare_model", "202"): {"loading": _models(_MODEL, loading="emoji-base")},
    ("activate_model", "200"): {"activated": _models(_NEXT_MODEL, previous=_loaded(_MODEL, 2))},
    ("rollback_model", "200"): {"restored": _PREPARED},
    ("drop_model", "200"): {"dropped": _models(_MODEL)},
    ("diff_models", "200"): {
        "diff": {
            "object": "model.diff",
            "old": _MODEL["fingerprint"],
            "new": _NEXT_MODEL["fingerprint"],
            "num_videos": 2,
            "num_labels": 2,
            "resized": False,
            "rank_correlation": [0.97, None],
            "labels": [
                {
                    "id": _RETRIEVER["id"],
                    "name": "golden retriever",
                    "mean_shift": 0.21,
                    "mean_score_old": 0.4,
                    "mean_score_new": 0.61,
                    "num_gained": 1,
                    "num_lost": 0,
                    "mean_rank_move": -0.5,
                }
            ],
        }
    },
    ("create_key", "201"): {"key": _KEY | {"key": "vdx_051f58579272_" + "0" * 64}},
    ("list_keys", "200"): {"keys": {"object": "list", "data": [_KEY]}},
    ("get_liveness", "200"): {"alive": {"status": "alive"}},
    ("get_readiness", "200"): {"ready": {"status": "ready", "checks": _CHECKS}},
    ("get_readiness", "503"): {
        "starting": {"status": "starting", "checks": {"start": {"ok": False, "detail": "loading the model"}}}
    },
    ("get_metrics", "200"): {
        "requests": "# TYPE vidlex_requests_total counter\n"
        'vidlex_requests_total{method="GET",route="/labels",status="200"} 1.0\n'
    },
}

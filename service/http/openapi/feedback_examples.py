"""Examples of the bodies of /feedback."""

from __future__ import annotations

from typing import Any

_TIME_MS = 1796057582384
_LABEL: dict[str, Any] = {"label_id": "lbl_000000020000wn88xex5bvdb", "label": "golden retriever"}
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_KEPT = "vid_01jd0q7w4k8t3x5m2n9p6r1c"
_SCORED = {"score": 0.71, "fingerprint": "photo-small-4f6c1a", "calibration": None}
_JUDGEMENT = {
    "object": "judgement",
    "id": "jdg_01jd0q7w4k8t3x5m2n9p6r1c",
    **_LABEL,
    "right": False,
    "sha256": _SHA256,
    "video_id": _KEPT,
    "start_ms": 4000,
    "end_ms": 8000,
    **_SCORED,
    "scored_by": "service",
    "note": "",
    "source": "label-studio",
    "created_at_ms": _TIME_MS,
}
_JUDGED = {"object": "judged_label", **_LABEL, "num_judgements": 31, "min_judgements": 30}
_BEFORE = {
    "threshold": 0.5,
    "precision": {"value": 0.5, "low": 0.33, "high": 0.67},
    "recall": {"value": 1.0, "low": 0.8, "high": 1.0},
    "num_true_positive": 15,
    "num_false_positive": 15,
    "num_false_negative": 0,
    "num_true_negative": 0,
}
_AFTER = {
    "threshold": 0.77,
    "precision": {"value": 0.8, "low": 0.55, "high": 0.93},
    "recall": {"value": 0.8, "low": 0.55, "high": 0.93},
    "num_true_positive": 12,
    "num_false_positive": 3,
    "num_false_negative": 3,
    "num_true_negative": 12,
}
_VERSION = {
    "object": "threshold_version",
    "id": "fit_01jd0q7w4k8t3x5m2n9p6r1c",
    "kind": "fit",
    **_LABEL,
    "threshold_before": None,
    "threshold": 0.77,
    "fingerprint": "photo-small-4f6c1a",
    "calibration": None,
    "client": "051f58579272",
    "created_at_ms": _TIME_MS,
    "reverts": None,
    "fit": {
        "slope": 1.1,
        "intercept": -1.33,
        "low": 0.66,
        "high": 0.86,
        "num_judgements": 30,
        "num_right": 15,
        "num_wrong": 15,
        "target_precision": None,
        "before": _BEFORE,
        "after": _AFTER,
    },
}
_REVERT = _VERSION | {
    "id": "fit_01jd0q8r7n2v5y1h4k6s9t3w",
    "kind": "revert",
    "threshold_before": 0.77,
    "threshold": None,
    "reverts": _VERSION["id"],
    "fit": None,
}
_FIT = {
    "object": "threshold_fit",
    **_LABEL,
    "status": "ready",
    "proposal": "3f1c9a7be2d04568",
    "model": {"id": "photo-small", "fingerprint": "photo-small-4f6c1a"},
    "calibration": None,
    "min_judgements": 30,
    "num_judgements": 33,
    "num_right": 15,
    "num_wrong": 15,
    "num_other_scale": 2,
    "num_other_name": 0,
    "num_unscored": 1,
    "threshold_before": 0.5,
    "threshold": 0.77,
    "low": 0.66,
    "high": 0.86,
    "beyond_uncertainty": True,
    "target_precision": None,
    "slope": 1.1,
    "intercept": -1.33,
    "before": _BEFORE,
    "after": _AFTER,
    "cross_validated": _AFTER | {"threshold": None},
    "applied": None,
    "stale": False,
    "warnings": [
        {
            "code": "judged_videos",
            "detail": "Precision and recall are those of the judged videos, which people chose: no random sample",
        },
        {
            "code": "other_scale",
            "detail": "2 judgements have no score of the served model and calibration",
        },
    ],
}


def _page(first: dict[str, Any], *others: dict[str, Any], key: str = "id") -> dict[str, Any]:
    data = [first, *others]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0][key],
        "last_id": data[-1][key],
    }


# By operationId and name.
FEEDBACK_REQUESTS: dict[str, dict[str, Any]] = {
    "create_feedback": {
        "kept": {"video_id": _KEPT, "label": "golden retriever", "right": False, "start_ms": 4000, "end_ms": 8000},
        "batch": {
            "judgements": [
                {"sha256": _SHA256, "label_id": _LABEL["label_id"], "right": True, **_SCORED},
                {"video_id": _KEPT, "label": "dog", "right": True, "note": "in the background"},
            ]
        },
    },
}

# By operationId and status.
FEEDBACK_RESPONSES: dict[tuple[str, str], dict[str, Any]] = {
    ("create_feedback", "201"): {
        "stored": {"object": "feedback", "judgements": [_JUDGEMENT], "labels": [_JUDGED], "applied": []}
    },
    ("list_feedback", "200"): {"page": _page(_JUDGEMENT)},
    ("list_judged_labels", "200"): {"page": _page(_JUDGED, key="label_id")},
    ("get_fit", "200"): {"ready": _FIT},
    ("apply_threshold", "200"): {"applied": _VERSION},
    ("revert_threshold", "200"): {"reverted": _REVERT},
    ("list_threshold_versions", "200"): {"versions": _page(_REVERT, _VERSION)},
}

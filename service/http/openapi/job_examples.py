"""Examples of the bodies of jobs."""

from __future__ import annotations

from typing import Any

JOB_ID = "job_01jq5xk9y2abcdefghjkmnpq"
_TIME_MS = 1796057582384
_SHA256 = "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4"
QUEUED_JOB: dict[str, Any] = {
    "object": "job",
    "id": JOB_ID,
    "kind": "classify",
    "state": "queued",
    "cancelling": False,
    "dead": False,
    "priority": "normal",
    "input": {"kind": "upload", "url": None, "sha256": _SHA256, "bytes": 183052},
    "metadata": {"order": 17},
    "webhook": None,
    "attempts": 0,
    "max_attempts": 3,
    "progress": None,
    "request_counts": None,
    "error": None,
    "created_at_ms": _TIME_MS,
    "started_at_ms": None,
    "finished_at_ms": None,
    "expires_at_ms": _TIME_MS + 86_400_000,
    "result": None,
    "result_url": None,
    "output_url": None,
    "errors_url": None,
    "events_url": f"/jobs/{JOB_ID}/events",
}
_RUNNING = QUEUED_JOB | {
    "state": "running",
    "attempts": 1,
    "progress": {"stage": "encode", "unit": "frames", "done": 8, "total": 32, "num_failed": 0},
    "started_at_ms": _TIME_MS + 12,
    "expires_at_ms": None,
}
_FINISHED = {
    "attempts": 1,
    "started_at_ms": _TIME_MS + 12,
    "finished_at_ms": _TIME_MS + 154,
    "expires_at_ms": _TIME_MS + 604_800_154,
}
_CANCELLED = QUEUED_JOB | _FINISHED | {"state": "cancelled"}
_FAILED = QUEUED_JOB | _FINISHED
_FAILED |= {"state": "failed", "error": {"code": "undecodable_video", "detail": "The video cannot be decoded"}}
_COUNTS = {"total": 100, "completed": 98, "failed": 2}
_BATCH = QUEUED_JOB | _FINISHED
_BATCH |= {
    "kind": "batch",
    "state": "succeeded",
    "input": {"kind": "url", "url": "https://files.example/batch.jsonl", "sha256": None, "bytes": None},
    "request_counts": _COUNTS,
    "result_url": f"/jobs/{JOB_ID}/result",
    "output_url": f"/jobs/{JOB_ID}/output",
    "errors_url": f"/jobs/{JOB_ID}/errors",
}
_EVENTS = (
    "retry: 1000\n\n"
    'id: 0-1\nevent: state\ndata: {"state":"queued","attempts":0}\n\n'
    f'id: {_TIME_MS + 12}-0\nevent: state\ndata: {{"state":"running","attempts":1}}\n\n'
    f'id: {_TIME_MS + 90}-0\nevent: progress\ndata: {{"stage":"encode","unit":"frames","done":8,"total":32,'
    '"num_failed":0}\n\n'
    f'id: {_TIME_MS + 154}-0\nevent: state\ndata: {{"state":"succeeded","attempts":1}}\n\n'
)

REQUESTS: dict[str, dict[str, Any]] = {
    "create_job": {
        "url": {
            "input": {"url": "https://files.example/videos/1.mp4?signature=3f9a"},
            "params": {"top_k": 3},
            "webhook": {"url": "https://hooks.example/vidlex", "events": ["job.succeeded", "job.failed"]},
            "metadata": {"order": 17},
        },
        "batch": {"kind": "batch", "input": {"url": "s3://team-videos/batch.jsonl"}, "priority": "low"},
    }
}


def responses(classification: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """``classification``: the example of a result."""
    succeeded = (
        QUEUED_JOB
        | _FINISHED
        | {"state": "succeeded", "result": classification, "result_url": f"/jobs/{JOB_ID}/result"}
    )
    page = {"object": "list", "data": [_RUNNING, _FAILED], "has_more": False, "first_id": JOB_ID, "last_id": JOB_ID}
    lines = '{"custom_id":"1","url":"https://files.example/1.mp4"}\n'
    return {
        ("create_job", "200"): {"repeated": succeeded},
        ("create_job", "202"): {"queued": QUEUED_JOB},
        ("list_jobs", "200"): {"page": page},
        ("get_job", "200"): {"succeeded": succeeded, "running": _RUNNING, "batch": _BATCH},
        ("cancel_job", "200"): {"cancelled": _CANCELLED},
        ("cancel_job", "202"): {"running": _RUNNING | {"cancelling": True}},
        ("retry_job", "202"): {"queued": QUEUED_JOB},
        ("get_job_result", "200"): {
            "classification": classification,
            "batch": {"object": "batch.result", "request_counts": _COUNTS, "output": None, "errors": None},
        },
        ("export_job", "200"): {
            "webvtt": "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\ngolden retriever (0.93)\n",
        },
        ("get_job_output", "200"): {"lines": lines},
        ("get_job_errors", "200"): {"lines": lines},
        ("stream_job_events", "200"): {"events": _EVENTS},
        ("classify_video", "202"): {"queued": QUEUED_JOB},
    }

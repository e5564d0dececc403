"""Records of jobs as they are stored, and their JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vidlex.service.errors import InvalidParameter
from vidlex.service.jobs import keys
from vidlex.service.jobs.records import FINAL_STATES, Job, JobError, JobInput, JobProgress, NewJob
from vidlex.service.labels.store.metadata_limits import clean_metadata
from vidlex.service.webhooks.events import WebhookTarget

MAX_PARAMS_BYTES = 1 << 20  # 30,000 label ids and more
OVERHEAD_BYTES = 1024  # of a job's keys and places in indexes, see QUEUE.md
_PRIORITIES = {"high": 0, "normal": 1, "low": 2}
_PRIORITY_STEP = 10**13  # more than a Unix time in ms; sums are exact as floats
_COMPRESS_FROM_BYTES = 512
_PLAIN, _DEFLATED = b"p", b"z"
_NEW_FIELDS = tuple(field.name for field in fields(NewJob))
_STATE_FIELDS = tuple(
    field.name for field in fields(Job) if field.name not in (*_NEW_FIELDS, "id", "progress", "error")
)
_OWN_FIELDS = ("queued_at_ms", "due_at_ms", "token", "num_bytes", "request")


class EntryCorrupt(ValueError):
    pass


@dataclass(frozen=True)
class Entry:
    """A job, and what only the queue knows of it."""

    job: Job
    queued_at_ms: int  # its age in the queue; an attempt that was lost does not change it
    due_at_ms: int = 0  # of a queued job: when it may be taken again; 0: now
    token: str = ""  # of the attempt that has the job, or has ended it
    num_bytes: int = 0  # of record and result
    request: str = ""  # key of its Idempotency-Key, which is removed with the job

    @property
    def queue(self) -> keys.QueueName:
        job = self.job
        return keys.QueueName(job.kind, (job.input.place if job.input is not None else None) or "")

    @property
    def is_final(self) -> bool:
        return self.job.state in FINAL_STATES

    @property
    def partition(self) -> keys.Partition:
        return "dead" if self.job.is_dead else self.job.state

    @property
    def score(self) -> float:
        """Place in its client's queue: lower is sooner."""
        return float(_PRIORITIES[self.job.priority] * _PRIORITY_STEP + self.queued_at_ms)

    def is_held_by(self, token: str) -> bool:
        return self.job.state == "running" and self.token == token

    def with_job(self, **changes: Any) -> Entry:
        return replace(self, job=replace(self.job, **changes))


def checked(new: NewJob) -> tuple[NewJob, str]:
    """As it is read back from the store, and its JSON. Raises InvalidParameter."""
    new = replace(new, metadata=clean_metadata(dict(new.metadata)))
    try:
        params = _dump(new.params)
        new = replace(new, params=json.loads(params))
        num_bytes = len(params.encode())
        text = _dump(_without_empty(new))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter("The job is not valid JSON", internal=repr(error)[:200]) from error
    if num_bytes > MAX_PARAMS_BYTES:
        raise InvalidParameter(f"params is at most {MAX_PARAMS_BYTES} bytes of JSON")
    return new, text


def state_to_json(entry: Entry) -> str:
    job = entry.job
    stored = {name: value for name in _STATE_FIELDS if (value := getattr(job, name)) not in (None, False, 0)}
    if job.error is not None:
        stored["error"] = vars(job.error)
    stored["queued_at_ms"] = entry.queued_at_ms
    stored |= {name: value for name in _OWN_FIELDS[1:] if (value := getattr(entry, name))}
    return json.dumps(stored, separators=(",", ":"))


def progress_to_json(progress: JobProgress) -> str:
    return json.dumps(vars(progress), separators=(",", ":"))


def entry_from_hash(job_id: str, raw: Mapping[bytes, bytes]) -> Entry:
    """Ignores fields that this version does not know. Raises EntryCorrupt."""
    try:
        new, state = json.loads(raw[b"new"]), json.loads(raw[b"state"])
        webhook = new.pop("webhook", None)
        if webhook is not None:
            webhook["events"] = tuple(webhook["events"])
        parts = {
            "input": _known(JobInput, new.pop("input", None)),
            "webhook": _known(WebhookTarget, webhook),
            "error": _known(JobError, state.pop("error", None)),
            "progress": _known(JobProgress, json.loads(raw.get(b"progress", b"null"))),
        }
        known = {name: new[name] for name in _NEW_FIELDS if name in new}
        known |= {name: state[name] for name in _STATE_FIELDS if name in state}
        own = {name: state[name] for name in _OWN_FIELDS if name in state}
        return Entry(Job(id=job_id, **known, **parts), **own)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EntryCorrupt(f"{job_id}: {error!r}"[:200]) from error


def pack_result(result: bytes) -> bytes:
    if len(result) < _COMPRESS_FROM_BYTES:
        return _PLAIN + result
    return _DEFLATED + zlib.compress(result, 1)


def unpack_result(packed: bytes) -> bytes:
    return packed[1:] if packed[:1] == _PLAIN else zlib.decompress(packed[1:])


def _known(kind: Any, raw: dict[str, Any] | None) -> Any:
    return None if raw is None else kind(**{field.name: raw[field.name] for field in fields(kind) if field.name in raw})


def _without_empty(new: NewJob) -> dict[str, Any]:
    stored = {field.name: getattr(new, field.name) for field in fields(NewJob)}
    return {
        name: vars(value) if isinstance(value, (JobInput, WebhookTarget)) else value
        for name, value in stored.items()
        if value is not None and value != {}
    }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

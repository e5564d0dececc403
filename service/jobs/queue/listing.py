"""Pages of a namespace's jobs, newest first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import get_args

import redis

from vidlex.service.bounds import MAX_PAGE_BYTES
from vidlex.service.errors import InvalidParameter
from vidlex.service.ids import is_id
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.redis_types import batched_reads
from vidlex.service.jobs.queue.transactions import EntryDamaged, parse_entry
from vidlex.service.jobs.records import JOB_PREFIX, Job, JobKind, JobPage, JobState
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.metadata_limits import sent_bytes

_KINDS: tuple[JobKind, ...] = get_args(JobKind)
_READ_JOBS = 16  # at once: with all their parameters, 16 MiB
_JOB_BYTES = 2000  # in an answer, without what its client has chosen


def page(
    client: redis.Redis,
    namespace: str,
    *,
    limit: int,
    after_id: str | None,
    states: Collection[JobState],
    kinds: Collection[JobKind],
    is_dead: bool | None,
) -> JobPage:
    """Ends early after MAX_PAGE_BYTES. Raises InvalidParameter, StoreUnavailable."""
    if after_id is not None and not is_id(after_id, JOB_PREFIX):
        raise InvalidParameter("after is the id of a job")
    indexes = [
        keys.index(namespace, kind, partition)
        for kind in kinds or _KINDS
        for partition in keys.PARTITIONS
        if _is_asked_for(partition, states, is_dead)
    ]
    found: list[Job] = []
    num_bytes = 0
    while indexes:
        # One more than the page holds; jobs whose state changes between the two reads are looked up again.
        ids = _newest(client, indexes, after_id, limit + 1 - len(found))
        for start in range(0, len(ids), _READ_JOBS):
            for job in _read(client, ids[start : start + _READ_JOBS]):
                if not _matches(job, states, is_dead):
                    continue
                num_bytes += _sent_bytes(job)
                if found and num_bytes > MAX_PAGE_BYTES:
                    return JobPage(found[:limit], has_more=True)
                found.append(job)
        if len(found) > limit or not ids:
            break
        after_id = ids[-1]
    return JobPage(found[:limit], len(found) > limit)


def _newest(client: redis.Redis, indexes: list[str], after_id: str | None, num_ids: int) -> list[str]:
    with store_errors(), batched_reads(client, is_snapshot=True) as pipe:
        for index in indexes:
            pipe.zrevrangebylex(index, "+" if after_id is None else f"({after_id}", "-", 0, num_ids)
        ids = {raw.decode() for reply in pipe.execute() for raw in reply}
    return sorted(ids, reverse=True)[:num_ids]


def _read(client: redis.Redis, ids: list[str]) -> list[Job]:
    """Without their params, which a page does not show, and those that were removed meanwhile or are damaged."""
    with store_errors(), batched_reads(client) as pipe:
        for job_id in ids:
            pipe.hgetall(keys.job(job_id))
        replies = pipe.execute()
    jobs = []
    for job_id, raw in zip(ids, replies, strict=True):
        try:
            entry = parse_entry(job_id, raw)
        except EntryDamaged:
            continue
        if entry is not None:
            jobs.append(replace(entry.job, params={}))
    return jobs


def _sent_bytes(job: Job) -> int:
    source = len(job.input.ref) if job.input is not None else 0
    target = len(job.webhook.url) if job.webhook is not None else 0
    error = len(job.error.detail) if job.error is not None else 0
    return _JOB_BYTES + source + target + error + sent_bytes(job.metadata)


def _is_asked_for(partition: keys.Partition, states: Collection[JobState], is_dead: bool | None) -> bool:
    if partition == "dead":
        return is_dead is not False and (not states or "failed" in states)
    return is_dead is not True and (not states or partition in states)


def _matches(job: Job, states: Collection[JobState], is_dead: bool | None) -> bool:
    return (not states or job.state in states) and (is_dead is None or job.is_dead == is_dead)

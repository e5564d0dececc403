"""Compares every place in which the queue lists a job with the job's own record."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import redis

from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.entries import Entry, entry_from_hash


def stored_entries(client: redis.Redis) -> dict[str, Entry]:
    commands: Any = client
    prefix = keys.job("").encode()
    ids = [raw.removeprefix(prefix).decode() for raw in commands.scan_iter(match=prefix + b"*", count=1000)]
    return {job_id: entry_from_hash(job_id, commands.hgetall(keys.job(job_id))) for job_id in ids}


def check_places(client: redis.Redis) -> dict[str, Entry]:
    """For a store that is at rest. Returns all jobs."""
    entries = stored_entries(client)
    expected: dict[str, dict[str, float]] = defaultdict(dict)
    num_waiting: Counter[str] = Counter()
    waiting: dict[str, set[str]] = defaultdict(set)  # clients by queue
    for job_id, entry in entries.items():
        job = entry.job
        expected[keys.index(job.namespace, job.kind, entry.partition)][job_id] = 0
        if job.state == "queued":
            expected[keys.EXPIRING][job_id] = job.queue_until_ms
            if entry.due_at_ms:
                expected[keys.DELAYED][job_id] = entry.due_at_ms
            else:
                expected[keys.queue(entry.queue, job.client)][job_id] = entry.score
                waiting[keys.clients(entry.queue)].add(job.client)
                num_waiting[job.client] += 1
        elif job.state == "running":
            assert job.started_at_ms is not None
            expected[keys.RUNNING][job_id] = job.started_at_ms
        else:
            assert job.kept_until_ms is not None
            expected[keys.FINISHED][job_id] = job.kept_until_ms
        assert entry.is_final == (job.finished_at_ms is not None) == (job.kept_until_ms is not None)
        assert bool(client.exists(keys.result(job_id))) == (job.state == "succeeded")
        assert not (client.exists(keys.lease(job_id)) and job.state != "running")
    expected[keys.QUEUED] = dict(Counter(e.job.client for e in entries.values() if e.job.state == "queued"))
    expected[keys.WAITING] = dict(num_waiting)
    for entry in entries.values():
        kept = expected[keys.KEPT]
        kept[entry.job.namespace] = kept.get(entry.job.namespace, 0) + entry.num_bytes
    for key in _zsets(client):
        if not key.startswith(keys.PREFIX + ":clients:") and key != keys.SERVED:
            expected.setdefault(key, {})
    for key, members in expected.items():
        assert _zset(client, key) == members, key
    for key, clients in waiting.items():
        # More is allowed: a client whose last job was cancelled is removed when it would be served.
        assert clients <= _zset(client, key).keys(), key
    assert num_waiting.keys() <= _zset(client, keys.SERVED).keys()
    return entries


def _zsets(client: redis.Redis) -> list[str]:
    commands: Any = client
    found = commands.scan_iter(match=f"{keys.PREFIX}:*", count=1000, _type="zset")
    return [raw.decode() for raw in found if b":webhook-" not in raw]


def _zset(client: redis.Redis, key: str) -> dict[str, float]:
    commands: Any = client
    return {raw.decode(): score for raw, score in commands.zrange(key, 0, -1, withscores=True)}

"""Keys of webhooks. They share the hash tag of jobs, so that one transaction changes a job and queues its delivery.

    vidlex-jobs:{jobs}:webhook-delivery:<id>      hash    a delivery (see records.py)
    vidlex-jobs:{jobs}:webhook-lanes              zset    lane -> Unix ms of its next turn
    vidlex-jobs:{jobs}:webhook-lane:<lane>        zset    delivery id -> Unix ms when it is due, or its lease ends
    vidlex-jobs:{jobs}:webhook-namespaces         set     namespaces with deliveries
    vidlex-jobs:{jobs}:webhook-log:NS[:<state>]   zset    delivery ids with score 0: sorted by id, which is by creation
    vidlex-jobs:{jobs}:webhook-bytes:NS           string  size of the deliveries
    vidlex-jobs:{jobs}:webhook-dropped:NS         string  events that had no place
    vidlex-jobs:{jobs}:webhook-secrets:NS         hash    id -> JSON
    vidlex-jobs:{jobs}:webhook-endpoints:NS       hash    URL -> JSON: what became of its deliveries
    vidlex-jobs:{jobs}:webhook-disabled:NS        hash    URL -> JSON
    vidlex-jobs:{jobs}:webhook-sweep              string  expires: the next sweep is due

A lane is a namespace and an origin (scheme, host, port), whose deliveries wait for one another.
"""

from __future__ import annotations

import hashlib

from vidlex.service.errors import UrlRefused
from vidlex.service.outbound.urls import parse_url
from vidlex.service.webhooks.records import DeliveryState

_PREFIX = "vidlex-jobs:{jobs}:webhook-"
LANES = f"{_PREFIX}lanes"
NAMESPACES = f"{_PREFIX}namespaces"
SWEEP = f"{_PREFIX}sweep"
_ORIGIN_DIGITS = 16


def delivery(delivery_id: str) -> str:
    return f"{_PREFIX}delivery:{delivery_id}"


def lane(name: str) -> str:
    return f"{_PREFIX}lane:{name}"


def log(namespace: str, state: DeliveryState | None = None) -> str:
    return f"{_PREFIX}log:{namespace}" + ("" if state is None else f":{state}")


def num_bytes(namespace: str) -> str:
    return f"{_PREFIX}bytes:{namespace}"


def dropped(namespace: str) -> str:
    return f"{_PREFIX}dropped:{namespace}"


def secrets(namespace: str) -> str:
    return f"{_PREFIX}secrets:{namespace}"


def endpoints(namespace: str) -> str:
    return f"{_PREFIX}endpoints:{namespace}"


def disabled(namespace: str) -> str:
    return f"{_PREFIX}disabled:{namespace}"


def lane_of(namespace: str, url: str) -> str:
    try:
        parsed = parse_url(url)
        origin = f"{parsed.scheme}://{parsed.authority}"
    except UrlRefused:
        origin = url
    return f"{namespace}/{hashlib.sha256(origin.encode()).hexdigest()[:_ORIGIN_DIGITS]}"


def namespace_of_lane(name: str) -> str:
    return name.partition("/")[0]

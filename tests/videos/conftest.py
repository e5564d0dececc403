"""A store that syncs nothing, emptied before each test, and the kept videos in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from support.kept_videos import kept_store
from support.redis_process import RedisProcess
from vidlex.service.videos.store import KeptVideoStore


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("store"), appendfsync="no") as process:
        yield process


@pytest.fixture
def client(server: RedisProcess) -> redis.Redis:
    client = server.client()
    client.flushall()
    return client


@pytest.fixture
def store(client: redis.Redis, tmp_path: Path) -> KeptVideoStore:
    return kept_store(client, tmp_path)

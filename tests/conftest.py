"""A real store server for the tests of the label database, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from stores import running_store

from service.labels.store import LabelStore


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with running_store(tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture
def client(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


@pytest.fixture
def store(client: redis.Redis) -> LabelStore:
    return LabelStore(client)

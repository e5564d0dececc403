"""What all tests share: no example of a property has a deadline; a real store server, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings

from support.stores import running_store
from vidlex.service.labels.store.label_store import LabelStore

# A busy machine is no failure: hypothesis measures each example against 200 ms unless it is told not to.
settings.register_profile("vidlex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vidlex")


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

"""Shared fixtures: hypothesis without a deadline, and a real store server that is emptied before each test."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings

from support.stores import running_store
from vidlex.service.labels.store.label_store import LabelStore

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, here and in the processes that tests start: the workers share the cores, and threads of
    # two processes that wait for one another are many times slower than one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: on a busy machine an example may take longer than the 200 ms that hypothesis allows by default.
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


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A store in this folder keeps the path of its socket when it restarts, which one in a long path does not."""
    with tempfile.TemporaryDirectory(prefix="vidlex-test-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Commands that run in this process configure logging."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.setLevel(level)
    logging.getLogger("vidlex").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def _restored_scheduling() -> Iterator[None]:
    """As root, SVT-AV1's encoder makes the calling thread a real-time one, and the processes that it starts later."""
    yield
    if hasattr(os, "SCHED_OTHER") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

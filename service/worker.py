"""Runs the parts of the service without an address: it works on jobs, and listens on nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from vidlex.service.access.access_control import AccessControl, AccessOptions
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.machine.cpus import limit_library_threads
from vidlex.service.runtime.runtime import Runtime
from vidlex.service.settings import Settings, unknown_variables
from vidlex.service.telemetry.logs import configure_logging
from vidlex.service.telemetry.metrics import Metrics

_TICK_SECONDS = 0.1
_IDLE_TICKS = 3  # a job that was just taken may not count yet

_log = structlog.get_logger("vidlex.worker")


def work(settings: Settings, *, on_ready: Callable[[], None] = lambda: None) -> str | None:
    """Until SIGTERM or SIGINT; returns None, or the reason if the worker could not start.

    After a signal no job is taken; those that run have ``shutdown_grace_seconds``, then they are given back, at once
    after a second signal.
    """
    configure_logging(settings.log_level, settings.log_format)
    limit_library_threads()
    os.environ.setdefault("TQDM_DISABLE", "1")  # before libraries import tqdm
    for line in unknown_variables():
        _log.warning("unknown_variable", detail=line)
    failures: list[str] = []
    shutdown = GracefulShutdown()
    runtime = Runtime(
        settings,
        Metrics(),
        None,
        AccessControl(AccessOptions(insecure=True, loopback=True)),
        shutdown=shutdown,
        on_fatal=failures.append,
        joins_store=True,
    )
    with _signals() as (stop, stop_now):
        runtime.start()
        try:
            is_ready = False
            while not (stop.wait(_TICK_SECONDS) or failures):
                if not is_ready and runtime.job_runner is not None:
                    is_ready = True
                    on_ready()
            shutdown.begin()
            _await_jobs(runtime, stop_now, settings.shutdown_grace_seconds)
        finally:
            runtime.stop()
    return failures[0] if failures else None


def _await_jobs(runtime: Runtime, stop_now: threading.Event, seconds: float) -> None:
    until, num_idle = time.monotonic() + seconds, 0
    while num_idle < _IDLE_TICKS and time.monotonic() < until:
        runner = runtime.job_runner
        num_idle = num_idle + 1 if runner is None or not runner.num_running else 0
        if stop_now.wait(_TICK_SECONDS):
            return


@contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set at the first and at the second signal."""
    first, second = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        (second if first.is_set() else first).set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield first, second
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

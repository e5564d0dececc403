"""Sends what is due. Any number of processes may do so at a time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from vidlex.service.errors import FetchFailed, Overloaded, StoreUnavailable, UrlRefused
from vidlex.service.outbound.requests import Outbound, Posted
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.due import TakenDelivery
from vidlex.service.webhooks.messages import signed_headers
from vidlex.service.webhooks.records import Attempt, DeliveryState
from vidlex.service.webhooks.schedule import delay_seconds
from vidlex.service.webhooks.store import WebhookStore

_STOP_SECONDS = 5.0
_STORE_PAUSE_SECONDS = 2.0
_SWEEP_SECONDS = 60.0
_GONE = 410
_MAX_ANSWER_CHARS = 512
_log = structlog.get_logger("vidlex.webhooks")


@dataclass(frozen=True)
class SenderLimits:
    """Of one process."""

    num_threads: int = 32
    max_per_namespace: int = 8
    max_per_lane: int = 3  # of one namespace, to one scheme, host and port
    timeout_seconds: float = 15.0
    lease_seconds: float = 30.0  # longer than the timeout
    poll_seconds: float = 0.5

    @classmethod
    def of_timeout(cls, timeout_seconds: float) -> SenderLimits:
        return cls(timeout_seconds=timeout_seconds, lease_seconds=timeout_seconds + 15.0)


class WebhookSender:
    """``start`` once, ``close`` once."""

    def __init__(
        self,
        store: WebhookStore,
        outbound: Outbound,
        limits: SenderLimits | None = None,
        *,
        delay: Callable[[int, float | None, random.Random], float | None] = delay_seconds,
        on_attempt: Callable[[DeliveryState], None] = lambda state: None,
    ) -> None:
        self._store = store
        self._outbound = outbound
        self._limits = limits or SenderLimits()
        self._delay = delay
        self._on_attempt = on_attempt
        self._jitter = random.Random()
        self._lock = threading.Lock()
        self._active: Counter[str] = Counter()  # by lane and by namespace
        self._num_active = 0
        self._stopping, self._cancelled = threading.Event(), threading.Event()
        self._freed = threading.Event()
        self._pool = ThreadPoolExecutor(self._limits.num_threads, thread_name_prefix="vidlex-webhook")
        self._thread = threading.Thread(target=self._run, name="vidlex-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Waits a few seconds for what is being sent; what is not answered by then is sent again later."""
        self._stopping.set()
        self._freed.set()
        if self._thread.is_alive():
            self._thread.join()
        timer = threading.Timer(_STOP_SECONDS, self._cancelled.set)
        timer.daemon = True
        timer.start()
        self._pool.shutdown(wait=True)
        timer.cancel()

    def _run(self) -> None:
        next_sweep, problem = time.monotonic(), ""
        while not self._stopping.is_set():
            try:
                if time.monotonic() >= next_sweep:
                    self._store.sweep(period_seconds=_SWEEP_SECONDS)
                    next_sweep = time.monotonic() + _SWEEP_SECONDS
                num_taken = self._take_all()
                problem = ""
            except StoreUnavailable as error:
                if error.code != problem:  # once, not every two seconds
                    _log.warning("webhooks_wait_for_store", code=error.code, internal=error.internal)
                problem = error.code
                self._stopping.wait(_STORE_PAUSE_SECONDS)
                continue
            except Exception:
                _log.exception("webhooks_failed")
                self._stopping.wait(_STORE_PAUSE_SECONDS)
                continue
            if not num_taken:
                self._freed.wait(self._limits.poll_seconds)
                self._freed.clear()

    def _take_all(self) -> int:
        """At most one of each lane, so that each has its turn."""
        num_taken = 0
        for lane in self._store.due.lanes():
            if self._stopping.is_set() or self._num_active >= self._limits.num_threads:
                self._store.due.restart()
                break
            if not self._reserve(lane):
                continue
            taken = None
            try:
                taken = self._store.due.take(lane, int(self._limits.lease_seconds * 1000))
            finally:
                if taken is None:
                    self._release(lane)
            if taken is not None:
                num_taken += 1
                self._pool.submit(self._send, taken)
        return num_taken

    def _reserve(self, lane: str) -> bool:
        namespace = keys.namespace_of_lane(lane)
        with self._lock:
            if self._active[lane] >= self._limits.max_per_lane:
                return False
            if self._active[namespace] >= self._limits.max_per_namespace:
                return False
            self._active.update((lane, namespace))
            self._num_active += 1
            return True

    def _release(self, lane: str) -> None:
        with self._lock:
            self._active.subtract((lane, keys.namespace_of_lane(lane)))
            self._active += Counter()  # forgets those at zero
            self._num_active -= 1

    def _send(self, taken: TakenDelivery) -> None:
        try:
            self._send_once(taken)
        except StoreUnavailable as error:  # the lease ends, and the same is sent again
            _log.warning("webhook_not_recorded", id=taken.delivery.id, code=error.code)
        except Exception:
            _log.exception("webhook_failed", id=taken.delivery.id)
            self._record_fault(taken)
        finally:
            self._release(taken.delivery.lane)
            self._freed.set()

    def _send_once(self, taken: TakenDelivery) -> None:
        delivery, due = taken.delivery, self._store.due
        begun_ms, begun = time.time_ns() // 1_000_000, time.monotonic()
        posted: Posted | None = None
        error: str | None = None
        is_disabled = self._store.endpoints.is_disabled(delivery.namespace, delivery.url)
        secrets = [] if is_disabled else self._store.secrets.list(delivery.namespace)
        if is_disabled:
            error = "The endpoint is disabled"
        elif not secrets:
            error = "The namespace has no webhook secret"
        else:
            headers = signed_headers(delivery.id, begun_ms // 1000, delivery.body, [secret.text for secret in secrets])
            headers["content-type"] = delivery.content_type
            try:
                posted = self._outbound.post(
                    delivery.url,
                    delivery.body,
                    headers,
                    timeout_seconds=self._limits.timeout_seconds,
                    cancelled=self._cancelled,
                )
            except (UrlRefused, FetchFailed, Overloaded) as failure:
                if self._cancelled.is_set():
                    due.give_back(taken)
                    return
                error = str(failure)
        attempt = _attempt(begun_ms, int((time.monotonic() - begun) * 1000), posted, error)
        state: DeliveryState = "pending"
        delay: float | None = None
        is_gone = posted is not None and posted.status == _GONE
        if posted is not None and 200 <= posted.status < 300:
            state = "succeeded"
        elif is_disabled or is_gone:
            state = "failed"
        else:
            retry_after = None if posted is None else posted.retry_after_seconds
            state, delay = self._after_failure(taken, retry_after)
        if due.record(taken, attempt, state, None if delay is None else int(delay * 1000), is_gone=is_gone):
            self._on_attempt(state)

    def _after_failure(self, taken: TakenDelivery, retry_after: float | None) -> tuple[DeliveryState, float | None]:
        delay = self._delay(taken.delivery.tries + 1, retry_after, self._jitter)
        return "failed" if delay is None else "pending", delay

    def _record_fault(self, taken: TakenDelivery) -> None:
        """Of this program: without a record, the same would be sent again at the end of each lease."""
        try:
            state, delay = self._after_failure(taken, None)
            attempt = Attempt(time.time_ns() // 1_000_000, 0, None, "An internal error of the service", None)
            self._store.due.record(taken, attempt, state, None if delay is None else int(delay * 1000))
        except Exception:
            _log.exception("webhook_not_recorded", id=taken.delivery.id)


def _attempt(at_ms: int, duration_ms: int, posted: Posted | None, error: str | None) -> Attempt:
    if posted is None:
        return Attempt(at_ms, duration_ms, None, error, None)
    if 300 <= posted.status < 400:
        error = "Redirects of webhooks are not followed"
    return Attempt(at_ms, duration_ms, posted.status, error, posted.body.decode("utf-8", "replace")[:_MAX_ANSWER_CHARS])

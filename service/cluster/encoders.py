"""Encoders as Ray actors, one per GPU: frames come to them through Ray's shared memory, their engine makes the batches.

An actor that encodes for many others is the device's one owner, as the engine of the service is: it takes videos from
all of them and batches them by cost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError

from vidlex.service.bulk.engine import EngineUnavailable
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.engine.video_queue import EncodedVideo
from vidlex.service.errors import EncodeFailed, VidlexError
from vidlex.service.sharing.requester import Requester

_POLL_SECONDS = 0.5  # of the requester's ``cancelled``
_RETRY_SECONDS = 1.0
_LOCATE_SECONDS = 10.0
_PROBE_SECONDS = 10.0
PATIENCE_SECONDS = 600.0  # a new node loads packages and model first
MAX_CALLS = 256  # at a time, of one encoder: more than it has in a batch


@dataclass(frozen=True)
class EncoderUse:
    node_id: str
    fingerprint: str
    encoder: str  # how it computes, such as "fast bfloat16"
    device: str
    num_devices: int
    seconds: float  # since the model was loaded
    busy_seconds: float  # of all its devices together


class EncoderActor:
    """The body of the Ray actor. ``load`` returns the model on this actor's device."""

    def __init__(self, load: Callable[[], LocalEncoder]) -> None:
        self._encoder = load()
        self._started = time.monotonic()

    def use(self) -> EncoderUse:
        return EncoderUse(
            node_id=str(ray.get_runtime_context().get_node_id()),
            fingerprint=self._encoder.facts.fingerprint,
            encoder=self._encoder.facts.encoder,
            device=self._encoder.device,
            num_devices=self._encoder.num_devices,
            seconds=time.monotonic() - self._started,
            busy_seconds=self._encoder.busy_seconds,
        )

    def encode(self, videos: list[NDArray[np.uint8]], timeout_seconds: float) -> list[EncodedVideo] | VidlexError:
        # An error of these videos is a value. Exceptions are faults of this encoder: the caller asks another one.
        try:
            return self._encoder.encode_videos(videos, timeout_seconds=timeout_seconds, wait_for_room=True)
        except VidlexError as error:
            if isinstance(error, EncodeFailed):
                self._check_health()
            return error

    def _check_health(self) -> None:
        # A device whose forward pass failed is probed at once.
        until = time.monotonic() + _PROBE_SECONDS
        while not self._encoder.is_healthy:
            if time.monotonic() > until:
                raise RuntimeError("the device fails on every video")
            time.sleep(_RETRY_SECONDS / 10)


def start_encoders(
    load: Callable[[], LocalEncoder], *, count: int, num_gpus: float, num_cpus: float, resources: dict[str, float]
) -> list[Any]:
    """Handles of ``count`` actors, which Ray restarts wherever there is room. They live as long as their handles."""
    actor = ray.remote(EncoderActor).options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=resources,
        max_restarts=-1,
        max_task_retries=0,  # the caller asks another encoder instead of waiting for the restart
        max_concurrency=MAX_CALLS,
        scheduling_strategy="SPREAD",
    )
    return [actor.remote(load) for _ in range(count)]


class RemoteEncoder:
    """Encodes videos in the encoders, for a process that only decodes. Thread-safe.

    ``use`` is that of one of them. Prefers encoders of this node, whose frames need no network. A call that an encoder
    does not answer because its process or node is gone goes to the next one: encoding has no effects, so that it can be
    repeated. ``patience_seconds``: how long no encoder at all may answer; then calls raise EngineUnavailable.
    """

    def __init__(self, encoders: Sequence[Any], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until an encoder is there. Raises EngineUnavailable."""
        self._encoders = list(encoders)
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._num_calls = [0] * len(self._encoders)
        self._is_far = [True] * len(self._encoders)
        self._failed_at = [-float("inf")] * len(self._encoders)
        self.use = self._first_use()

    def _first_use(self) -> EncoderUse:
        here = ray.get_runtime_context().get_node_id()
        found: EncoderUse | None = None
        pending = {encoder.use.remote(): index for index, encoder in enumerate(self._encoders)}
        deadline = time.monotonic() + self._patience_seconds
        while pending and time.monotonic() < deadline:
            ready, _ = ray.wait(list(pending), timeout=_RETRY_SECONDS)
            for reference in ready:
                index = pending.pop(reference)
                try:
                    use: EncoderUse = ray.get(reference)
                except RayError:
                    time.sleep(_RETRY_SECONDS)  # it is being restarted
                    pending[self._encoders[index].use.remote()] = index
                    continue
                self._is_far[index] = use.node_id != here
                if found is None:
                    found = use
                    deadline = time.monotonic() + _LOCATE_SECONDS  # those not found by then count as far
        if found is None:
            raise EngineUnavailable("No encoder answers")
        return found

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 60.0,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        """As ``Engine.encode_videos``; a full queue is always waited for."""
        asking = requester or Requester()
        frames = ray.put([np.ascontiguousarray(video) for video in videos])
        started = time.monotonic()
        while True:
            index = self._choose()
            try:
                answer = self._ask(index, frames, asking, timeout_seconds)
            except RayError as error:
                with self._lock:
                    self._failed_at[index] = time.monotonic()
                asking.check()
                if time.monotonic() - started > self._patience_seconds:
                    raise EngineUnavailable("No encoder answers") from error
                if len(self._encoders) == 1:
                    asking.cancelled.wait(_RETRY_SECONDS)
                continue
            if isinstance(answer, VidlexError):
                raise answer
            return answer

    def _choose(self) -> int:
        # Of the encoders that did not fail lately the near ones, of these the one with the fewest calls.
        now = time.monotonic()
        with self._lock:
            chosen = min(
                range(len(self._encoders)),
                key=lambda i: (
                    now - self._failed_at[i] < _RETRY_SECONDS,
                    self._is_far[i],
                    self._num_calls[i],
                    random.random(),
                ),
            )
            self._num_calls[chosen] += 1
        return chosen

    def _ask(
        self, index: int, frames: Any, asking: Requester, timeout_seconds: float
    ) -> list[EncodedVideo] | VidlexError:
        try:
            reference = self._encoders[index].encode.remote(frames, timeout_seconds)
            while True:
                try:
                    answer: list[EncodedVideo] | VidlexError = ray.get(reference, timeout=_POLL_SECONDS)
                    return answer
                except GetTimeoutError:
                    asking.check()
        finally:
            with self._lock:
                self._num_calls[index] -= 1

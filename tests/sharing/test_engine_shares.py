"""How clients share the encoder: turns by names and by frames, and work of requests that were given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS, until
from vidlex.model.classifier import LabelDescription
from vidlex.model.dummy import DummyClassifier
from vidlex.model.video.pauses import pause
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.label_queue import LabelResult
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.errors import EncodeFailed, Overloaded
from vidlex.service.sharing.requester import Requester

SIDE = 32


class Recording(DummyClassifier):
    """Records the order of the work; the first label ``gate`` waits until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.names: list[str] = []
        self.videos: list[int] = []  # values of the pixels

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self._pass(names)
        return super().encode_labels(names)

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        self._pass(names)
        return super().describe_labels(names)

    def _pass(self, names: Sequence[str]) -> None:
        if "gate" in names:
            self.entered.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        self.names += names

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.videos += [int(video[0, 0, 0, 0]) for video in frames]
        return super().encode_video(frames)


@contextmanager
def behind_a_gate(
    limits: EngineLimits, classifier: Recording | None = None, first: NDArray[np.uint8] | None = None
) -> Iterator[tuple[Engine, Recording, ThreadPoolExecutor]]:
    """The encoder is at work on a label of another client until the gate opens."""
    classifier = classifier or Recording()
    engine = Engine([classifier], limits)
    engine.start()
    try:
        until(lambda: engine.is_healthy)
        if first is not None:
            engine.encode_video(first)
        with ThreadPoolExecutor(64) as threads:
            gated = threads.submit(engine.encode_labels, ["gate"], requester=Requester("first"))
            assert classifier.entered.wait(PATIENCE_SECONDS)
            try:
                yield engine, classifier, threads
            finally:
                classifier.gate.set()
            gated.result(PATIENCE_SECONDS)
    finally:
        classifier.gate.set()
        engine.close()


def in_order(engine: Engine, submit: Sequence[Any], names_each: Sequence[int]) -> list[Future[Any]]:
    """Submits one by one, so that the queue has them in this order."""
    futures, queued = [], engine.scheduler.queued_labels
    for one, num_names in zip(submit, names_each, strict=True):
        futures.append(one())
        queued += num_names
        until(lambda expected=queued: engine.scheduler.queued_labels == expected)  # type: ignore[misc]
    return futures


def test_a_client_with_few_names_does_not_wait_for_one_with_many() -> None:
    with behind_a_gate(EngineLimits(max_batch_labels=4)) as (engine, classifier, threads):
        many = [[f"many {i} {j}" for j in range(16)] for i in range(8)]
        submit = [partial(threads.submit, engine.encode_labels, x, requester=Requester("greedy")) for x in many]
        submit += [partial(threads.submit, engine.encode_labels, ["few"], requester=Requester("modest"))]
        futures = in_order(engine, submit, [16] * 8 + [1])
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
    assert classifier.names.index("few") <= 1 + 4, "one batch at most comes before"
    assert sorted(classifier.names) == sorted(["gate", "few", *(name for names in many for name in names)])


@pytest.mark.parametrize("kind", ["encode_labels", "describe_labels"])
def test_names_of_a_cancelled_request_leave_the_queue_while_the_encoder_is_busy(kind: str) -> None:
    """Before this was so, they stayed until the timeout, and others got 429 for 15 minutes."""
    with behind_a_gate(EngineLimits(max_queued_labels=512)) as (engine, classifier, threads):
        left = threading.Event()
        futures = [
            threads.submit(
                getattr(engine, kind),
                [f"name {i} {j}" for j in range(8)],
                requester=Requester("gone", cancelled=left),
                timeout_seconds=900.0,
            )
            for i in range(30)
        ]
        until(lambda: engine.scheduler.queued_labels == 1 + 30 * 8)
        left.set()
        until(lambda: engine.scheduler.queued_labels == 1)
        for future in futures:
            with pytest.raises(Overloaded, match="cancelled"):
                future.result(PATIENCE_SECONDS)
    assert classifier.names == ["gate"]


def test_names_leave_the_queue_at_the_deadline_while_the_encoder_is_busy() -> None:
    with behind_a_gate(EngineLimits()) as (engine, classifier, threads):
        late = threads.submit(engine.encode_labels, ["late"], requester=Requester("a", deadline=time.monotonic() + 0.2))
        with pytest.raises(Overloaded) as error:
            late.result(PATIENCE_SECONDS)
        assert error.value.extra == {"limit": "timeout"}
        assert engine.scheduler.queued_labels == 1
    assert classifier.names == ["gate"]


def test_what_is_done_of_a_cancelled_request_is_not_lost() -> None:
    """A client whose own timeout is short gets on by repeating its request."""
    abandoned: list[list[LabelResult | None]] = []
    classifier = Recording()
    engine = Engine([classifier], EngineLimits(max_batch_labels=4))
    engine.start()
    left = threading.Event()
    try:
        with ThreadPoolExecutor(1) as threads:
            names = ["a", "b", "c", "d", "gate", "e", "f"]
            half = threads.submit(
                engine.encode_labels,
                names,
                requester=Requester("gone", cancelled=left),
                on_abandoned=abandoned.append,
            )
            assert classifier.entered.wait(PATIENCE_SECONDS)
            left.set()
            with pytest.raises(Overloaded):
                half.result(PATIENCE_SECONDS)
            classifier.gate.set()
    finally:
        classifier.gate.set()
        engine.close()
    (results,) = abandoned
    assert [isinstance(x, np.ndarray) for x in results] == [True] * 4 + [False] * 3
    np.testing.assert_array_equal(np.stack(results[:4]), DummyClassifier().encode_labels(names[:4]))  # type: ignore[arg-type]
    assert engine.scheduler.queued_labels == 0


def frames(value: int, num: int = 4) -> NDArray[np.uint8]:
    return np.full((num, SIDE, SIDE, 3), value, np.uint8)


def test_videos_take_turns_by_frames() -> None:
    with behind_a_gate(EngineLimits(max_batch_frames=8)) as (engine, classifier, threads):
        classifier.videos.clear()
        futures = []
        for value, client in ((1, "greedy"), (2, "greedy"), (3, "greedy"), (4, "greedy"), (9, "modest")):
            queued = engine.scheduler.queued_frames
            futures.append(threads.submit(engine.encode_video, frames(value), requester=Requester(client)))
            until(lambda queued=queued: engine.scheduler.queued_frames == queued + 4)  # type: ignore[misc]
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
    assert classifier.videos == [1, 9, 2, 3, 4]


def test_a_short_video_does_not_share_its_batch_with_long_ones_on_a_slow_device() -> None:
    class Slow(Recording):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            self.videos.append(len(frames))
            time.sleep(0.02 * sum(map(len, frames)))  # 12 frames in a quarter of a second
            return super().encode_video(frames)

    with behind_a_gate(EngineLimits(), Slow(), frames(100)) as (engine, classifier, threads):
        futures = []
        classifier.videos.clear()
        for value, num, client in ((101, 16, "greedy"), (102, 16, "greedy"), (103, 4, "modest")):
            queued = engine.scheduler.queued_frames
            futures.append(threads.submit(engine.encode_video, frames(value, num), requester=Requester(client)))
            until(lambda expected=queued + num: engine.scheduler.queued_frames == expected)  # type: ignore[misc]
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
    batches = [number for number in classifier.videos if number < 100]
    assert len(batches) == 3, "each alone"


class Stepwise(Recording):
    """A frame takes 20 ms, and a video of 64 or more pauses as an encoder does on a CPU."""

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        for _ in range(sum(map(len, frames)) // 4):
            time.sleep(0.08)
            pause()
        return super().encode_video(frames)


def test_a_short_video_and_a_label_of_others_do_not_wait_for_a_long_video() -> None:
    """Before, the frames of one chunk of a long video were one pass that nothing interrupted."""
    with behind_a_gate(EngineLimits(), Stepwise(), frames(100, 8)) as (engine, classifier, threads):
        classifier.videos.clear()
        futures = []
        for value, num, client in ((1, 64, "greedy"), (2, 8, "greedy"), (3, 40, "long too"), (4, 8, "modest")):
            queued = engine.scheduler.queued_frames
            futures.append(threads.submit(engine.encode_video, frames(value, num), requester=Requester(client)))
            until(lambda expected=queued + num: engine.scheduler.queued_frames == expected)  # type: ignore[misc]
        label = threads.submit(engine.encode_labels, ["red"], requester=Requester("third"))
        until(lambda: engine.scheduler.queued_labels == 2)
        classifier.gate.set()
        futures[0].add_done_callback(lambda _: classifier.names.append("long video"))
        vectors = [future.result(PATIENCE_SECONDS).vector for future in futures]
        label.result(PATIENCE_SECONDS)
    assert classifier.videos[:2] == [4, 1], "neither another one of its client nor one that is nearly as long"
    assert classifier.names == ["gate", "red", "long video"]
    np.testing.assert_array_equal(np.stack(vectors), DummyClassifier().encode_video([frames(v) for v in (1, 2, 3, 4)]))


def test_a_long_video_is_not_interrupted_for_ever() -> None:
    with behind_a_gate(EngineLimits(), Stepwise(), frames(100, 8)) as (engine, classifier, threads):
        classifier.videos.clear()
        futures = [threads.submit(engine.encode_video, frames(1, 32), requester=Requester("long"))]
        until(lambda: engine.scheduler.queued_frames == 32)
        for number in range(24):  # three times the frames of the long one
            futures.append(threads.submit(engine.encode_video, frames(2, 4), requester=Requester(f"client {number}")))
        until(lambda: engine.scheduler.queued_frames == 32 + 24 * 4)
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
    assert 1 <= classifier.videos.index(1) < 24


def test_a_video_that_fails_in_a_pause_fails_alone() -> None:
    class Failing(Stepwise):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            if any((video == 9).all() for video in frames):
                raise ValueError("bad")
            return super().encode_video(frames)

    with behind_a_gate(EngineLimits(), Failing(), frames(100, 8)) as (engine, classifier, threads):
        long = threads.submit(engine.encode_video, frames(1, 32), requester=Requester("long"))
        until(lambda: engine.scheduler.queued_frames == 32)
        bad = threads.submit(engine.encode_video, frames(9, 4), requester=Requester("bad"))
        until(lambda: engine.scheduler.queued_frames == 36)
        classifier.gate.set()
        with pytest.raises(EncodeFailed):
            bad.result(PATIENCE_SECONDS)
        assert np.isfinite(long.result(PATIENCE_SECONDS).vector).all()
        assert np.isfinite(engine.encode_video(frames(1)).vector).all()


def test_a_client_with_its_share_of_the_frames_waits_and_others_do_not() -> None:
    with behind_a_gate(EngineLimits(max_queued_frames=16, max_batch_frames=8)) as (engine, classifier, threads):
        futures = [threads.submit(engine.encode_video, frames(1), requester=Requester("greedy")) for _ in range(6)]
        until(lambda: engine.scheduler.queued_frames == 8)
        futures.append(threads.submit(engine.encode_video, frames(2), requester=Requester("modest")))
        until(lambda: engine.scheduler.queued_frames == 12)
        with pytest.raises(Overloaded, match="cancelled"):
            given_up = Requester("greedy")
            threading.Timer(0.1, given_up.cancelled.set).start()
            engine.encode_video(frames(3), requester=given_up)
        classifier.gate.set()
        for future in futures:
            assert np.isfinite(future.result(PATIENCE_SECONDS).vector).all()
    assert engine.scheduler.queued_frames == 0


def test_frames_of_a_cancelled_request_leave_the_queue_while_the_encoder_is_busy() -> None:
    with behind_a_gate(EngineLimits()) as (engine, classifier, threads):
        classifier.videos.clear()
        gone = Requester("gone")
        future = threads.submit(engine.encode_videos, [frames(1), frames(2)], requester=gone)
        until(lambda: engine.scheduler.queued_frames == 8)
        gone.cancelled.set()
        until(lambda: engine.scheduler.queued_frames == 0)
        with pytest.raises(Overloaded, match="cancelled"):
            future.result(PATIENCE_SECONDS)
    assert classifier.videos == []

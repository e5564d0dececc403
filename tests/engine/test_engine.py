"""The engine: batches, bounds, isolated failures and shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from vidlex.model.dummy import DummyClassifier
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.errors import EncodeFailed, LabelTextInvalid, Overloaded, ShareExceeded
from vidlex.service.sharing.requester import Requester

SIDE = 32


def picture(red: int, green: int, blue: int, num_frames: int = 4) -> NDArray[np.uint8]:
    return np.tile(np.array([red, green, blue], np.uint8), (num_frames, SIDE, SIDE, 1))


class GatedClassifier(DummyClassifier):
    """``encode_video`` waits until ``gate`` is set, except in the warm-up. Records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.calls: list[str] = []

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if self.batches or int(frames[0][0, 0, 0, 0]) != 127:  # not the warm-up
            self.entered.set()
            assert self.gate.wait(PATIENCE_SECONDS)
            self.batches.append(len(frames))
            self.calls.append("video")
        if any(int(f[0, 0, 0, 0]) == 13 for f in frames):
            raise RuntimeError("failure at /secret/path")
        return super().encode_video(frames)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(f"labels:{len(names)}")
        if "bomb" in names:
            raise RuntimeError("bomb")
        return super().encode_labels(names)


@contextmanager
def running(classifier: DummyClassifier, limits: EngineLimits | None = None) -> Iterator[Engine]:
    engine = Engine([classifier], limits or EngineLimits())
    engine.start()
    try:
        wait_until(lambda: engine.is_healthy)
        yield engine
    finally:
        if isinstance(classifier, GatedClassifier):
            classifier.gate.set()
        engine.close()


def wait_until(condition: object, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "timeout"
        time.sleep(0.005)


def test_encodes_a_video_and_labels() -> None:
    with running(DummyClassifier()) as engine:
        encoded = engine.encode_video(picture(255, 0, 0))
        np.testing.assert_allclose(encoded.vector, [1, 0, 0], atol=1e-6)
        assert encoded.queue_seconds >= 0 and encoded.encode_seconds > 0
        red, bad = engine.encode_labels(["red", "word " * 20])
        assert isinstance(red, np.ndarray) and red.tolist() == [1, 0, 0]
        assert isinstance(bad, LabelTextInvalid)
        assert engine.encode_labels([]) == []


def test_queued_videos_share_a_forward_pass_and_agree_with_single_ones() -> None:
    classifier = GatedClassifier()
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 255, (n, SIDE, SIDE, 3), np.uint8) for n in (1, 4, 3, 2)]
    for video in videos:
        video[0, 0, 0, 0] = 1
    alone = [DummyClassifier().encode_video([v])[0] for v in videos]
    with running(classifier) as engine, ThreadPoolExecutor(8) as pool:
        first = pool.submit(engine.encode_video, picture(1, 2, 3))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        rest = [pool.submit(engine.encode_video, v) for v in videos]
        wait_until(lambda: engine.scheduler.queued_frames == 10)
        classifier.gate.set()
        together = [f.result(PATIENCE_SECONDS).vector for f in rest]
        first.result(PATIENCE_SECONDS)
    assert classifier.batches == [1, 4]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_batch_respects_the_frame_limit() -> None:
    classifier = GatedClassifier()
    with running(classifier, EngineLimits(max_batch_frames=8)) as engine, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(engine.encode_video, picture(1, 2, 3))]
        assert classifier.entered.wait(PATIENCE_SECONDS)
        futures += [pool.submit(engine.encode_video, picture(1, 2, 3, num_frames=n)) for n in (4, 4, 4, 20)]
        wait_until(lambda: engine.scheduler.queued_frames == 32)
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
    assert sum(classifier.batches) == 5
    assert max(classifier.batches) <= 2


def test_only_the_bad_video_fails_and_the_engine_recovers() -> None:
    classifier = GatedClassifier()
    with running(classifier) as engine, ThreadPoolExecutor(8) as pool:
        first = pool.submit(engine.encode_video, picture(1, 2, 3))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        good = [pool.submit(engine.encode_video, picture(255, 0, 0)) for _ in range(2)]
        bad = pool.submit(engine.encode_video, picture(13, 0, 0))
        wait_until(lambda: engine.scheduler.queued_frames == 12)
        classifier.gate.set()
        for future in (first, *good):
            assert np.isfinite(future.result(PATIENCE_SECONDS).vector).all()
        with pytest.raises(EncodeFailed) as caught:
            bad.result(PATIENCE_SECONDS)
        assert "secret" not in str(caught.value) and "secret" in caught.value.internal
        wait_until(lambda: engine.is_healthy)
        engine.encode_video(picture(0, 255, 0))


def test_only_the_bad_label_fails() -> None:
    with running(GatedClassifier()) as engine:
        red, bomb, long, blue = engine.encode_labels(["red", "bomb", "word " * 20, "blue"])
    assert isinstance(red, np.ndarray) and isinstance(blue, np.ndarray)
    assert isinstance(bomb, EncodeFailed) and isinstance(long, LabelTextInvalid)


def test_many_labels_do_not_delay_a_video() -> None:
    classifier = GatedClassifier()
    with running(classifier, EngineLimits(max_batch_labels=2)) as engine, ThreadPoolExecutor(4) as pool:
        first = pool.submit(engine.encode_video, picture(1, 2, 3))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        labels = pool.submit(engine.encode_labels, [f"label {i}" for i in range(9)])
        wait_until(lambda: engine.scheduler.queued_labels == 9)
        video = pool.submit(engine.encode_video, picture(1, 2, 3))
        wait_until(lambda: engine.scheduler.queued_frames == 4)
        classifier.gate.set()
        first.result(PATIENCE_SECONDS)
        video.result(PATIENCE_SECONDS)
        assert len(labels.result(PATIENCE_SECONDS)) == 9
        assert engine.scheduler.queued_labels == 0
    assert classifier.calls[:3] == ["video", "labels:2", "video"]
    assert classifier.calls[-1] == "labels:1"


def test_slow_labels_get_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowClassifier(GatedClassifier):
        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            time.sleep(0.004 * len(names))
            return super().encode_labels(names)

    fast, slow = GatedClassifier(), SlowClassifier()
    monkeypatch.setattr("vidlex.service.engine.device_worker.LABEL_BATCH_SECONDS", 1e6)  # any machine is fast enough
    with running(fast) as engine:
        engine.encode_labels([f"label {i}" for i in range(70)])
    monkeypatch.setattr("vidlex.service.engine.device_worker.LABEL_BATCH_SECONDS", 0.01)
    with running(slow) as engine:
        engine.encode_labels([f"label {i}" for i in range(12)])
    assert slow.calls[0] == fast.calls[0] == "labels:4"
    assert fast.calls[1:3] == ["labels:16", "labels:32"]
    assert set(slow.calls[1:]) <= {"labels:1", "labels:2"}


def test_full_queue_rejects_immediately() -> None:
    classifier = GatedClassifier()
    limits = EngineLimits(max_queued_frames=8, max_queued_labels=3)
    with running(classifier, limits) as engine, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(engine.encode_video, picture(1, 2, 3))]
        assert classifier.entered.wait(PATIENCE_SECONDS)
        futures += [
            pool.submit(engine.encode_video, picture(1, 2, 3), requester=Requester(client)) for client in ("a", "b")
        ]
        labels = pool.submit(engine.encode_labels, ["a", "b"])
        wait_until(lambda: engine.scheduler.queued_frames == 8 and engine.scheduler.queued_labels == 2)
        with pytest.raises(Overloaded) as error:
            engine.encode_video(picture(1, 2, 3))
        assert (error.value.code, error.value.extra) == ("overloaded", {"limit": "queued_frames"})
        with pytest.raises(Overloaded) as error:
            engine.encode_labels(["c", "d"], requester=Requester("other"))
        assert (error.value.code, error.value.extra) == ("overloaded", {"limit": "queued_labels"})
        with pytest.raises(ShareExceeded) as error:
            engine.encode_labels(["c", "d"])
        assert (error.value.code, error.value.extra) == ("share_exceeded", {"limit": "queued_labels"})
        classifier.gate.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
        labels.result(PATIENCE_SECONDS)


def test_expired_and_cancelled_videos_are_dropped() -> None:
    classifier = GatedClassifier()
    cancelled = threading.Event()
    with running(classifier) as engine, ThreadPoolExecutor(8) as pool:
        first = pool.submit(engine.encode_video, picture(1, 2, 3))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        expired = pool.submit(engine.encode_video, picture(1, 2, 3), timeout_seconds=0.01)
        dropped = pool.submit(engine.encode_video, picture(1, 2, 3), requester=Requester(cancelled=cancelled))
        wait_until(lambda: engine.scheduler.queued_frames == 8)
        cancelled.set()
        time.sleep(0.02)
        classifier.gate.set()
        first.result(PATIENCE_SECONDS)
        for future in (expired, dropped):
            with pytest.raises(Overloaded):
                future.result(PATIENCE_SECONDS)
    assert classifier.batches == [1]


def test_not_finite_features_are_an_error() -> None:
    class NotFiniteClassifier(DummyClassifier):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            vectors = super().encode_video(frames)
            vectors[[int(f[0, 0, 0, 0]) == 1 for f in frames]] = np.nan
            return vectors

    with running(NotFiniteClassifier()) as engine:
        with pytest.raises(EncodeFailed):
            engine.encode_video(picture(1, 0, 0))
        engine.encode_video(picture(2, 0, 0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_crashed_worker_fails_its_requests_and_is_not_healthy() -> None:
    class CrashingClassifier(GatedClassifier):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            if int(frames[0][0, 0, 0, 0]) == 1:
                self.entered.set()
                assert self.gate.wait(PATIENCE_SECONDS)
                raise SystemExit
            return DummyClassifier.encode_video(self, frames)

    classifier = CrashingClassifier()
    with running(classifier) as engine, ThreadPoolExecutor(4) as pool:
        running_one = pool.submit(engine.encode_video, picture(1, 0, 0))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        waiting = pool.submit(engine.encode_video, picture(2, 0, 0))
        wait_until(lambda: engine.scheduler.queued_frames == 4)
        classifier.gate.set()
        for future in (running_one, waiting):
            with pytest.raises(EncodeFailed):
                future.result(PATIENCE_SECONDS)
        wait_until(lambda: not engine.is_alive)
        assert not engine.is_healthy
        with pytest.raises(EncodeFailed):
            engine.encode_video(picture(2, 0, 0))


def test_classifier_that_always_fails_is_not_healthy() -> None:
    class FailingClassifier(DummyClassifier):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            raise RuntimeError("no device")

    engine = Engine([FailingClassifier()])
    engine.start()
    try:
        with pytest.raises(EncodeFailed):
            engine.encode_video(picture(1, 0, 0))
        assert engine.is_alive and not engine.is_healthy
    finally:
        engine.close()


def test_close_stops_the_worker_and_rejects_requests() -> None:
    engine = Engine([DummyClassifier()])
    engine.start()
    engine.close()
    assert not engine.is_alive
    with pytest.raises(EncodeFailed):
        engine.encode_labels(["red"])


def test_labels_of_several_requests_share_a_batch() -> None:
    classifier = GatedClassifier()
    with running(classifier) as engine, ThreadPoolExecutor(6) as pool:
        classifier.batches.append(0)
        video = pool.submit(engine.encode_video, picture(255, 0, 0))
        assert classifier.entered.wait(PATIENCE_SECONDS)
        requests = []
        for number, names in enumerate((["a"], ["b", "bomb"], ["c", "d", "e"]), 1):
            requests.append(pool.submit(engine.encode_labels, names))
            wait_until(lambda n=number: engine.scheduler.queued_labels == (1, 3, 6)[n - 1])
        classifier.gate.set()
        results = [request.result() for request in requests]
        video.result()
        assert engine.scheduler.queued_labels == 0
    steps = [call for call in classifier.calls if call.startswith("labels")]
    assert steps[0] == "labels:4", "the first batch takes from all three requests"
    assert isinstance(results[1][1], EncodeFailed)
    alone = DummyClassifier()
    for names, got in zip((["a"], ["b"], ["c", "d", "e"]), results, strict=True):
        for name, vector in zip(names, got, strict=False):
            np.testing.assert_allclose(vector, alone.encode_labels([name])[0], atol=1e-6)

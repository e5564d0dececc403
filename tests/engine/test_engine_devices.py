"""Several devices behind one scheduler: they share the load, and a failing one costs only its batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from test_engine import SIDE, picture

from support.processes import PATIENCE_SECONDS
from support.serving import add, classify, colour_video, settings_for, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.app import create_app
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.errors import EncodeFailed

GREY = 127  # of the frames of a probe


class Device(DummyClassifier):
    """Passes over the videos of requests wait for ``gate`` and are counted; all passes fail while ``is_broken``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = name
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.is_broken = self.crashes = False
        self.num_videos = 0
        self.names: list[str] = []

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if any(int(video.flat[0]) != GREY for video in frames):
            self.num_videos += len(frames)
            self.entered.set()
            assert self.gate.wait(PATIENCE_SECONDS)
            if self.crashes:
                raise SystemExit
        if self.is_broken:
            raise RuntimeError(f"{self.device} is lost")
        return super().encode_video(frames)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        return super().encode_labels(names)


@pytest.fixture(autouse=True)
def short_probe_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.engine.device_worker.PROBE_INTERVAL_SECONDS", 0.05)


@contextmanager
def running(*devices: Device, limits: EngineLimits | None = None) -> Iterator[Engine]:
    engine = Engine(devices, limits or EngineLimits())
    engine.start()
    try:
        wait_until(lambda: all(state == "healthy" for _, state in engine.device_states), "a device is not healthy")
        yield engine
    finally:
        for device in devices:
            device.gate.set()
        engine.close()


def occupy(engine: Engine, pool: ThreadPoolExecutor, *devices: Device) -> list[Any]:
    """Let each device hold a request until its gate is set."""
    futures = []
    for device in devices:
        device.gate.clear()
        device.entered.clear()
    for number in range(1, 1 + len(devices)):
        futures.append(pool.submit(engine.encode_video, picture(200, number, 0)))
        wait_until(lambda n=number: sum(d.entered.is_set() for d in devices) == n, "no device takes the request")
    return futures


def test_devices_share_the_queue_and_return_equal_vectors() -> None:
    one, other = Device("a"), Device("b")
    video = np.random.default_rng(0).integers(0, 120, (3, SIDE, SIDE, 3), np.uint8)
    with running(one, other) as engine, ThreadPoolExecutor(4) as pool:
        held = occupy(engine, pool, one, other)
        for device in (one, other):
            device.gate.set()
        for future in held:
            future.result(PATIENCE_SECONDS)
        vectors = []
        for busy, free in ((one, other), (other, one)):
            busy.gate.clear()
            busy.entered.clear()
            blocked = []
            while not busy.entered.is_set():  # any free device may take it
                blocked.append(pool.submit(engine.encode_video, picture(9, 9, 9)))
                wait_until(lambda b=blocked, d=busy: b[-1].done() or d.entered.is_set(), "no device takes the request")
            before = free.num_videos
            vectors.append(engine.encode_video(video).vector)
            assert free.num_videos == before + 1
            busy.gate.set()
            for future in blocked:
                future.result(PATIENCE_SECONDS)
    assert (vectors[0] == vectors[1]).all()


def test_failing_device_costs_one_batch_and_recovers() -> None:
    good, bad = Device("good"), Device("bad")
    with running(good, bad) as engine, ThreadPoolExecutor(4) as pool:
        futures = occupy(engine, pool, good, bad)
        bad.is_broken = True
        for device in (good, bad):
            device.gate.set()
        errors = [future.exception(PATIENCE_SECONDS) for future in futures]
        assert sorted(type(error).__name__ for error in errors) == ["EncodeFailed", "NoneType"]
        wait_until(
            lambda: dict(engine.device_states) == {"good": "healthy", "bad": "failing"}, "the failure is not noticed"
        )
        assert engine.is_healthy
        before = bad.num_videos
        for future in [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(12)]:
            future.result(PATIENCE_SECONDS)
        assert engine.encode_labels(["red"])[0].tolist() == [1, 0, 0]  # type: ignore[union-attr]
        assert bad.num_videos == before and not bad.names, "the failing device received requests"
        bad.is_broken = False
        wait_until(lambda: dict(engine.device_states)["bad"] == "healthy", "the device does not recover")
        for future in occupy(engine, pool, good, bad):
            good.gate.set()
            bad.gate.set()
            future.result(PATIENCE_SECONDS)
        assert bad.num_videos == before + 1


def test_requests_fail_immediately_when_no_device_is_healthy() -> None:
    devices = [Device("a"), Device("b")]
    with running(*devices) as engine, ThreadPoolExecutor(4) as pool:
        for device in devices:
            device.is_broken = True
        futures = [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(8)]
        for future in futures:
            with pytest.raises(EncodeFailed):
                future.result(PATIENCE_SECONDS)
        wait_until(lambda: not engine.is_healthy, "it still counts as healthy")
        with pytest.raises(EncodeFailed):
            engine.encode_video(picture(1, 2, 3))
        devices[1].is_broken = False
        wait_until(lambda: engine.is_healthy, "one recovered device is not enough")
        engine.encode_video(picture(1, 2, 3))


def test_labels_of_one_request_are_divided_among_devices() -> None:
    barrier = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    class WaitingDevice(Device):
        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            if not self.names:
                barrier.wait()  # until the other device has names of the same request
            return super().encode_labels(names)

    one, other = WaitingDevice("a"), WaitingDevice("b")
    names = [f"label {'x' * i}" for i in range(9)]
    with running(one, other, limits=EngineLimits(max_batch_labels=2)) as engine:
        results = engine.encode_labels(names)
        assert engine.scheduler.queued_labels == 0
    assert sorted([*one.names, *other.names]) == sorted(names)
    assert one.names and other.names
    np.testing.assert_array_equal(np.stack(results), DummyClassifier().encode_labels(names))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_remaining_device_serves_the_queue_after_a_crash() -> None:
    good, crashing = Device("good"), Device("crashing")
    with running(good, crashing) as engine, ThreadPoolExecutor(6) as pool:
        futures = occupy(engine, pool, good, crashing)
        waiting = [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(3)]
        wait_until(lambda: engine.scheduler.queued_frames == 12, "the videos are not queued")
        crashing.crashes = True
        crashing.gate.set()
        wait_until(lambda: ("crashing", "stopped") in engine.device_states, "the worker is still running")
        assert engine.is_alive and engine.is_healthy
        good.gate.set()
        assert sorted(type(f.exception(PATIENCE_SECONDS)).__name__ for f in futures) == ["EncodeFailed", "NoneType"]
        for future in waiting:
            assert np.isfinite(future.result(PATIENCE_SECONDS).vector).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_labels_of_a_crashed_worker_are_no_longer_counted_as_queued() -> None:
    class CrashingDevice(Device):
        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            raise SystemExit

    with running(CrashingDevice("a"), limits=EngineLimits(max_batch_labels=2)) as engine:
        with pytest.raises(EncodeFailed):
            engine.encode_labels(["a", "b", "c"])
        wait_until(lambda: not engine.is_alive, "the worker is still running")
        assert engine.scheduler.queued_labels == 0
        with pytest.raises(EncodeFailed):
            engine.encode_labels(["a"])


def test_devices_with_different_scores_are_rejected() -> None:
    class HalfPrecisionDevice(Device):
        def info(self) -> dict[str, Any]:
            return {"encoder": "fast bfloat16"}

    with pytest.raises(ValueError, match=r"different scores \(a: .*; b: .*bfloat16\).*VIDLEX_PRECISION"):
        Engine([Device("a"), HalfPrecisionDevice("b")])
    with pytest.raises(ValueError, match="different scores"):
        Engine([DummyClassifier(), DummyClassifier(2)])


def test_readiness_names_the_failing_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Device("first"), Device("second")]
    copies = iter(devices)
    monkeypatch.setattr(
        "vidlex.service.runtime.runtime.Runtime._import_encoders", lambda self: None
    )  # it would call create_dummy
    monkeypatch.setattr("vidlex.service.engine.loading.create_dummy", lambda spec: next(copies))
    monkeypatch.setattr("vidlex.service.engine.device_worker.STALE_SECONDS", 0.05)
    app = create_app(settings_for(tmp_path, device="cpu,cpu"))
    red = colour_video(tmp_path / "red.mp4", "red")
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

        def encoder_check() -> tuple[int, str]:
            answer = client.get("/readyz")
            return answer.status_code, answer.json()["checks"]["encoder"]["detail"]

        wait_until(lambda: encoder_check() == (200, "2 of 2 devices healthy"), "the devices are not healthy")
        add(client, "red")
        devices[1].is_broken = True
        degraded = (200, "1 of 2 devices healthy; second: the last forward pass failed")
        wait_until(lambda: encoder_check() == degraded, "the failure is not reported")
        assert "vidlex_devices_working 1.0" in client.get("/metrics").text
        for _ in range(4):
            assert classify(client, red).json()["labels"][0]["score"] > 0.99
        devices[0].is_broken = True
        wait_until(
            lambda: encoder_check() == (503, "the last forward pass failed"), "still ready without a healthy device"
        )
        for device in devices:
            device.is_broken = False
        wait_until(lambda: encoder_check() == (200, "2 of 2 devices healthy"), "the devices do not recover")


def test_cuda_all_lists_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidlex.model.factory import list_devices

    assert list_devices("auto") == ["auto"] and list_devices("cuda:0,cuda:2") == ["cuda:0", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert list_devices("cuda:all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="no GPU"):
        list_devices("cuda:all")

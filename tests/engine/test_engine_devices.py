"""Several devices behind one queue: they share the work, and one that fails costs only what it had in hand."""

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

GREY = 127
"""Of the frames that owners make up to try their devices."""


class Device(DummyClassifier):
    """A device whose passes wait for ``gate`` and fail while ``broken``. It counts the requests' videos alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = name
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = self.dies = False
        self.num_videos = 0
        self.names: list[str] = []

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if any(int(video.flat[0]) != GREY for video in frames):
            self.num_videos += len(frames)
            self.entered.set()
            assert self.gate.wait(PATIENCE_SECONDS)
            if self.dies:
                raise SystemExit
        if self.broken:
            raise RuntimeError(f"{self.device} has fallen off the bus")
        return super().encode_video(frames)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        return super().encode_labels(names)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.engine.device_worker.PROBE_SECONDS", 0.05)


@contextmanager
def running(*devices: Device, limits: EngineLimits | None = None) -> Iterator[Engine]:
    engine = Engine(devices, limits or EngineLimits())
    engine.start()
    try:
        wait_until(lambda: all(state == "works" for _, state in engine.states), "a device is not warm")
        yield engine
    finally:
        for device in devices:
            device.gate.set()
        engine.close()


def both_at_work(engine: Engine, pool: ThreadPoolExecutor, *devices: Device) -> list[Any]:
    """A request in the hands of each device, which is held there."""
    futures = []
    for device in devices:
        device.gate.clear()
        device.entered.clear()
    for number in range(1, 1 + len(devices)):
        futures.append(pool.submit(engine.encode_video, picture(200, number, 0)))
        wait_until(lambda n=number: sum(d.entered.is_set() for d in devices) == n, "no device takes it")
    return futures


def test_both_take_from_one_queue_and_give_the_same() -> None:
    one, other = Device("a"), Device("b")
    video = np.random.default_rng(0).integers(0, 120, (3, SIDE, SIDE, 3), np.uint8)
    with running(one, other) as engine, ThreadPoolExecutor(4) as pool:
        held = both_at_work(engine, pool, one, other)
        for device in (one, other):
            device.gate.set()
        for future in held:
            future.result(PATIENCE_SECONDS)
        vectors = []
        for busy, free in ((one, other), (other, one)):
            busy.gate.clear()
            busy.entered.clear()
            blocked = []
            while not busy.entered.is_set():  # whoever is free takes it, until it is the one that is to be busy
                blocked.append(pool.submit(engine.encode_video, picture(9, 9, 9)))
                wait_until(lambda b=blocked, d=busy: b[-1].done() or d.entered.is_set(), "nobody takes it")
            before = free.num_videos
            vectors.append(engine.encode_video(video).vector)
            assert free.num_videos == before + 1
            busy.gate.set()
            for future in blocked:
                future.result(PATIENCE_SECONDS)
    assert (vectors[0] == vectors[1]).all()


def test_a_device_that_fails_costs_its_batch_alone_and_comes_back() -> None:
    good, bad = Device("good"), Device("bad")
    with running(good, bad) as engine, ThreadPoolExecutor(4) as pool:
        futures = both_at_work(engine, pool, good, bad)
        bad.broken = True
        for device in (good, bad):
            device.gate.set()
        errors = [future.exception(PATIENCE_SECONDS) for future in futures]
        assert sorted(type(error).__name__ for error in errors) == ["EncodeFailed", "NoneType"]
        wait_until(lambda: dict(engine.states) == {"good": "works", "bad": "fails"}, "it is not taken out")
        assert engine.healthy
        before = bad.num_videos
        for future in [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(12)]:
            future.result(PATIENCE_SECONDS)
        assert engine.encode_labels(["red"])[0].tolist() == [1, 0, 0]  # type: ignore[union-attr]
        assert bad.num_videos == before and not bad.names, "it was asked for work while it was out"
        bad.broken = False
        wait_until(lambda: dict(engine.states)["bad"] == "works", "it does not come back")
        for future in both_at_work(engine, pool, good, bad):
            good.gate.set()
            bad.gate.set()
            future.result(PATIENCE_SECONDS)
        assert bad.num_videos == before + 1


def test_when_none_is_left_requests_are_told_at_once() -> None:
    devices = [Device("a"), Device("b")]
    with running(*devices) as engine, ThreadPoolExecutor(4) as pool:
        for device in devices:
            device.broken = True
        futures = [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(8)]
        for future in futures:
            with pytest.raises(EncodeFailed):
                future.result(PATIENCE_SECONDS)
        wait_until(lambda: not engine.healthy, "it says that it works")
        with pytest.raises(EncodeFailed):
            engine.encode_video(picture(1, 2, 3))
        devices[1].broken = False
        wait_until(lambda: engine.healthy, "one that is well again is enough")
        engine.encode_video(picture(1, 2, 3))


def test_one_request_of_labels_is_read_by_both_once() -> None:
    meet = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    class Meets(Device):
        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            if not self.names:
                meet.wait()  # goes on only when the other has names of the same request, too
            return super().encode_labels(names)

    one, other = Meets("a"), Meets("b")
    names = [f"label {'x' * i}" for i in range(9)]
    with running(one, other, limits=EngineLimits(max_batch_labels=2)) as engine:
        results = engine.encode_labels(names)
        assert engine.queued_labels == 0
    assert sorted([*one.names, *other.names]) == sorted(names)
    assert one.names and other.names
    np.testing.assert_array_equal(np.stack(results), DummyClassifier().encode_labels(names))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_owner_that_dies_leaves_the_rest_to_the_other() -> None:
    good, dying = Device("good"), Device("dying")
    with running(good, dying) as engine, ThreadPoolExecutor(6) as pool:
        futures = both_at_work(engine, pool, good, dying)
        waiting = [pool.submit(engine.encode_video, picture(1, 2, 3)) for _ in range(3)]
        wait_until(lambda: engine.queued_frames == 12, "they do not wait")
        dying.dies = True
        dying.gate.set()
        wait_until(lambda: ("dying", "ended") in engine.states, "it lives")
        assert engine.alive and engine.healthy
        good.gate.set()
        assert sorted(type(f.exception(PATIENCE_SECONDS)).__name__ for f in futures) == ["EncodeFailed", "NoneType"]
        for future in waiting:
            assert np.isfinite(future.result(PATIENCE_SECONDS).vector).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_names_that_a_dying_owner_held_do_not_count_for_ever() -> None:
    class Dies(Device):
        def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
            raise SystemExit

    with running(Dies("a"), limits=EngineLimits(max_batch_labels=2)) as engine:
        with pytest.raises(EncodeFailed):
            engine.encode_labels(["a", "b", "c"])
        wait_until(lambda: not engine.alive, "it lives")
        assert engine.queued_labels == 0
        with pytest.raises(EncodeFailed):
            engine.encode_labels(["a"])


def test_devices_that_would_score_differently_are_refused() -> None:
    class Half(Device):
        def info(self) -> dict[str, Any]:
            return {"encoder": "fast bfloat16"}

    with pytest.raises(ValueError, match=r"different scores \(a: .*; b: .*bfloat16\).*VIDLEX_PRECISION"):
        Engine([Device("a"), Half("b")])
    with pytest.raises(ValueError, match="different scores"):
        Engine([DummyClassifier(), DummyClassifier(2)])


def test_a_list_of_devices_is_served_and_readiness_names_the_one_that_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [Device("first"), Device("second")]
    copies = iter(devices)
    monkeypatch.setattr(
        "vidlex.service.runtime.runtime.Runtime._import_encoders", lambda self: None
    )  # it would take one
    monkeypatch.setattr("vidlex.service.runtime.runtime.create_dummy", lambda spec: next(copies))
    monkeypatch.setattr("vidlex.service.engine.device_worker.CHECK_SECONDS", 0.05)
    app = create_app(settings_for(tmp_path, device="cpu,cpu"))
    red = colour_video(tmp_path / "red.mp4", "red")
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

        def told() -> tuple[int, str]:
            answer = client.get("/readyz")
            return answer.status_code, answer.json()["checks"]["encoder"]["detail"]

        wait_until(lambda: told() == (200, "2 of 2 devices work"), "not both are there")
        add(client, "red")
        devices[1].broken = True
        degraded = (200, "1 of 2 devices work; second is out: the last forward pass failed")
        wait_until(lambda: told() == degraded, "it is not told")
        assert "vidlex_devices_working 1.0" in client.get("/metrics").text
        for _ in range(4):
            assert classify(client, red).json()["labels"][0]["score"] > 0.99
        devices[0].broken = True
        wait_until(lambda: told() == (503, "the last forward pass failed"), "none is left, and it says ready")
        for device in devices:
            device.broken = False
        wait_until(lambda: told() == (200, "2 of 2 devices work"), "they do not come back")


def test_all_gpus_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidlex.model.factory import list_devices

    assert list_devices("auto") == ["auto"] and list_devices("cuda:0,cuda:2") == ["cuda:0", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert list_devices("cuda:all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="no GPU"):
        list_devices("cuda:all")

"""The engine in this process when the encoder, the memory or the run ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.serving import colour_video
from support.tagging import dummy_snapshot, engine_of, file_of, tag
from vidlex.model.dummy import DummyClassifier
from vidlex.service.bulk.engine import EngineUnavailable
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.options import TagOptions
from vidlex.service.decode.pool import DecodePool, PoolLimits
from vidlex.service.errors import EncodeFailed, Overloaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    colour_video(made / "red.mp4", "red")
    colour_video(made / "mixed.mp4", "red", "green", "blue")
    return made


class FailingClassifier(DummyClassifier):
    def __init__(self, fails: Callable[[NDArray[np.uint8]], bool]) -> None:
        super().__init__()
        self.fails = fails

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if any(map(self.fails, frames)):
            raise RuntimeError("device-side assert")
        return super().encode_video(frames)


def is_red(frames: NDArray[np.uint8]) -> bool:
    return bool(frames[..., 0].mean() > 200)


def test_a_video_that_the_encoder_fails_on_fails_alone(folder: Path) -> None:
    encoder = LocalEncoder([FailingClassifier(is_red)])
    with engine_of(encoder) as engine:
        failure = tag(engine, folder / "red.mp4").failure
        assert failure is not None and failure.code == EncodeFailed.code
        assert tag(engine, folder / "mixed.mp4").failure is None
    encoder.close()


def test_a_device_that_fails_on_everything_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.bulk.local.engine._PROBE_SECONDS", 0.2)
    classifier = FailingClassifier(lambda frames: False)
    encoder = LocalEncoder([classifier])
    with engine_of(encoder) as engine:
        assert tag(engine, folder / "mixed.mp4").failure is None
        classifier.fails = lambda frames: True
        with pytest.raises(EngineUnavailable):
            tag(engine, folder / "mixed.mp4")
    encoder.close()


def test_a_closed_engine_ends_the_run_and_a_cancelled_file_does_not_wait(folder: Path) -> None:
    encoder = LocalEncoder([DummyClassifier()])
    cancelled = threading.Event()
    cancelled.set()
    with engine_of(encoder) as engine:
        result = engine.tag(file_of(folder / "mixed.mp4"), TagOptions(), cancelled)
        assert result.failure is not None and result.failure.code == "cancelled"
    with pytest.raises(EngineUnavailable):
        tag(engine, folder / "mixed.mp4")
    encoder.close()


def test_files_that_took_too_much_memory_together_are_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidlex.service.bulk.local.engine._RETRY_SECONDS", 0.01)
    decode = DecodePool.decode_chunks
    attempts: list[Path] = []

    def refuse_once(self: DecodePool, path: Path, job: Any, **options: Any) -> Any:
        attempts.append(path)
        if len(attempts) == 1:
            raise Overloaded("The videos take more memory than there is.", limit="decode_memory")
        return decode(self, path, job, **options)

    monkeypatch.setattr(DecodePool, "decode_chunks", refuse_once)
    encoder = LocalEncoder([DummyClassifier()])
    with engine_of(encoder) as engine:
        assert tag(engine, folder / "mixed.mp4").failure is None
    encoder.close()
    assert len(attempts) == 2


def test_more_calls_than_fit_wait_for_one_another(folder: Path) -> None:
    encoder = LocalEncoder([DummyClassifier()])
    limits = PoolLimits(max_waiting=1)
    engine = LocalEngine(dummy_snapshot(), encoder, decode_workers=1, num_encoding=1, limits=limits)
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda _: tag(engine, folder / "mixed.mp4"), range(48)))
    engine.close()
    encoder.close()
    assert [result.failure for result in results] == [None] * 48


def test_a_call_that_waits_for_its_turn_can_be_cancelled(folder: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(frames: NDArray[np.uint8]) -> bool:
        if len(frames) > 1 and frames.mean() != 127:  # not the probe
            entered.set()
            leave.wait()
        return False

    encoder = LocalEncoder([FailingClassifier(wait)])
    engine = LocalEngine(dummy_snapshot(), encoder, decode_workers=1, num_encoding=1)
    cancelled = threading.Event()
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(engine.tag, file_of(folder / "mixed.mp4"), TagOptions(), cancelled) for _ in range(8)]
        entered.wait()
        cancelled.set()
        codes = [None if (failure := future.result().failure) is None else failure.code for future in running]
        leave.set()
    engine.close()
    encoder.close()
    assert codes == ["cancelled"] * 8

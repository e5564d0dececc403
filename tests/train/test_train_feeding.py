"""Feeding of training: decode processes that hang and die, augmentation, the draw of a step."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from support.clips import write_clips, write_dataset
from support.manifest_source import opened
from support.serving import wait_until
from support.videos import read_number, write_video
from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.sources.augmentation import MAX_ASPECT_CHANGE, Augmentation, Frames, read_frames
from vidlex.model.sources.decode_pool import BrokenVideo, DecodePool, _Process
from vidlex.model.train.loop.processes import MicroBatch
from vidlex.model.types import FrameGeometry

NONE = Augmentation((), crop_scale=1.0, flip=False, colour=0.0, time_jitter=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("clips"), num_train=14, num_validation=8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "numbers.mp4", num_frames=40)


# --- decode processes ------------------------------------------------------------------------------------------------


def test_frames_are_those_of_the_service_and_hung_or_dead_processes_are_replaced(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode_frames(video, geometry=FrameGeometry(32), num_frames=4, start_ms=1000, end_ms=3000).frames
    pool = DecodePool(1, timeout_seconds=30.0)

    def read(path: Path = video) -> Frames:
        out = np.zeros((4, 32, 32, 3), np.uint8)
        pool.submit(pool.read, path, out, resize_mode="shortest", start_ms=1000, end_ms=3000).result()
        return out

    try:
        assert np.array_equal(read(), expected)
        (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:100])
        with pytest.raises(BrokenVideo, match="DecodeError") as caught:
            read(tmp_path / "broken.mp4")
        with pytest.raises(BrokenVideo, match="FileNotFoundError"):
            read(tmp_path / "gone.mp4")
        (process,) = pool._processes
        assert not caught.value.was_killed and np.array_equal(read(), expected) and pool._processes == {process}

        pool.timeout_seconds = 0.2
        process._process.send_signal(signal.SIGSTOP)
        with pytest.raises(BrokenVideo, match=r"decoding takes more than 0\.2 s") as caught:
            read()
        assert caught.value.was_killed and process._process.returncode == -signal.SIGKILL
        pool.timeout_seconds = 30.0
        assert np.array_equal(read(), expected)

        (process,) = pool._processes
        process._process.send_signal(signal.SIGSTOP)
        threading.Timer(0.1, process._process.kill).start()
        assert np.array_equal(read(), expected)  # in another process: the video is not the cause
        request, killed = _Process.request, []

        def kill_and_request(self: _Process, *arguments: Any, **named: Any) -> None:
            killed.append(self)
            self._process.kill()
            self._process.wait()
            request(self, *arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(_Process, "request", kill_and_request)
            with pytest.raises(BrokenVideo, match="crashed") as caught:
                read()
        assert caught.value.was_killed and len(killed) == 2
        assert np.array_equal(read(), expected)
        (process,) = pool._processes
    finally:
        pool.close()
    assert process._process.returncode is not None


def test_a_reply_in_the_last_moment_is_late_and_the_next_video_is_not(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over between the last byte of the reply and the end of the timer: the process is killed."""

    class LateTimer:
        def __init__(self, seconds: float, end: Callable[[], None]) -> None:
            self.start, self.cancel = lambda: None, end

    out = np.zeros((2, 16, 16, 3), np.uint8)
    pool = DecodePool(1, timeout_seconds=30.0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading, "Timer", LateTimer)
            with pytest.raises(BrokenVideo, match="takes more than 30 s"):
                pool.submit(pool.read, video, out, resize_mode="squash").result()
        pool.submit(pool.read, video, out, resize_mode="squash").result()
    finally:
        pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they end when they have answered")
def test_decode_processes_die_with_the_training(video: Path) -> None:
    code = (
        "import sys, time, numpy as np\nfrom pathlib import Path\n"
        "from vidlex.model.sources.decode_pool import DecodePool\n"
        "pool = DecodePool(1, timeout_seconds=30.0)\n"
        "out = np.zeros((1, 16, 16, 3), np.uint8)\n"
        "pool.submit(pool.read, Path(sys.argv[1]), out, resize_mode='squash').result()\n"
        "print(next(iter(pool._processes))._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    training = subprocess.Popen([sys.executable, "-c", code, str(video)], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    worker = int(training.stdout.readline())
    training.kill()
    training.wait()
    training.stdout.close()
    wait_until(lambda: not is_running(worker), "the decode process still runs")


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


# --- augmentation ----------------------------------------------------------------------------------------------------


def read(path: Path, augmentation: Augmentation | None, mode: Any = "shortest", size: int = 48, num: int = 4) -> Frames:
    return read_frames(
        path, geometry=FrameGeometry(size, mode), num_frames=num, start_ms=None, end_ms=None, augmentation=augmentation
    )


def test_reflection_mirrors_half_of_the_videos(video: Path) -> None:
    plain = read(video, None)
    mirrored = [read(video, replace(NONE, seed=(seed,), flip=True)) for seed in range(12)]
    kinds = [
        "plain" if np.array_equal(f, plain) else "mirrored" if np.array_equal(f[:, :, ::-1], plain) else ""
        for f in mirrored
    ]
    assert set(kinds) == {"plain", "mirrored"}
    assert np.array_equal(read(video, NONE), plain)


def test_jitter_moves_the_window_within_the_video(video: Path) -> None:
    firsts, lasts = [], []
    for seed in range(12):
        frames = read(video, replace(NONE, seed=(seed,), time_jitter=0.2))
        numbers = [read_number(frame) for frame in frames]
        assert numbers == sorted(numbers)
        firsts.append(numbers[0])
        lasts.append(numbers[-1])
    # four segments of 40 frames: without jitter, 5 and 35; with the shortest window of 24 frames, 8 + 3 and 31 - 3
    assert min(firsts) >= 5 and max(firsts) <= 11 and len(set(firsts)) > 2
    assert max(lasts) <= 35 and min(lasts) >= 28 and len(set(lasts)) > 2


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize(("width", "height"), [(192, 96), (96, 128)])
def test_crop_has_the_promised_area_aspect_and_place(tmp_path: Path, mode: str, width: int, height: int) -> None:
    """Red is the position from the left and green from the top, so the colours of a crop tell its borders."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(30, 220, width)[None, :]
    ramp[..., 1] = np.linspace(30, 220, height)[:, None]
    path = write_video(
        tmp_path / "ramp.mp4", width=width, height=height, num_frames=2, picture=lambda _: ramp, options={"crf": "1"}
    )
    seen = min(width, height) ** 2 if mode == "shortest" else width * height
    areas, places = [], []
    for seed in range(8):
        frame = read(path, replace(NONE, seed=(seed,), crop_scale=0.4), mode, num=1)[0].astype(float)
        # the slope in the middle is less affected by the border than the ends are
        fractions = []
        for profile in (frame[16:32, :, 0].mean(axis=0), frame[:, 16:32, 1].mean(axis=1)):
            slope, start = np.polyfit(np.arange(4, 44) + 0.5, profile[4:44], 1)
            left, right = (start - 30) / 190, (start + 48 * slope - 30) / 190
            assert -0.06 < left < right < 1.06
            fractions += [right - left, left]
        crop_width, left, crop_height, top = fractions
        areas.append(crop_width * width * crop_height * height / seen)
        shape = crop_width * width / (crop_height * height) / (1 if mode == "shortest" else width / height)
        assert 0.85 / MAX_ASPECT_CHANGE < shape < 1.15 * MAX_ASPECT_CHANGE
        places.append((left, top))
    assert 0.35 < min(areas) < 0.8 and 0.6 < max(areas) < 1.1
    assert np.ptp([left for left, _ in places]) > 0.05 and np.ptp([top for _, top in places]) > 0.05


def test_crop_is_padded_where_the_whole_picture_would_be(tmp_path: Path) -> None:
    """A picture of 3 to 1 in a square: a crop keeps its shape, up to the change of aspect, between black bars."""
    white = np.full((64, 192, 3), 200, np.uint8)
    path = write_video(tmp_path / "wide.mp4", width=192, height=64, num_frames=2, picture=lambda _: white)
    for seed in range(6):
        frame = read(path, replace(NONE, seed=(seed,), crop_scale=0.4), "longest", num=1)[0].mean(axis=2)
        rows = np.flatnonzero(frame.mean(axis=1) > 100)
        assert frame[rows].min() > 150 and abs(rows[0] - (47 - rows[-1])) <= 1
        assert 16 / MAX_ASPECT_CHANGE - 1.5 < len(rows) < 16 * MAX_ASPECT_CHANGE + 1.5
        changed = read(path, replace(NONE, seed=(seed,), colour=0.5), "longest", num=1)[0]
        assert not changed[:16].any() and changed[16:32].min() > 90 and not changed[32:].any()
    assert np.array_equal(read(path, replace(NONE, flip=True), "longest"), read(path, None, "longest"))


def test_colours_change_by_one_affine_map_for_the_whole_video(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(90, 170, (3, 6, 6, 3), np.uint8)
    path = write_video(
        tmp_path / "patches.mp4",
        width=48,
        height=48,
        num_frames=3,
        picture=lambda i: small[i].repeat(8, 0).repeat(8, 1),
    )
    plain = read(path, None, num=3).reshape(-1, 3).astype(float)
    gains = []
    for seed in range(6):
        changed = read(path, replace(NONE, seed=(seed,), colour=0.3), num=3).reshape(-1, 3).astype(float)
        design = np.concatenate([plain, np.ones((len(plain), 1))], axis=1)
        solution, *_ = np.linalg.lstsq(design, changed, rcond=None)
        assert np.abs(design @ solution - changed).max() < 1.5  # rounding
        gains.append(float(changed.mean() / plain.mean()))
    assert 0.69 < min(gains) < 0.95 and 1.02 < max(gains) < 1.31


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_depends_on_its_number_alone(dataset: Path, tmp_path: Path) -> None:
    with opened(dataset, tmp_path) as source:
        steps = [source.draw(step) for step in range(4)]
        assert all(batch.frames.shape == (6, 3, 3, 16, 16) and len(batch.targets) == 6 for batch in steps)  # type: ignore[union-attr]
    drawn = torch.cat([batch.targets for batch in steps])[:14]
    everything = source.training.targets(range(14))
    assert sorted(drawn.tolist()) == sorted(everything.tolist())  # an epoch
    with opened(dataset, tmp_path, num_prefetched_steps=0) as source:
        again = source.draw(3)
        assert torch.equal(cast(torch.Tensor, again.frames), cast(torch.Tensor, steps[3].frames))
        assert torch.equal(again.generator.get_state(), steps[3].generator.get_state())
        parts = [source.draw(2, MicroBatch(0, 1, i, 4)) for i in range(4)]
    assert torch.equal(torch.cat([part.frames for part in parts]), steps[2].frames)  # type: ignore[arg-type, misc]
    assert torch.equal(torch.cat([part.targets for part in parts]), steps[2].targets)
    assert all(torch.equal(part.all_targets, steps[2].targets) for part in parts)


def test_a_broken_video_is_replaced_and_listed(tmp_path: Path) -> None:
    entries = write_clips(tmp_path, 12, split="train")
    validation = write_clips(tmp_path, 4, first=12, seed=1, split="val")
    write_manifest(
        tmp_path / "manifest.jsonl", [*entries, Entry("gone.mp4", ("red",), closed=True, split="train"), *validation]
    )
    for name in ("004.mp4", "005.mkv"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    (tmp_path / "013.mkv").write_bytes(b"nothing")
    runs = []
    for views in (0, 1):
        out = tmp_path / str(views)
        with opened(
            tmp_path / "manifest.jsonl", out, num_cached_views=views, crop_scale=1.0, colour=0.0, time_jitter=0.0
        ) as source:
            batches = [source.draw(step) for step in range(2)]
            assert sum(len(chunk.targets) for chunk in source.training_videos(99)) == 10
            assert sum(len(chunk.targets) for chunk in source.validation_videos(99)) == 3
            assert len(source.validation_targets(99)) == 4
        listed = dict(line.split("\t") for line in (out / "broken_videos.txt").read_text().splitlines())
        assert {Path(path).name for path in listed} == {"gone.mp4", "004.mp4", "005.mkv", "013.mkv"}
        assert listed[str(tmp_path / "gone.mp4")] == "it does not exist or is not a file"
        assert "DecodeError" in listed[str(tmp_path / "004.mp4")]
        runs.append([batch.targets for batch in batches])
    # both are replaced by the next good video, with its own labels
    order = [source.order.at(place) for place in range(12)]
    expected = source.training.targets([6 if row in (4, 5) else row for row in order])
    for targets in runs:
        assert torch.equal(torch.cat(targets), expected)


def test_training_without_a_good_video_ends_with_the_reason(tmp_path: Path) -> None:
    entries = write_clips(tmp_path, 4, split="train")
    for entry in entries:
        (tmp_path / entry.video).write_bytes(b"nothing")
    write_manifest(tmp_path / "manifest.jsonl", [*entries, *write_clips(tmp_path, 2, first=4, split="val")])
    with (
        opened(tmp_path / "manifest.jsonl", tmp_path / "out") as source,
        pytest.raises(ValueError, match="100 training videos in a row"),
    ):
        source.draw(0)

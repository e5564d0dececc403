"""Long videos: segments of chunks, blank frames, memory, deadlines, and the encoder's queue."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support import videos
from support.decode_hooks import write_made_up
from support.listed_looks import SIDE, Kept, colourful, extract, look
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS, worker_pids
from support.serving import add, assert_problem, classify, serving, wait_until
from vidlex.model.dummy import DummyClassifier
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.classification.segments import Look, Segment
from vidlex.service.decode.pool import DecodeJob, DecodePool
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.errors import InvalidParameter, Overloaded
from vidlex.service.sharing.requester import Requester

RED, GREEN, BLUE, BLACK = [250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]


class Recorder(DummyClassifier):
    """Keeps the shapes of its batches, without those of the warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if (frames[0] != 127).any():
            self.batches.append([len(f) for f in frames])
        return super().encode_video(frames)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def engine(recorder: Recorder) -> Iterator[Engine]:
    engine = Engine([recorder])
    engine.start()
    yield engine
    engine.close()


# --- segments


def in_one_piece(looks: Sequence[Look], duration_ms: int, options: ClassifyOptions) -> list[tuple[Segment, list[Look]]]:
    """Segments of all frames at once, as they were formed before there were chunks."""
    start_ms, end_ms = options.start_ms or 0, min(options.end_ms or duration_ms, duration_ms)
    if options.aggregate_by == "video":
        return [(Segment(start_ms, end_ms), list(looks))]
    if options.aggregate_by == "timestamps":
        return [(Segment(x.time_ms, x.time_ms), [x]) for x in {x.time_ms: x for x in looks}.values()]
    times = np.array([x.time_ms for x in looks])
    found = []
    for start in range(start_ms, end_ms, options.segment_ms):
        end = min(start + options.segment_ms, end_ms)
        first, stop = np.searchsorted(times, [start, end])
        if first == stop:
            first = max(0, first - 1)
            stop = first + 1
        found.append((Segment(start, end), list(looks[first:stop])))
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {"frame_policy": "uniform"},
        {"aggregate_by": "timestamps"},
        {"aggregate_by": "segments", "segment_ms": 1000, "num_frames": 10},
        {"aggregate_by": "segments", "segment_ms": 333, "start_ms": 500, "end_ms": 9000},
        {"aggregate_by": "segments", "segment_ms": 100_000, "num_frames": 50},
    ],
    ids=str,
)
def test_chunks_do_not_change_a_bit(engine: Engine, options: dict[str, Any], chunk: int) -> None:
    for seed in range(4):
        rng = random.Random(seed)
        looks = colourful(40, rng.choice([40, 250, 900]), seed)
        looks += [looks[-1]] * rng.randrange(3)  # a short video repeats its last frame
        duration_ms = looks[-1].time_ms + 700
        features = extract(engine, looks, duration_ms, chunk=chunk, **options)
        expected = in_one_piece(looks, duration_ms, ClassifyOptions(**options))
        assert features.segments == tuple(segment for segment, _ in expected)
        vectors = DummyClassifier().encode_video([np.stack([x.frame for x in part]) for _, part in expected])
        assert (features.vectors == vectors).all()
        assert features.timestamps_ms == tuple(x.time_ms for x in looks)


def test_a_still_of_an_hour_does_not_fill_one_cell(engine: Engine, recorder: Recorder) -> None:
    """2 s of colours, then one frame on screen; each cell has 4 looks."""
    looks = colourful(8, 250, 1) + [look(2000, RED)] * 3592
    recorder.batches.clear()
    features = extract(engine, looks, 900_000, chunk=32, aggregate_by="segments", segment_ms=1000)
    assert [s.start_ms for s in features.segments] == list(range(0, 900_000, 1000))
    assert (features.vectors[2:] == [1, 0, 0]).all()
    assert max(max(batch) for batch in recorder.batches) == 4


def test_a_burst_of_frames_is_thinned_evenly(engine: Engine, recorder: Recorder) -> None:
    looks = [look(i, RED if i < 500 else BLUE) for i in range(1000)]
    recorder.batches.clear()
    features = extract(engine, looks, 2000, aggregate_by="segments", segment_ms=1000)
    assert features.vectors[0] == pytest.approx([0.5**0.5, 0, 0.5**0.5], abs=0.02)
    assert features.vectors[1].tolist() == [0, 0, 1]
    assert recorder.batches == [[16, 1]]  # 1000 / 64, and the one that stays on screen


def test_shots_are_segments_of_at_most_the_default_number_of_frames(engine: Engine) -> None:
    cuts = {3, 4, 15}
    looks = [look(i * 1000, RED if i < 3 else BLUE if i < 15 else GREEN, starts_shot=i in cuts) for i in range(18)]
    features = extract(engine, looks, 21_000)
    assert [(s.start_ms, s.end_ms) for s in features.segments] == [
        (0, 3000),
        (3000, 4000),
        (4000, 8000),
        (8000, 12_000),
        (12_000, 15_000),
        (15_000, 21_000),
    ]  # the dummy model looks at 4 frames
    assert features.vectors.argmax(axis=1).tolist() == [0, 2, 2, 2, 2, 1]
    assert (features.frame_policy, features.decoder) == ("shots", "listed 1.0")
    assert features.num_failed == 4 and features.warnings == (("code", "until 17000"),)
    window = extract(engine, looks, 21_000, start_ms=500, end_ms=20_500)
    assert (window.segments[0].start_ms, window.segments[-1].end_ms) == (500, 20_500)


def test_a_short_video_is_one_segment(engine: Engine) -> None:
    features = extract(engine, colourful(4, 500, 2), 2000)
    assert features.segments == (Segment(0, 2000),) and features.frame_policy == "uniform"


@pytest.mark.parametrize(
    ("options", "policy", "num_frames", "segment_ms"),
    [
        ({}, "shots", 4, None),
        ({"num_frames": 6}, "uniform", 6, None),
        ({"num_frames": 6, "frame_policy": "shots"}, "shots", 6, None),
        ({"frame_policy": "keyframes"}, "keyframes", 4, None),
        ({"aggregate_by": "timestamps"}, "uniform", 4, None),
        ({"aggregate_by": "segments"}, "uniform", 4, 4000),
        ({"aggregate_by": "segments", "frame_policy": "shots"}, "shots", 4, None),
    ],
    ids=str,
)
def test_what_the_decoder_is_asked_for(
    engine: Engine, options: dict[str, Any], policy: str, num_frames: int, segment_ms: int | None
) -> None:
    asked: list[DecodeJob] = []
    extract(engine, colourful(4, 500, 2), 2000, jobs=asked, **options)
    assert [(job.policy, job.num_frames, job.segment_ms) for job in asked] == [(policy, num_frames, segment_ms)]


def test_more_frames_per_segment_than_allowed(engine: Engine) -> None:
    with pytest.raises(InvalidParameter) as caught:
        extract(engine, colourful(4, 500, 2), 2000, num_frames=9, max_frames=8)
    assert caught.value.extra["max_frames"] == 8


# --- blank and repeated frames


def test_blank_frames_do_not_decide(engine: Engine) -> None:
    looks = [look(i * 1000, BLACK, is_blank=True) for i in range(5)]
    looks += [look(i * 1000, RED, starts_shot=i == 5) for i in range(5, 9)]
    features = extract(engine, looks, 9000)
    assert features.segments == (Segment(4000, 5000), Segment(5000, 9000))[1:]
    assert (features.vectors == [[1, 0, 0]]).all() and features.num_blank == 5
    assert ("blank_frames", "5 of 9 sampled frames show a single colour and were left out") in features.warnings
    mixed = extract(engine, looks[3:7], 9000, frame_policy="uniform")
    assert (mixed.vectors == [[1, 0, 0]]).all() and mixed.num_blank == 2
    cells = extract(engine, looks, 9000, aggregate_by="segments", segment_ms=1000)
    assert [s.start_ms for s in cells.segments] == [5000, 6000, 7000, 8000]


def test_a_blank_video_is_answered_as_it_is(engine: Engine) -> None:
    kept = Kept()
    looks = [look(i * 1000, BLUE, is_blank=True) for i in range(9)]
    features = extract(engine, looks, 9000, kept=kept)
    assert len(features.segments) == 3 and (features.vectors == [0, 0, 1]).all()
    assert features.num_blank == 9 and "blank_frames" not in dict(features.warnings)
    assert kept.videos.videos("n")[0].shape == (9, SIDE, SIDE, 3)


def test_repeated_frames_of_a_shot_do_not_outweigh_others_but_may_be_all_there_is(engine: Engine) -> None:
    frozen = [look(i * 6000, RED, is_repeated=i > 0) for i in range(3)]
    both = extract(engine, [*frozen, look(18_000, BLUE)], 24_000)
    assert both.vectors[0] == pytest.approx([0.5**0.5, 0, 0.5**0.5])
    assert (extract(engine, frozen, 24_000).vectors == [[1, 0, 0]]).all()
    evenly = extract(engine, [*frozen, look(18_000, BLUE)], 24_000, frame_policy="uniform")
    assert evenly.vectors[0] == pytest.approx([3 / 10**0.5, 0, 1 / 10**0.5], abs=1e-6)


def test_a_long_video_leaves_its_mean_vector_and_its_first_frames(engine: Engine) -> None:
    kept = Kept()
    looks = [look(i * 1000, BLACK, is_blank=True) for i in range(4)]
    looks += [look(i * 1000, RED if i < 24 else BLUE) for i in range(4, 44)]
    features = extract(engine, looks, 44_000, kept=kept)
    assert len(features.segments) == 10
    (frames,) = kept.videos.videos("n")
    assert frames.shape == (16, SIDE, SIDE, 3) and (frames[:, :, :, 0] == 250).all()
    statistics = kept.statistics.of("n", "dummy-1")
    assert statistics is not None and statistics.mean == pytest.approx([0.5**0.5, 0, 0.5**0.5])
    one = extract(engine, looks, 44_000, kept=kept, frame_policy="uniform", num_frames=44)
    assert len(one.segments) == 1 and kept.videos.videos("n")[0].shape[0] == 40


# --- the encoder's queue


def test_segments_are_queued_in_small_groups(engine: Engine, recorder: Recorder) -> None:
    recorder.batches.clear()
    looks = colourful(400, 100, 3)
    extract(engine, looks, 40_000, chunk=400, aggregate_by="timestamps")
    assert sum(map(len, recorder.batches)) == 400
    assert max(map(sum, recorder.batches)) <= 64


def test_a_later_group_waits_for_room_in_the_queue() -> None:
    """A first one is refused, as ever."""
    gate, entered = threading.Event(), threading.Event()

    class Gated(DummyClassifier):
        def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            if (frames[0] == 13).all():
                entered.set()
                assert gate.wait(PATIENCE_SECONDS)
            return super().encode_video(frames)

    engine = Engine([Gated()], EngineLimits(max_queued_frames=4, max_batch_frames=4))
    engine.start()
    blocking, waiting = (np.full((4, SIDE, SIDE, 3), value, np.uint8) for value in (13, 14))
    try:
        with ThreadPoolExecutor(3) as threads:
            running = threads.submit(engine.encode_video, blocking)
            assert entered.wait(PATIENCE_SECONDS)
            queued = threads.submit(engine.encode_video, waiting)
            wait_until(lambda: engine.scheduler.queued_frames == 4, "nothing is queued")
            other = Requester("other")
            with pytest.raises(Overloaded):
                engine.encode_videos([waiting], requester=other)
            with pytest.raises(Overloaded):
                engine.encode_videos([waiting], requester=other, wait_for_room=True, timeout_seconds=0.1)
            later = threads.submit(partial(engine.encode_videos, [waiting], requester=other, wait_for_room=True))
            gate.set()
            for done in (running, queued, later):
                assert done.result(PATIENCE_SECONDS)
    finally:
        gate.set()
        engine.close()


# --- served


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setattr(
            "vidlex.service.runtime.runtime.DecodePool", partial(DecodePool, entry="support.decode_hooks:decode")
        )
        with serving(tmp_path_factory.mktemp("data"), decode_workers=2, feature_cache_bytes=1 << 20) as client:
            add(client, "red", "green", "blue")
            yield client


def scene(path: Path, num_seconds: int, seconds_per_chunk: float = 0.0) -> Path:
    """A look per second: black at first, then blue, 3 s of red in the middle."""
    middle = num_seconds // 2
    looks: list[dict[str, Any]] = [
        {"time_ms": 1000 * i, "colour": BLACK if i < 4 else RED if middle <= i < middle + 3 else BLUE}
        for i in range(num_seconds)
    ]
    for i in (4, middle, middle + 3):
        looks[i]["starts_shot"] = True
    for i in range(4):
        looks[i]["is_blank"] = True
    return write_made_up(path, looks, duration_ms=1000 * num_seconds, seconds_per_chunk=seconds_per_chunk)


def test_the_most_confident_segment_decides(client: Any, tmp_path: Path) -> None:
    path = scene(tmp_path / "v.mp4", 1200)
    for cached in (False, True):
        answer = classify(client, path).json()
        labels = {label["name"]: label for label in answer["labels"]}
        assert {name: label["matched"] for name, label in labels.items()} == {"red": True, "blue": True, "green": False}
        assert labels["red"]["score"] == labels["blue"]["score"] == pytest.approx(0.9933, abs=1e-4)
        (stretch,) = labels["red"]["stretches"]
        assert (stretch["start_ms"], stretch["end_ms"], stretch["peak_ms"]) == (600_000, 603_000, 601_500)
        spans = [(x["start_ms"], x["end_ms"]) for x in labels["blue"]["stretches"]]
        assert spans == [(4000, 600_000), (603_000, 1_200_000)]
        assert labels["green"]["stretches"] == [] and labels["red"]["segments"] == []
        assert answer["coverage"]["frame_policy"] == "shots" and answer["coverage"]["frames_requested"] == 1200
        assert "blank_frames" in [warning["code"] for warning in answer["warnings"]]
        assert answer["usage"]["cached"] is cached


def test_a_label_does_not_depend_on_others_in_a_long_video(client: Any, tmp_path: Path) -> None:
    path = scene(tmp_path / "v.mp4", 100)
    together = {
        x["name"]: x for x in classify(client, path, candidate_labels=["red", "blue", "white"]).json()["labels"]
    }
    for name, label in together.items():
        (alone,) = classify(client, path, candidate_labels=[name]).json()["labels"]
        assert alone == label


def test_a_deadline_in_the_middle_of_a_long_video(client: Any, tmp_path: Path) -> None:
    path = scene(tmp_path / "v.mp4", 7200, seconds_per_chunk=0.1)  # 22 s
    started = time.monotonic()
    assert_problem(classify(client, path, deadline_ms=1500), 504, "deadline_exceeded")
    assert 1.5 <= time.monotonic() - started < 10
    pool = client.app.state.context.readiness.__self__.pool
    wait_until(lambda: pool.num_unfinished == 0, "the file is still being decoded")
    assert pool.num_restarts == 0 and len(worker_pids(pool)) == 2
    assert classify(client, scene(tmp_path / "short.mp4", 8)).status_code == 200


def test_a_long_video_does_not_hold_up_a_short_one(client: Any, tmp_path: Path) -> None:
    path = scene(tmp_path / "v.mp4", 1200, seconds_per_chunk=0.1)
    pool = client.app.state.context.readiness.__self__.pool
    with ThreadPoolExecutor(1) as threads:
        long = threads.submit(classify, client, path)
        wait_until(lambda: pool.num_unfinished == 1, "the long video is not being decoded")
        for number in range(2):
            assert classify(client, scene(tmp_path / f"{number}.mp4", 8 + number)).status_code == 200
        assert not long.done()
        assert long.result(PATIENCE_SECONDS).status_code == 200


# --- memory

_PEAKS = """
import json, sys
from pathlib import Path
from support.serving import add, classify, serving
from support.processes import worker_pids
from vidlex.model.dummy import DummyClassifier
from vidlex.model.types import FrameGeometry

class Large(DummyClassifier):
    def __init__(self):
        super().__init__()
        self.geometry, self.num_frames = FrameGeometry(224, "squash"), 8

def peak_kb(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])

with serving(Path(sys.argv[1]), classifier=Large(), request_timeout_seconds=600) as client:
    add(client, "red")
    answer = classify(client, Path(sys.argv[2]), aggregate_by="segments", segment_ms=5000)
    assert answer.status_code == 200, answer.text
    (pid,) = worker_pids(client.app.state.context.readiness.__self__.pool)
    print(json.dumps([answer.json()["coverage"]["frames_requested"], peak_kb("self"), peak_kb(pid)]))
"""


def peaks(folder: Path, video: Path) -> tuple[int, int, int]:
    command = [sys.executable, "-c", _PEAKS, str(folder), str(video)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[")]  # the others are its log
    num_frames, service, worker = json.loads(line)
    return num_frames, service, worker


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Frames of 150 kB: without chunks the long video would take 240 MB in each process. The short one has two."""
    found = {}
    for name, num_seconds in (("short", 40), ("long", 1000)):
        video = videos.write_video(tmp_path / f"{name}.mp4", num_frames=2 * num_seconds, fps=2, gop=4)
        found[name] = peaks(tmp_path / name, video)
    assert (found["short"][0], found["long"][0]) == (64, 1600)
    total_kb = {name: service + worker for name, (_, service, worker) in found.items()}
    assert total_kb["long"] < total_kb["short"] + max(20 * 1024, 0.05 * total_kb["short"]), found

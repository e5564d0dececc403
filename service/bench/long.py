"""Long videos at default settings: recall of a scene of seconds against frames at even distances, time, memory.

The videos are made of the shots of `vidlex samples`. In each, one shot is shown once, for three seconds, and a label
that the model recognises in every frame of that shot, and in none of the others, must be found, where it is. Recall is
therefore that of finding the scene, given that the model knows what it shows.
"""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Timing, ratio, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.bench.load import add_labels
from vidlex.service.bench.long_videos import NUM_VARIANTS, Shot, drawn_shots, shots_of, write_long_video, write_shot

MIN_RECALL = 0.9
MAX_FRAMES_PER_MINUTE = 24.0  # three times the eight frames of a video of any length
MAX_GROWTH = 0.05  # of memory, against a video of 10 s, as a share
TOLERANCE_MS = 2500  # of where the scene is found
NUM_UNIFORM = 8
SEGMENT_MS = 5000
_TIMEOUT_SECONDS = 6 * 3600.0
_DISTRACTORS = (
    "dog", "cat", "horse", "boat", "aeroplane", "guitar", "pizza", "laptop", "snow", "beach", "church", "tiger",
    "spider", "bus", "train", "umbrella", "clock", "flower", "tree", "building",
)  # fmt: skip


@dataclass(frozen=True)
class LongOptions(BenchOptions):
    model: str = "photo-small"
    """Model, as for `vidlex serve --model`; `dummy` watches drawn patterns."""
    num_videos: int = 40
    """Long videos."""
    minutes: float = 20.0
    """Length of each."""
    scene_seconds: float = 3.0
    """Length of the scene that must be found."""
    longest_minutes: float = 120.0
    """Length of the longest video, which must be answered; 0: none."""
    segment_frames: int = 1
    """Frames per segment of 5 s of the longest video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_videos < 1 or self.minutes * 60 <= self.scene_seconds or self.scene_seconds <= 0:
            raise ValueError("num_videos must be positive, and the scene shorter than its video")


@dataclass(frozen=True)
class _Scene:
    """A label that the model finds in all frames of one shot and in none of ``others``."""

    shot: Shot
    variant: int
    label: str
    others: tuple[Shot, ...]


@dataclass(frozen=True)
class _Found:
    is_matched: bool
    is_located: bool
    num_elsewhere: int  # stretches of the label without the scene
    num_matched: int  # labels


class _Watch:
    """The peak of the memory of a service and its decode workers, in bytes."""

    def __init__(self, service: LiveService) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self.peak_bytes = max(self.peak_bytes, sum(self._service.resident_bytes()))
            self._stopped.wait(0.02)

    @classmethod
    @contextmanager
    def over(cls, service: LiveService) -> Iterator[_Watch]:
        watch = cls(service)
        watch._thread.start()
        try:
            yield watch
        finally:
            watch._stopped.set()
            watch._thread.join()


def run(options: LongOptions) -> Report:
    if options.quick:
        options = LongOptions(
            quick=True, model="dummy", device=options.device, num_videos=2, minutes=1.0, longest_minutes=2.0
        )
    shots = drawn_shots() if options.model.startswith("dummy") else _sample_shots()
    labels = sorted({label for shot in shots for label in shot.labels})
    with tempfile.TemporaryDirectory(prefix="vidlex-long-") as name:
        folder = Path(name)
        with live_service(
            folder / "data", options.model, device=options.device, request_timeout_seconds=_TIMEOUT_SECONDS
        ) as service:
            add_labels(service.url, labels if options.quick else [*labels, *sorted({*_DISTRACTORS} - {*labels})])
            scenes = _scenes(service, folder, shots, options)
            cases = [_recall(service, folder, scenes, options)]
            if options.longest_minutes:
                cases.append(_longest(service, folder, shots, options))
    return report("long", cases, options)


def _sample_shots() -> list[Shot]:
    from vidlex.model.weights.sample_videos import fetch_sample_videos

    return [shot for path, video in fetch_sample_videos().items() for shot in shots_of(path, video.labels)]


def _scenes(service: LiveService, folder: Path, shots: Sequence[Shot], options: LongOptions) -> list[_Scene]:
    """Raises BenchError if the model recognises nothing."""
    always: dict[tuple[str, int], set[str]] = {}  # labels of all frames
    ever: dict[str, set[str]] = {shot.name: set() for shot in shots}
    for shot in shots:
        for variant in range(NUM_VARIANTS):
            path = write_shot(folder / "shot.mp4", shot, variant=variant, seconds=options.scene_seconds)
            answer = _classify(service, path, aggregate_by="timestamps", num_frames=NUM_UNIFORM)
            always[shot.name, variant] = {
                label["name"]
                for label in answer["labels"]
                if all(frame["score"] >= label["threshold"] for frame in label["segments"])
            }
            ever[shot.name] |= {label["name"] for label in answer["labels"] if label["matched"]}
    scenes = []
    for shot in shots:
        for label in shot.labels:
            others = tuple(other for other in shots if label not in {*other.labels, *ever[other.name]})
            scenes += [
                _Scene(shot, variant, label, others)
                for variant in range(NUM_VARIANTS)
                if label in always[shot.name, variant] and len(others) > 1
            ]
    if not scenes:
        raise BenchError(f"the model {options.model} recognises no label in all frames of one shot alone")
    random.Random(options.seed).shuffle(scenes)
    return scenes


def _recall(service: LiveService, folder: Path, scenes: Sequence[_Scene], options: LongOptions) -> Case:
    short = write_shot(folder / "short.mp4", scenes[0].others[0], variant=0, seconds=10.0)
    with _Watch.over(service) as at_ten_seconds:
        for _ in range(1 if options.quick else 5):
            _classify(service, short)
    found: list[_Found] = []
    old: list[_Found] = []
    seconds: list[float] = []
    old_seconds: list[float] = []
    frames_per_minute: list[float] = []
    peaks: list[int] = []
    for number in range(options.num_videos):
        scene = scenes[number % len(scenes)]
        start_ms, end_ms = write_long_video(
            folder / "long.mp4",
            scene.shot,
            scene.others,
            variant=scene.variant,
            seconds=60 * options.minutes,
            scene_seconds=options.scene_seconds,
            seed=options.seed + number,
        )
        with _Watch.over(service) as watch:
            began = time.perf_counter()
            answer = _classify(service, folder / "long.mp4")
            seconds.append(time.perf_counter() - began)
        peaks.append(watch.peak_bytes)
        found.append(_find(answer, scene.label, start_ms, end_ms))
        frames_per_minute.append(len(set(answer["coverage"]["timestamps_ms"])) / options.minutes)
        began = time.perf_counter()
        answer = _classify(service, folder / "long.mp4", num_frames=NUM_UNIFORM, frame_policy="uniform")
        old_seconds.append(time.perf_counter() - began)
        old.append(_find(answer, scene.label, start_ms, end_ms))
    ours = Timing(name="vidlex", seconds=tuple(seconds), work=options.minutes, unit="minutes of video")
    theirs = Timing(
        name=f"{NUM_UNIFORM} uniform frames", seconds=tuple(old_seconds), work=options.minutes, unit="minutes of video"
    )
    growth = max(peaks) / at_ten_seconds.peak_bytes - 1
    recall, old_recall = _share(one.is_matched for one in found), _share(one.is_matched for one in old)
    figures = [
        Figure(name="recall of the scene's label", value=recall, at_least=MIN_RECALL),
        Figure(name="recall in the right place", value=_share(one.is_located for one in found), at_least=MIN_RECALL),
        Figure(name=f"recall with {NUM_UNIFORM} uniform frames", value=old_recall),
        Figure(name="stretches of the label elsewhere, per video", value=_mean(one.num_elsewhere for one in found)),
        Figure(name="matched labels per video", value=_mean(one.num_matched for one in found)),
        Figure(name=f"the same with {NUM_UNIFORM} uniform frames", value=_mean(one.num_matched for one in old)),
        Figure(name="frames per minute", value=max(frames_per_minute), at_most=MAX_FRAMES_PER_MINUTE),
        Figure(name="peak memory, a video of 10 s", value=at_ten_seconds.peak_bytes / 2**20, unit="MiB"),
        Figure(name="growth of the peak by a long video", value=growth, at_most=MAX_GROWTH),
    ]
    length = f"{options.minutes:g} min with a scene of {options.scene_seconds:g} s"
    labels = sorted({f"{scene.label} ({scene.shot.name})" for scene in scenes})
    return Case(
        name=f"{options.num_videos} videos of {length}, {Path(options.model).name}",
        timings=(ours, theirs),
        ratios=(ratio(ours, theirs),),
        figures=tuple(figures),
        note=f"scenes: {', '.join(labels)}",
    )


def _longest(service: LiveService, folder: Path, shots: Sequence[Shot], options: LongOptions) -> Case:
    short = write_shot(folder / "short.mp4", shots[0], variant=0, seconds=10.0)
    with _Watch.over(service) as at_ten_seconds:
        _classify(service, short)
    path, minutes = folder / "longest.mp4", options.longest_minutes
    write_long_video(
        path, shots[0], shots[1:], variant=0, seconds=60 * minutes, scene_seconds=options.scene_seconds, seed=1
    )
    with _Watch.over(service) as watch:
        began = time.perf_counter()
        answer = _classify(service, path)
        seconds = time.perf_counter() - began
    began = time.perf_counter()
    in_segments = _classify(
        service, path, aggregate_by="segments", segment_ms=SEGMENT_MS, num_frames=options.segment_frames, top_k=1
    )
    segment_seconds = time.perf_counter() - began
    num_frames = len(set(answer["coverage"]["timestamps_ms"]))
    num_sparse = sum(warning["code"] == "sparse_sampling" for warning in answer["warnings"])
    num_segments = len(in_segments["labels"][0]["segments"])
    expected = -(-round(60_000 * minutes) // SEGMENT_MS)
    figures = [
        Figure(name="frames per minute", value=num_frames / minutes, at_most=MAX_FRAMES_PER_MINUTE),
        Figure(name="warnings of sparse sampling", value=num_sparse),
        Figure(
            name="growth of the peak memory, against a video of 10 s",
            value=watch.peak_bytes / at_ten_seconds.peak_bytes - 1,
            at_most=MAX_GROWTH,
        ),
        Figure(name=f"segments of {SEGMENT_MS} ms", value=num_segments, at_least=expected, at_most=expected),
        Figure(name=f"the same, {options.segment_frames} frames each", value=segment_seconds, unit="s"),
    ]
    timing = Timing(name="vidlex", seconds=(seconds,), work=minutes, unit="minutes of video")
    return Case(
        name=f"a video of {minutes:g} min, {Path(options.model).name}", timings=(timing,), figures=tuple(figures)
    )


def _classify(service: LiveService, path: Path, **params: Any) -> dict[str, Any]:
    """Raises BenchError if the answer is not 200."""
    with service.client(timeout_seconds=_TIMEOUT_SECONDS) as client, path.open("rb") as file:
        parts = {"file": ("video.mp4", file, "video/mp4")}
        try:
            answer = client.post("/classify", files=parts, data={"params": json.dumps({"top_k": 0} | params)})
        except httpx.TransportError as error:
            raise BenchError(f"no answer: {error!r}") from error
    if answer.status_code != 200:
        raise BenchError(f"{answer.status_code}: {answer.text[:500]}")
    document: dict[str, Any] = answer.json()
    return document


def _find(answer: dict[str, Any], name: str, start_ms: int, end_ms: int) -> _Found:
    """What ``answer`` says of the scene that shows the label ``name`` from ``start_ms`` to ``end_ms``."""
    label = next(label for label in answer["labels"] if label["name"] == name)
    inside = [stretch["start_ms"] < end_ms and stretch["end_ms"] > start_ms for stretch in label["stretches"]]
    located = any(
        is_inside and start_ms - TOLERANCE_MS <= stretch["peak_ms"] <= end_ms + TOLERANCE_MS
        for is_inside, stretch in zip(inside, label["stretches"], strict=True)
    )
    return _Found(
        label["matched"],
        label["matched"] and located,
        num_elsewhere=inside.count(False),
        num_matched=sum(label["matched"] for label in answer["labels"]),
    )


def _share(values: Iterator[bool]) -> float:
    return _mean(float(value) for value in values)


def _mean(values: Iterator[float] | Iterator[int]) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)

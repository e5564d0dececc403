"""Bulk tagging of files: in this process, by a service and on Ray, against direct calls and against naive Ray jobs.

All sides read the same files, of distinct content, and use the same CLIP (of the naive jobs with random weights, which
take the same time). A Ray job is measured from when its workers had loaded the model, on average, to its end: its
start, a figure of its own, does not grow with the number of videos. The naive jobs are those of
`vidlex.service.bench.naive_ray`.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidlex.model.classifier import Classifier
from vidlex.service.bench import naive_ray
from vidlex.service.bench.classify import ServedModel, served_models
from vidlex.service.bench.harness import (
    BenchError,
    BenchOptions,
    Case,
    Figure,
    Report,
    Side,
    Timing,
    alternate,
    ratio,
    report,
)
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import LABELS, add_labels, with_unique_bytes, write_videos
from vidlex.service.bulk.engine import TagEngine
from vidlex.service.bulk.local.opening import open_engine
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.local.snapshot import Snapshot
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.run import Tagged, run_numbered
from vidlex.service.bulk.source import VideoSource
from vidlex.service.engine.loading import load_copies
from vidlex.service.machine.cpus import num_cpus

if TYPE_CHECKING:
    from vidlex.service.cluster.meter import StageSummary

MIN_OF_DIRECT = 0.95
MIN_OF_NAIVE = 2.0
_STORE_BYTES = 2 * 2**30  # of Ray's objects
_OPTIONS = TagOptions()


@dataclass(frozen=True)
class BulkOptions(BenchOptions):
    repetitions: int = 3
    """Measured runs of each side."""
    warmups: int = 0
    """Runs of each side before measuring; models are loaded and warm in any case."""
    num_videos: int = 96
    """Videos in each run."""
    backbone: str = ""
    """Also measure this open_clip architecture with random weights, such as ViT-B-32; empty: none."""
    backbone_videos: int = 48
    """Videos in each run with the backbone."""
    video_seconds: float = 10.0
    """Length of each video in seconds."""
    width: int = 1280
    """Of the videos, in pixels."""
    height: int = 720
    """Of the videos, in pixels."""
    num_distinct_videos: int = 8
    """Videos of different content."""


def run(options: BulkOptions) -> Report:
    if options.quick:
        options = replace(options, num_videos=4, num_distinct_videos=2, video_seconds=0.4, width=320, height=180)
    with tempfile.TemporaryDirectory(prefix="vidlex-bulk-") as name:
        folder = Path(name)
        videos = write_videos(
            folder / "distinct",
            count=options.num_distinct_videos,
            seconds=options.video_seconds,
            width=options.width,
            height=options.height,
        )
        cases: list[Case] = []
        for served in _served_models(options, folder):
            paths = _write(folder / "videos" / served.name, videos, served.num_videos)
            cases += _measure(served, paths, options, folder)
    return report("bulk", cases, options)


def _served_models(options: BulkOptions, folder: Path) -> Iterable[ServedModel]:
    if options.quick:
        return [ServedModel("dummy", "dummy", folder / "no CLIP, which only the naive jobs need", options.num_videos)]
    return served_models(
        options,
        folder,
        num_videos=options.num_videos,
        backbone=options.backbone,
        backbone_videos=options.backbone_videos,
    )


def _write(folder: Path, videos: Sequence[bytes], count: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number:05}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(with_unique_bytes(videos[number % len(videos)]))
    return paths


def _measure(served: ServedModel, paths: Sequence[Path], options: BulkOptions, folder: Path) -> list[Case]:
    from vidlex.service.client.client import Client
    from vidlex.service.client.engine import ServiceEngine

    setup = LocalSetup(model=served.spec, labels=LABELS, device=options.device)
    with ExitStack() as stack:
        (classifier, *_) = load_copies(served.spec, device=options.device, precision="auto")
        local = open_engine(setup)
        stack.callback(local.close)
        service = stack.enter_context(live_service(folder / f"data-{served.name}", served.spec, device=options.device))
        add_labels(service.url)
        client = stack.enter_context(Client(service.url))
        over_http = ServiceEngine(client, concurrency=4 * num_cpus())
        stack.enter_context(_ray_running())
        jobs = _RayJobs(local.snapshot, served, paths, folder, num_workers=1 if options.quick else num_cpus())
        shares = _Shares()
        _direct(classifier, paths[:2])
        _consume(local, paths[:2])
        sides = [
            Side("--engine local", lambda: shares.of(local, lambda: _consume(local, paths))),
            Side("vidlex.ray.tag", jobs.ours),
            Side("--engine service", lambda: _consume(over_http, paths)),
            Side("decode and encode called directly", lambda: _direct(classifier, paths)),
            Side("naive Ray job, read_videos", jobs.read_videos),
            Side("naive Ray job, a map over paths", jobs.mapped),
        ]
        if options.quick:
            del sides[4:]  # the naive jobs, whose workers import torch and open_clip
        timings = alternate(sides, options, work=len(paths), unit="videos")
        return _cases(served, timings, shares, jobs, options)


def _cases(
    served: ServedModel, timings: Sequence[Timing], shares: _Shares, jobs: _RayJobs, options: BulkOptions
) -> list[Case]:
    local, on_ray, over_http, direct, *naive = timings
    size = f"{options.width}x{options.height}, {options.video_seconds:g} s"
    count = f"{local.work:g} videos of {size}"
    machine = Case(
        name=f"{served.name}: one machine, {count}",
        timings=(local, direct, over_http),
        ratios=(ratio(local, direct, at_least=MIN_OF_DIRECT), ratio(local, over_http)),
        figures=shares.figures(),
    )
    cluster = Case(
        name=f"{served.name}: Ray, {count}",
        timings=(on_ray, *naive, local),
        ratios=(
            *(ratio(on_ray, other, at_least=MIN_OF_NAIVE) for other in naive[:1]),
            *(ratio(on_ray, other) for other in naive[1:]),
            ratio(on_ray, local),
        ),
        figures=jobs.figures(),
        note="from the time when the workers were ready; the naive jobs encode 10 frames of a video, and 8",
    )
    return [machine, cluster]


# --- sides ---------------------------------------------------------------------------------------------------------


def _sources(paths: Iterable[Path]) -> list[VideoSource]:
    return [VideoSource(str(path)) for path in paths]


def _consume(engine: TagEngine, paths: Sequence[Path]) -> None:
    _check(run_numbered(_sources(paths), engine, _OPTIONS), len(paths))


def _check(results: Iterable[Tagged], count: int) -> None:
    found = list(results)
    failures = [one.result.failure for one in found if one.result.failure is not None]
    if failures or len(found) != count:
        raise BenchError(f"{len(found)} of {count} videos, {len(failures)} failed: {failures[:3]}")


def _direct(classifier: Classifier, paths: Sequence[Path]) -> None:
    from vidlex.model.decode.decoder import decode_frames

    def decode(path: Path) -> object:
        return decode_frames(path, geometry=classifier.geometry, num_frames=classifier.num_frames).frames

    with ThreadPoolExecutor(num_cpus()) as pool:
        for frames in pool.map(decode, paths):
            classifier.encode_video([frames])  # type: ignore[list-item]


class _Shares:
    """Busy shares of the local engine over its runs."""

    def __init__(self) -> None:
        self._seconds = self._decode = self._device = 0.0

    def of(self, engine: TagEngine, action: Callable[[], None]) -> None:
        before, began = engine.busy(), time.monotonic()
        action()
        after, seconds = engine.busy(), time.monotonic() - began
        assert before is not None and after is not None
        self._seconds += seconds
        self._decode += (after.decode_seconds - before.decode_seconds) / after.num_decoders
        self._device += (after.device_seconds - before.device_seconds) / after.num_devices

    def figures(self) -> tuple[Figure, ...]:
        shares = (("decode", self._decode), ("device", self._device))
        return tuple(Figure(name=f"{name} busy", value=busy / max(1e-9, self._seconds)) for name, busy in shares)


class _RayJobs:
    """Sides that return the seconds from when the workers were ready, on average."""

    def __init__(
        self, snapshot: Snapshot, served: ServedModel, paths: Sequence[Path], folder: Path, num_workers: int
    ) -> None:
        self._snapshot, self._served, self._paths = snapshot, served, paths
        self._folder = folder
        self._num_workers = num_workers
        self._start_seconds: list[float] = []
        self._summary: StageSummary | None = None

    def ours(self) -> float:
        import ray

        from vidlex.service.cluster.meter import StageMetrics
        from vidlex.service.cluster.parts import write_parts
        from vidlex.service.cluster.tagging import ClusterLayout, tag

        began, metrics = time.time(), StageMetrics()
        per_task = max(1, len(self._paths) // (8 * num_cpus()))
        uris = ray.data.from_items(
            [{"uri": str(path)} for path in self._paths], override_num_blocks=-(-len(self._paths) // per_task)
        )
        results = tag(
            uris,
            snapshot=self._snapshot,
            layout=ClusterLayout(min_workers=self._num_workers),
            rows_per_task=per_task,
            metrics=metrics,
        )
        num_rows = write_parts(results, str(self._empty("ours")))
        ended, self._summary = time.time(), metrics.summary()
        if num_rows != len(self._paths) or self._summary.num_failed:
            raise BenchError(f"{num_rows} rows of {len(self._paths)} videos, {self._summary.num_failed} failed")
        ready_at = statistics.mean(worker.ready_at for worker in metrics.workers())
        self._start_seconds.append(ready_at - began)
        return ended - ready_at

    def read_videos(self) -> float:
        return self._naive(naive_ray.score_read_videos)

    def mapped(self) -> float:
        return self._naive(naive_ray.score_mapped)

    def _naive(self, job: Callable[[Sequence[Path], Path, Path, Sequence[str], int], list[float]]) -> float:
        ready_at = job(self._paths, self._empty("naive"), self._served.clip_folder, LABELS, self._num_workers)
        return time.time() - statistics.mean(ready_at)

    def _empty(self, name: str) -> Path:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name

    def figures(self) -> tuple[Figure, ...]:
        assert self._summary is not None
        shares = (("decode", self._summary.decode_busy_share), ("device", self._summary.device_busy_share))
        busy = [Figure(name=f"{name} busy", value=share) for name, share in shares if share is not None]
        stages = [
            Figure(name=f"{name}, of a video", value=1000 * seconds, unit="ms")
            for name, seconds in self._summary.seconds_per_video.items()
        ]
        start = Figure(name="start of the job", value=statistics.median(self._start_seconds), unit="s")
        return (*busy, *stages, start)


@contextmanager
def _ray_running() -> Iterator[None]:
    try:
        import ray

        from vidlex.service.cluster.engine import start_ray
    except ModuleNotFoundError as error:
        raise BenchError(f"{error}: pip install 'vidlex[ray]'") from None
    start_ray(None, num_cpus=num_cpus(), object_store_memory=_STORE_BYTES)
    try:
        yield
    finally:
        ray.shutdown()

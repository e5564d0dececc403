"""Videos per second over HTTP with 8 clients: beside the same decode and encode in process, and a plain service.

Every request carries bytes that no cache has seen, and the cache is off; what it gives is measured apart. The plain
service has a CLIP of the same shape with random weights, which are as fast as trained ones, and no temporal branch;
``backbone`` is served zero-shot with the very same weights. The clients run in this process and share the cores with
what they measure, on every side but the one in process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidlex.model.classifier import Classifier
from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Side, compare, report
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import Answers, add_labels, classify_all, unique, write_clips
from vidlex.service.bench.machine import num_cores

CACHED_MS = 10.0
_TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class ClassifyOptions(BenchOptions):
    repetitions: int = 3
    num_clients: int = 8
    num_videos: int = 64
    """In each repetition, on each side."""
    backbone: str = "ViT-B-16"
    """An open_clip architecture, measured with random weights beside ``model``; empty: none."""
    backbone_videos: int = 8
    clip_seconds: float = 10.0
    num_clips: int = 8


@dataclass(frozen=True)
class _Served:
    name: str
    spec: str
    """What `vidlex serve --model` takes."""
    clip: Path
    """A folder of open_clip's layout, for the plain service."""
    num_videos: int


def run(options: ClassifyOptions) -> Report:
    """Throughput on all sides in turn, with the latencies of ours; then the same videos with other labels."""
    with tempfile.TemporaryDirectory(prefix="vidlex-classify-") as name:
        folder = Path(name)
        num_clips, clip_seconds = (2, 0.4) if options.quick else (options.num_clips, options.clip_seconds)
        clips = write_clips(folder / "clips", count=num_clips, seconds=clip_seconds)
        cases = []
        for served in _models(options, folder):
            cases += _throughput(served, clips, options, folder)
            cases.append(_cached(served, clips, options, folder))
    return report("classify", cases, options)


def _throughput(served: _Served, clips: Sequence[bytes], options: ClassifyOptions, folder: Path) -> list[Case]:
    from vidlex.model.factory import load_classifier

    classifier = load_classifier(served.spec, device=options.device, precision="auto")
    seen: list[float] = []

    def over_http(url: str) -> Answers:
        found = classify_all(url, clips, num_requests=served.num_videos, num_clients=options.num_clients)
        if len(found.latencies) != served.num_videos:
            raise BenchError(f"{url} answered {dict(found.statuses)}: {found.failures[:3]}")
        return found

    def ours(url: str) -> float:
        found = over_http(url)
        seen.extend(found.latencies)
        return found.seconds

    data = folder / f"data-{served.name}"
    with live_service(data, served.spec, device=options.device) as service, plain_service(served.clip) as plain:
        add_labels(service.url)
        throughput = compare(
            f"{served.name}: {served.num_videos} videos, {options.num_clients} clients",
            [
                Side("vidlex over HTTP", lambda: ours(service.url)),
                Side("decode and encode in process", lambda: _in_process(classifier, clips, served.num_videos, folder)),
                Side("plain FastAPI + open_clip", lambda: over_http(plain).seconds),
            ],
            options if served.num_videos >= 32 else replace(options, warmups=0),
            work=served.num_videos,
            unit="videos",
            at_least={"decode and encode in process": 0.9, "plain FastAPI + open_clip": 2.0},
            note=f"640x360 H.264; {classifier.num_frames} frames a video, 8 in the plain service.",
        )
    latency = Answers(latencies=seen)
    figures = (
        Figure(name="p50", value=1000 * latency.percentile(0.5), unit="ms"),
        Figure(name="p99", value=1000 * latency.percentile(0.99), unit="ms"),
    )
    return [throughput, Case(name=f"{served.name}: latency with {options.num_clients} clients", figures=figures)]


def _in_process(classifier: Classifier, clips: Sequence[bytes], count: int, folder: Path) -> None:
    """As fast as one process does it with nothing around: decoding in threads, encoding beside it in this one."""
    from vidlex.model.decode.decoder import decode_frames

    def decode(number: int) -> Any:
        path = folder / f"in-process-{number}.mp4"
        path.write_bytes(unique(clips[number % len(clips)]))
        try:
            return decode_frames(path, geometry=classifier.geometry, num_frames=classifier.num_frames).frames
        finally:
            path.unlink()

    with ThreadPoolExecutor(num_cores()) as pool:
        for frames in pool.map(decode, range(count)):
            classifier.encode_video([frames])


def _cached(served: _Served, clips: Sequence[bytes], options: ClassifyOptions, folder: Path) -> Case:
    """One client, the bytes of before, and labels that have come since."""
    data = folder / f"cached-{served.name}"
    latencies = []
    cache = {"feature_cache_bytes": 64 * 2**20}
    with live_service(data, served.spec, device=options.device, **cache) as service, service.client() as client:

        def classify(clip: bytes) -> bool:
            began = time.perf_counter()
            answer = client.post("/classify", files={"file": ("clip.mp4", clip, "video/mp4")})
            latencies.append(time.perf_counter() - began)
            return bool(answer.raise_for_status().json()["usage"]["cached"])

        add_labels(service.url)
        for clip in clips:
            classify(clip)
        latencies.clear()
        add_labels(service.url, [f"thing number {number}" for number in range(8)])
        if not all(classify(clip) for _ in range(1 if options.quick else 8) for clip in clips):
            raise BenchError("the service did not keep the features of its videos")
    again = Answers(latencies=latencies)
    figures = (
        Figure(name="p50", value=1000 * again.percentile(0.5), unit="ms", at_most=CACHED_MS),
        Figure(name="p99", value=1000 * again.percentile(0.99), unit="ms"),
    )
    return Case(name=f"{served.name}: a video seen before, with new labels", figures=figures)


def _models(options: ClassifyOptions, folder: Path) -> Iterator[_Served]:
    import open_clip

    from vidlex.model.weights import list_zoo, zoo_dir

    if options.quick:
        yield _Served("dummy", "dummy", _random_clip(_TINY_CLIP, options.seed, folder / "tiny"), 4)
        return
    checkpoint = zoo_dir() / options.model if options.model in list_zoo() else Path(options.model)
    if not (checkpoint / "config.json").is_file():
        raise BenchError(f"{options.model} is no checkpoint; an architecture of open_clip is given as --backbone")
    shape = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["clip"].get("model_cfg")
    if shape is None:
        raise BenchError(f"{options.model} does not hold its CLIP, so the plain service cannot have the same")
    place = _random_clip(shape, options.seed, folder / "model")
    yield _Served(checkpoint.name, options.model, place, options.num_videos)
    if options.backbone:
        backbone = open_clip.get_model_config(options.backbone)
        if backbone is None:
            raise BenchError(f"open_clip has no architecture {options.backbone}")
        place = _random_clip(backbone, options.seed, folder / "backbone")
        yield _Served(options.backbone, f"open_clip:local-dir:{place}", place, options.backbone_videos)


def _random_clip(shape: dict[str, Any], seed: int, folder: Path) -> Path:
    import open_clip
    import torch

    from vidlex.model.train.export import write_open_clip_folder

    torch.manual_seed(seed)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return write_open_clip_folder(open_clip.CLIP(**shape), shape, mean, std, folder)


@contextmanager
def plain_service(clip: Path) -> Iterator[str]:
    """The address of a running `vidlex.service.bench.plain_service`. Raises BenchError."""
    command = [sys.executable, "-m", "vidlex.service.bench.plain_service", str(clip)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = (line.strip() for line in process.stdout)  # the libraries under it may say something first
        address = next((line for line in said if line.startswith("http://")), None)
        if address is None:
            raise BenchError("the plain service did not start")
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)

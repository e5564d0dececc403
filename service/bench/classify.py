"""Videos per second over HTTP with 8 clients, against decoding and encoding in process and against a plain service.

Every request has distinct bytes and the feature cache is off; a separate case measures the cache. The plain service has
a CLIP of the same shape with random weights, which take the same time as trained ones, and no temporal branch;
``backbone`` is served zero-shot with the same weights. The clients run in this process and share the cores with the
services.
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
from vidlex.model.specs import ModelNotFound, checkpoint_folder
from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Side, compare, report
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import Answers, add_labels, classify_all, with_unique_bytes, write_videos
from vidlex.service.machine.cpus import num_cpus

CACHED_MS = 10.0
_TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class ClassifyOptions(BenchOptions):
    repetitions: int = 3
    """Measured runs of each side."""
    num_clients: int = 8
    """Concurrent clients."""
    num_videos: int = 64
    """Videos in each run of a side."""
    backbone: str = "ViT-B-16"
    """Also measure this open_clip architecture with random weights; empty: none."""
    backbone_videos: int = 8
    """Videos in each run of a side with the backbone."""
    video_seconds: float = 10.0
    """Length of each video in seconds."""
    num_distinct_videos: int = 8
    """Videos of different content."""


@dataclass(frozen=True)
class ServedModel:
    name: str
    spec: str  # as for `vidlex serve --model`
    clip_folder: Path  # in open_clip's layout, for the plain service
    num_videos: int


def run(options: ClassifyOptions) -> Report:
    with tempfile.TemporaryDirectory(prefix="vidlex-classify-") as name:
        folder = Path(name)
        count, seconds = (2, 0.4) if options.quick else (options.num_distinct_videos, options.video_seconds)
        videos = write_videos(folder / "videos", count=count, seconds=seconds)
        cases = []
        for served in served_models(
            options,
            folder,
            num_videos=options.num_videos,
            backbone=options.backbone,
            backbone_videos=options.backbone_videos,
        ):
            cases += _throughput(served, videos, options, folder)
            cases.append(_cached(served, videos, options, folder))
    return report("classify", cases, options)


def _throughput(served: ServedModel, videos: Sequence[bytes], options: ClassifyOptions, folder: Path) -> list[Case]:
    from vidlex.model.factory import load_classifier

    classifier = load_classifier(served.spec, device=options.device, precision="auto")
    latencies: list[float] = []

    def over_http(url: str) -> Answers:
        found = classify_all(url, videos, num_requests=served.num_videos, num_clients=options.num_clients)
        if len(found.latencies) != served.num_videos:
            raise BenchError(f"{url} answered {dict(found.statuses)}: {found.failures[:3]}")
        return found

    def ours(url: str) -> float:
        found = over_http(url)
        latencies.extend(found.latencies)
        return found.seconds

    data = folder / f"data-{served.name}"
    with live_service(data, served.spec, device=options.device) as service, plain_service(served.clip_folder) as plain:
        add_labels(service.url)
        throughput = compare(
            f"{served.name}: {served.num_videos} videos, {options.num_clients} clients",
            [
                Side("vidlex over HTTP", lambda: ours(service.url)),
                Side(
                    "decode and encode in process", lambda: _in_process(classifier, videos, served.num_videos, folder)
                ),
                Side("plain FastAPI + open_clip", lambda: over_http(plain).seconds),
            ],
            options if served.num_videos >= 32 else replace(options, warmups=0),
            work=served.num_videos,
            unit="videos",
            at_least={"decode and encode in process": 0.9, "plain FastAPI + open_clip": 2.0},
            note=f"640x360 H.264; {classifier.num_frames} frames a video, 8 in the plain service.",
        )
    measured = Answers(latencies=latencies)
    figures = (
        Figure(name="p50", value=1000 * measured.percentile(0.5), unit="ms"),
        Figure(name="p99", value=1000 * measured.percentile(0.99), unit="ms"),
    )
    return [throughput, Case(name=f"{served.name}: latency with {options.num_clients} clients", figures=figures)]


def _in_process(classifier: Classifier, videos: Sequence[bytes], count: int, folder: Path) -> None:
    from vidlex.model.decode.decoder import decode_frames

    def decode(number: int) -> Any:
        path = folder / f"in-process-{number}.mp4"
        path.write_bytes(with_unique_bytes(videos[number % len(videos)]))
        try:
            return decode_frames(path, geometry=classifier.geometry, num_frames=classifier.num_frames).frames
        finally:
            path.unlink()

    with ThreadPoolExecutor(num_cpus()) as pool:
        for frames in pool.map(decode, range(count)):
            classifier.encode_video([frames])


def _cached(served: ServedModel, videos: Sequence[bytes], options: ClassifyOptions, folder: Path) -> Case:
    # The videos are sent again after labels were added.
    data = folder / f"cached-{served.name}"
    latencies: list[float] = []
    cache = {"feature_cache_bytes": 64 * 2**20}
    with live_service(data, served.spec, device=options.device, **cache) as service, service.client() as client:

        def classify(video: bytes) -> bool:
            began = time.perf_counter()
            answer = client.post("/classify", files={"file": ("video.mp4", video, "video/mp4")})
            latencies.append(time.perf_counter() - began)
            return bool(answer.raise_for_status().json()["usage"]["cached"])

        add_labels(service.url)
        for video in videos:
            classify(video)
        latencies.clear()
        add_labels(service.url, [f"thing number {number}" for number in range(8)])
        if not all(classify(video) for _ in range(1 if options.quick else 8) for video in videos):
            raise BenchError("the service did not cache the features of its videos")
    measured = Answers(latencies=latencies)
    figures = (
        Figure(name="p50", value=1000 * measured.percentile(0.5), unit="ms", at_most=CACHED_MS),
        Figure(name="p99", value=1000 * measured.percentile(0.99), unit="ms"),
    )
    return Case(name=f"{served.name}: a video seen before, with new labels", figures=figures)


def served_models(
    options: BenchOptions, folder: Path, *, num_videos: int, backbone: str, backbone_videos: int
) -> Iterator[ServedModel]:
    """The model of the options, and ``backbone``, an open_clip architecture, if it is not empty. Raises BenchError."""
    import open_clip

    if options.quick:
        yield ServedModel("dummy", "dummy", _random_clip(_TINY_CLIP, options.seed, folder / "tiny"), 4)
        return
    try:
        checkpoint = checkpoint_folder(options.model)
    except ModelNotFound:
        raise BenchError(f"{options.model} is not a checkpoint; use --backbone for an open_clip architecture") from None
    shape = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["clip"].get("model_cfg")
    if shape is None:
        raise BenchError(f"{options.model} does not contain its CLIP configuration, which the plain service needs")
    clip_folder = _random_clip(shape, options.seed, folder / "model")
    yield ServedModel(checkpoint.name, options.model, clip_folder, num_videos)
    if backbone:
        architecture = open_clip.get_model_config(backbone)
        if architecture is None:
            raise BenchError(f"open_clip has no architecture {backbone}")
        clip_folder = _random_clip(architecture, options.seed, folder / "backbone")
        yield ServedModel(backbone, f"open_clip:local-dir:{clip_folder}", clip_folder, backbone_videos)


def _random_clip(shape: dict[str, Any], seed: int, folder: Path) -> Path:
    import open_clip
    import torch

    from vidlex.model.train.export import write_open_clip_folder

    torch.manual_seed(seed)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return write_open_clip_folder(open_clip.CLIP(**shape), shape, mean, std, folder)


@contextmanager
def plain_service(clip_folder: Path) -> Iterator[str]:
    """Yields the address. Raises BenchError."""
    command = [sys.executable, "-P", "-m", "vidlex.service.bench.plain_service", str(clip_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = (line.strip() for line in process.stdout)  # libraries may print before the address
        address = next((line for line in lines if line.startswith("http://")), None)
        if address is None:
            raise BenchError("the plain service did not start")
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)

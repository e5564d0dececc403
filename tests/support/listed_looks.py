"""Features of looks that a test lists, without a decoder."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from support.processes import PATIENCE_SECONDS
from vidlex.model.dummy import DummyClassifier
from vidlex.model.types import FrameBatch, FrameContent, VideoInfo
from vidlex.service.classification.extraction import FeatureExtractor, SamplingPlan, StageTimes, VideoRequest
from vidlex.service.classification.features import VideoFeatures
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.classification.segments import Look
from vidlex.service.decode.pool import DecodeJob
from vidlex.service.engine.engine import Engine
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.metrics import Metrics

SIDE = 32


class ListedChunks:
    """A decode pool whose chunks, of looks and a duration, are in memory. Their memory is used again."""

    decoder = "listed 1.0"

    def __init__(self, looks: Sequence[Look], duration_ms: int, chunk: int, jobs: list[DecodeJob]) -> None:
        self.looks, self.info = looks, VideoInfo(duration_ms, 8, 8, 10.0, "x", 100, 100)
        self.chunk, self.jobs = chunk, jobs

    @contextmanager
    def decode_chunks(self, path: Path, job: DecodeJob, **_: Any) -> Iterator[Iterator[FrameBatch]]:
        self.jobs.append(job)
        yield self._chunks()

    def _chunks(self) -> Iterator[FrameBatch]:
        memory = np.zeros((self.chunk, SIDE, SIDE, 3), np.uint8)
        for first in range(0, len(self.looks), self.chunk):
            part = self.looks[first : first + self.chunk]
            memory[: len(part)] = [look.frame for look in part]
            flags = ([getattr(look, f.name) for look in part] for f in dataclasses.fields(FrameContent))
            content = FrameContent(*(np.array(flag, np.bool_) for flag in flags))
            times = tuple(look.time_ms for look in part)
            yield FrameBatch(memory[: len(part)], times, self.info, (("code", f"until {times[-1]}"),), 1, content)
            memory[:] = 77


def look(time_ms: int, colour: Sequence[int], **flags: bool) -> Look:
    return Look(time_ms, np.tile(np.array(colour, np.uint8), (SIDE, SIDE, 1)), **flags)


class Kept:
    def __init__(self) -> None:
        self.videos = RecentVideos(4, 2**30)
        self.statistics = RecentStatistics(is_enabled=True, max_namespaces=4)


def extract(
    engine: Engine,
    looks: Sequence[Look],
    duration_ms: int,
    *,
    chunk: int = 5,
    max_frames: int = 512,
    kept: Kept | None = None,
    jobs: list[DecodeJob] | None = None,
    **options: Any,
) -> VideoFeatures:
    kept = kept or Kept()
    pool: Any = ListedChunks(looks, duration_ms, chunk, [] if jobs is None else jobs)
    facts = ModelFacts.of(DummyClassifier())
    vocabulary: Any = SimpleNamespace(namespace="n", facts=facts, engine=engine)
    chosen = ClassifyOptions(**options)
    extractor = FeatureExtractor(
        pool=pool,
        metrics=Metrics(),
        max_frames=max_frames,
        recent_videos=kept.videos,
        recent_statistics=kept.statistics,
    )
    request = VideoRequest(
        Path("x"),
        "00",
        chosen,
        vocabulary,
        SamplingPlan.of(chosen, facts),
        Requester(deadline=time.monotonic() + PATIENCE_SECONDS),
    )
    return extractor.extract(request, StageTimes())


def colourful(num: int, step_ms: int, seed: int) -> list[Look]:
    rng = random.Random(seed)
    return [look(i * step_ms, [rng.randrange(256) for _ in range(3)]) for i in range(num)]

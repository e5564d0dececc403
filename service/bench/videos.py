"""Kept videos: applying labels to all of them, and searching them, over generated features in real files.

The features are clusters of unit vectors, and every label lies near the middle of one. The store is an embedded one;
nothing is decoded or encoded.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Side, compare, report, timed
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.models.served_model import ModelFacts, Vocabulary
from vidlex.service.retagging.backfill import BackfillHandler, BackfillParams
from vidlex.service.retagging.codes import CodeCache
from vidlex.service.retagging.matches import MatchStore
from vidlex.service.retagging.search import SearchQuery, SearchResult, VideoSearch
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.records import KeptSegment, NewKeptVideo
from vidlex.service.videos.store import KeptVideoStore, VideoLimits
from vidlex.service.webhooks.store import WebhookStore

_NAMESPACE, _MODEL = "bench", "bench"
_NUM_LABELS = 1000
_NUM_QUERIES = 40
_LIMIT = 10
_MAX_BACKFILL_SECONDS = 2.0
_MAX_SEARCH_MS = 50.0
_BUILD_SECONDS = 3600


@dataclass(frozen=True)
class VideosOptions(BenchOptions):
    num_videos: int = 20_000
    """Kept videos."""
    segments: int = 50
    """Segments of each."""
    dim: int = 512
    """Dimension of the vectors."""
    cluster: int = 500
    """Segments per cluster of vectors (cosine about 0.67)."""
    num_labels: int = 100
    """Labels of the backfill of many at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_videos, self.segments, self.dim, self.cluster) < 1 or not 1 <= self.num_labels <= _NUM_LABELS:
            raise ValueError(f"all sizes must be positive, and num_labels at most {_NUM_LABELS}")

    @property
    def num_kept(self) -> int:
        return min(self.num_videos, 200) if self.quick else self.num_videos


def run(options: VideosOptions) -> Report:
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as name, EmbeddedStore(Path(name) / "store") as server:
        client = server.client()
        before = _used_memory(client)
        archive = _Archive(options, client, Path(name))
        used = _used_memory(client) - before
        cases = [archive.backfill(1), archive.backfill(options.num_labels), *archive.searches(), archive.sizes(used)]
    return report("videos", cases, options)


class _Archive:
    """Kept videos with a vocabulary. In place of a ModelRegistry and its Vocabulary."""

    def __init__(self, options: VideosOptions, client: redis.Redis, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self.namespace = _NAMESPACE
        self.facts = ModelFacts(_MODEL, _MODEL, options.dim, FrameGeometry(1), 1, Scorer(40.0, -24.0), 0.5)
        self.index = LabelIndex(options.dim, _MODEL)
        self.labeler = self
        self.store = self
        self._client = client
        self._videos = KeptVideoStore(client, folder / "videos", VideoLimits(2**50, None))
        self._matches = MatchStore(client, folder / "videos", 2**50)
        self._rng = np.random.default_rng(options.seed)
        num_centres = max(1, options.num_kept * options.segments // options.cluster)
        self._centres = _unit(self._rng.standard_normal((num_centres, options.dim), dtype=np.float32))
        self.keep_seconds = timed(self._fill)
        near = self._centres[self._rng.integers(0, num_centres, _NUM_LABELS)]
        noise = _unit(self._rng.standard_normal(near.shape, dtype=np.float32))
        self._labels = _unit(near + noise)  # cosine with the middle of a cluster about 0.7
        self._label_ids = [f"lbl_{number:024d}" for number in range(_NUM_LABELS)]
        labels = [IndexedLabel(label_id, label_id, (), None) for label_id in self._label_ids]
        self.index.replace([(labels, self._labels)], revision=1)

    # -- as a registry and a vocabulary

    def acquire(self, *_: object) -> _Archive:
        return self

    def release(self) -> None: ...

    def await_revision(self, *_: object) -> None: ...

    def get_many(self, _: object) -> list[object]:
        return []

    def candidates(self, names: list[str], _: object = None) -> tuple[list[str], NDArray[np.float32]]:
        return names, np.stack([self._labels[int(name)] for name in names])

    # -- content

    def _fill(self) -> None:
        options = self._options
        segments = [KeptSegment(4000 * i, 4000 * (i + 1)) for i in range(options.segments)]
        for number in range(options.num_kept):
            chosen = self._centres[self._rng.integers(0, len(self._centres), options.segments)]
            noise = _unit(self._rng.standard_normal(chosen.shape, dtype=np.float32))
            new = NewKeptVideo(
                namespace=_NAMESPACE,
                client="bench",
                sha256=hashlib.sha256(str(number).encode()).hexdigest(),
                sampling={"aggregate_by": "segments", "num_frames": 8, "frame_policy": "uniform", "segment_ms": 4000},
                facts={"duration_ms": 4000 * options.segments, "width": 1280, "height": 720, "codec": "h264"},
                receipt={"model": _MODEL, "decoder": "none"},
                client_id=f"video-{number}",
            )
            self._videos.keep(new, _MODEL, segments, _unit(chosen + 0.7 * noise))

    def _table(self) -> KeptTable:
        return self._videos.table(_NAMESPACE, _MODEL)

    # -- cases

    def backfill(self, num_labels: int) -> Case:
        table = self._table()
        vectors = self._labels[:num_labels]
        handler = BackfillHandler(cast(ModelRegistry, self), self._videos, self._matches, cast(WebhookStore, None))
        work = JobWork(time.monotonic() + 36_000, threading.Event(), lambda progress: None, lambda kind, data: None)
        counted = []

        def ours() -> None:
            params = BackfillParams(label_ids=self._label_ids[:num_labels]).as_json()
            job = Job(
                kind="backfill", namespace=_NAMESPACE, client="bench", params=params, state="running",
                id=f"job_{time.monotonic_ns()}", created_at_ms=0, queue_until_ms=0,
            )  # fmt: skip
            counted.append(sum(entry["num_matched"] for entry in handler(job, work)["labels"]))

        def naive() -> None:
            for block in table.blocks():
                block.vectors.astype(np.float32) @ vectors.T

        sides = [
            Side("vidlex, the whole job", ours),
            Side("numpy: astype(float32) @ labels", naive),
            Side("one pass over the bytes", lambda: _pass(table)),
        ]
        name = f"{num_labels} label{'s' if num_labels > 1 else ''} over {table.num_segments} segments"
        case = compare(name, sides, self._options, work=table.num_segments, unit="segments")
        seconds = case.timings[0].median_seconds
        limit = _MAX_BACKFILL_SECONDS if num_labels == 1 else None
        figures = (
            Figure(name="backfill, median", value=seconds, unit="s", at_most=limit),
            Figure(name="matched videos", value=counted[-1]),
        )
        return case.model_copy(update={"figures": figures, "note": "the labels are encoded; the files are in memory"})

    def searches(self) -> list[Case]:
        exact = VideoSearch(self._videos, CodeCache(0))
        table, options = self._table(), self._options
        cache = CodeCache(2**40, min_segments=1)
        coded = VideoSearch(self._videos, cache)
        started = time.perf_counter()
        self._search(coded, 0)
        if not cache.wait((_NAMESPACE, _MODEL), _BUILD_SECONDS):
            raise BenchError("the codes were not built in an hour")
        build_seconds = time.perf_counter() - started
        recall = cache.stats((_NAMESPACE, _MODEL))
        assert recall is not None
        numbers = iter(range(10**9))
        sides = [
            Side("vidlex, codes", lambda: _discard(self._search(coded, next(numbers)))),
            Side("vidlex, exact", lambda: _discard(self._search(exact, next(numbers)))),
        ]
        case = compare(f"search by text, {table.num_segments} segments", sides, options)
        num_queries = 4 if options.quick else _NUM_QUERIES
        latencies = [1e3 * timed(lambda i=i: _discard(self._search(coded, i))) for i in range(num_queries)]  # type: ignore[misc]
        figures = (
            Figure(name="codes, median", value=float(np.median(latencies)), unit="ms", at_most=_MAX_SEARCH_MS),
            Figure(name="codes, slowest", value=max(latencies), unit="ms"),
            Figure(name=f"recall@{_LIMIT} of videos", value=self._recall(coded, exact, num_queries), at_least=0.95),
            Figure(name="recall@50 of segments, measured at build", value=recall.recall),
            Figure(name="candidates compared exactly", value=recall.num_candidates),
            Figure(name="building the codes", value=build_seconds, unit="s"),
        )
        note = f"top {_LIMIT}, with records and exact scores; labels near the middle of a cluster"
        return [case.model_copy(update={"figures": figures, "note": note})]

    def sizes(self, used_memory: int) -> Case:
        table, num = self._table(), self._options.num_kept
        on_disk = sum(path.stat().st_size for path in (self._folder / "videos").rglob("*.features"))
        codes = self._options.dim // 4 + 8
        figures = (
            Figure(name="features on disk, per segment", value=on_disk / table.num_segments, unit="B"),
            Figure(name="codes in memory, per segment", value=codes, unit="B"),
            Figure(name="store's memory, per video", value=used_memory / num, unit="B"),
            Figure(name="keeping one video", value=1e3 * self.keep_seconds / num, unit="ms"),
        )
        return Case(name=f"sizes of {num} kept videos of {self._options.segments} segments", figures=figures)

    def _search(self, searching: VideoSearch, number: int) -> SearchResult:
        query = SearchQuery(text=str(number % _NUM_LABELS), limit=_LIMIT)
        return searching.search(cast(Vocabulary, self), query, Requester())

    def _recall(self, coded: VideoSearch, exact: VideoSearch, num_queries: int) -> float:
        shares = []
        for number in range(num_queries):
            found, best = (
                {hit.video.id for hit in self._search(searching, number).hits} for searching in (coded, exact)
            )
            shares.append(len(found & best) / max(1, len(best)))
        return float(np.mean(shares))


def _pass(table: KeptTable) -> None:
    for part in table.parts:
        part.rows.view(np.uint8).reshape(-1).view(np.int64).sum()


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _used_memory(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _discard(_: object) -> None:
    """A side must return None: a returned number counts as its seconds."""

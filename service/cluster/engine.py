"""Tagging on a Ray cluster as the command line does it: sources in, numbered results out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext
from ray.exceptions import RayError

from vidlex.service.bulk.engine import BusyShares, EngineUnavailable
from vidlex.service.bulk.fetch import Fetcher, FetchError
from vidlex.service.bulk.local.opening import OnProgress, open_snapshot
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import TagResult
from vidlex.service.bulk.rows import result_of, rows_of
from vidlex.service.bulk.run import KnownResults, Tagged
from vidlex.service.bulk.source import VideoSource
from vidlex.service.cluster.checkpoint import DoneRows
from vidlex.service.cluster.meter import StageMetrics, StageSummary
from vidlex.service.cluster.source_rows import ORDER, table_of_sources
from vidlex.service.cluster.tagging import ClusterJob, ClusterLayout, cluster_resources

MAX_SOURCES = 200_000  # of one Ray job; the next one begins with the sources after them
_TASKS_PER_WORKER = 8  # at least, so that all workers end at about the same time
_MAX_ROWS_PER_TASK = 64
_NUM_LOOKUPS = 32  # requests for the versions of files


def start_ray(address: str | None, **arguments: Any) -> None:
    """``arguments`` as of ``ray.init`` for a new cluster on this machine, if ``address`` is None.

    Raises ConnectionError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        arguments = {"include_dashboard": False, **arguments}
    ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **arguments)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class ClusterEngine:
    """``address`` is that of a running cluster, ``auto`` that of this machine or of RAY_ADDRESS; None starts one here.

    The vocabulary is encoded on this machine, once. Raises ConnectionError without a cluster, and what `open_snapshot`
    raises. Belongs to one thread, but for ``busy``. Call ``close`` last.
    """

    def __init__(
        self,
        setup: LocalSetup,
        *,
        address: str | None = None,
        layout: ClusterLayout = ClusterLayout(),
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        snapshot = open_snapshot(setup, on_progress=on_progress)
        self.identity = snapshot.identity
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(address)
        self._job = ClusterJob(snapshot, setup.settings(), layout)
        self._metrics = StageMetrics(self._job.encoders)

    def run_numbered(
        self,
        sources: Iterable[VideoSource],
        options: TagOptions,
        *,
        known: KnownResults | None = None,
        fetcher: Fetcher | None = None,
        cancelled: threading.Event | None = None,
    ) -> Iterator[Tagged]:
        """As ``vidlex.service.bulk.run.run_numbered``; every source has one result, also if nodes are lost.

        Files that are known by their version are not sent to the cluster. Files of equal content are tagged each.
        ``fetcher`` gives its limit of a file's size to the workers. Raises EngineUnavailable.
        """
        cancelled, fetcher = cancelled or threading.Event(), fetcher or Fetcher()
        numbered = enumerate(sources)
        while wave := list(islice(numbered, MAX_SOURCES)):
            new = dict(wave)
            for order, result, version in self._known(wave, known, fetcher):
                yield Tagged(order, result, version, is_new=False)
                del new[order]
            if cancelled.is_set():
                return
            try:
                yield from self._tagged(new, options, fetcher, cancelled)
            except RayError as error:
                raise EngineUnavailable(f"The Ray job failed: {_last_line(error)}") from error

    def _known(
        self, sources: list[tuple[int, VideoSource]], known: KnownResults | None, fetcher: Fetcher
    ) -> Iterator[tuple[int, TagResult, str | None]]:
        if known is None:
            return

        def version_of(source: VideoSource) -> str | None:
            try:
                return fetcher.version(source)
            except FetchError:
                return None

        with ThreadPoolExecutor(_NUM_LOOKUPS) as pool:
            versions = pool.map(version_of, (source for _, source in sources))
            for (order, source), version in zip(sources, versions, strict=True):
                result = known.of_source(source.uri, version)
                if result is not None:
                    named = replace(result, uri=source.uri, client_id=source.client_id, metadata=source.metadata)
                    yield order, named, version

    def _tagged(
        self, sources: dict[int, VideoSource], options: TagOptions, fetcher: Fetcher, cancelled: threading.Event
    ) -> Iterator[Tagged]:
        if not sources:
            return
        workers = self._job.layout.initial_workers(cluster_resources(), spare_cpus=0)
        rows_per_task = max(1, min(_MAX_ROWS_PER_TASK, len(sources) // (workers * _TASKS_PER_WORKER)))
        numbered = iter(sources.items())
        tables = []
        while rows := list(islice(numbered, rows_per_task)):
            tables.append(table_of_sources(rows))
        results = self._job.tag(
            ray.data.from_arrow(tables),
            options,
            rows_per_task,
            done=DoneRows(),
            board=self._metrics.board,
            max_file_bytes=fetcher.max_file_bytes,
            spare_cpus=0,  # the tables are there already
        )
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(table, pa.Table)
            for row in rows_of(table):
                yield Tagged(row[ORDER], result_of(row), row["file_version"])
            if cancelled.is_set():
                return

    @property
    def encoders(self) -> Sequence[Any]:
        """Handles of actors, see `EncoderActor`."""
        return self._job.encoders

    def summary(self) -> StageSummary:
        return self._metrics.summary()

    def busy(self) -> BusyShares | None:
        try:
            return self._metrics.busy()
        except RayError:
            return None

    def close(self) -> None:
        for encoder in self._job.encoders:
            ray.kill(encoder)
        if self._owns_ray:
            ray.shutdown()


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__

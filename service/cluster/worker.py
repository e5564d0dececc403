"""The actor of the pool: it reads, decodes and matches, and encodes too where no encoder does."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util.metrics import Counter

from vidlex.model.types import DecoderName
from vidlex.service.bulk.fetch import Fetcher
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.local.opening import quiet_logs
from vidlex.service.bulk.local.snapshot import Snapshot
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.rows import row_of, schema, table_of
from vidlex.service.bulk.run import Tagged, run_numbered
from vidlex.service.cluster.checkpoint import DoneRows
from vidlex.service.cluster.encoders import RemoteEncoder
from vidlex.service.cluster.meter import WorkerTotals
from vidlex.service.cluster.source_rows import ORDER, sources_of
from vidlex.service.decode.pool import PoolLimits


@dataclass(frozen=True)
class WorkerSetup:
    """``snapshot`` and ``done`` are references to a `Snapshot` and `DoneRows`, which each node fetches once."""

    snapshot: Any
    done: Any
    options: TagOptions
    max_file_bytes: int
    limits: PoolLimits
    decoder: DecoderName
    load: Callable[[], LocalEncoder] | None  # None: ``encoders`` encode
    encoders: Sequence[Any] = ()  # handles
    board: Any = None  # handle, see `StageMetrics`


class TagWorker:
    """For `map_batches` with tables of sources; yields tables of results, see `vidlex.service.bulk.rows.schema`.

    A column ``order`` of the sources is one of the results.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._done: DoneRows = ray.get(setup.done)
        self._engine = _open(setup, ray.get(setup.snapshot))
        self._name = uuid.uuid4().hex
        self._started, self._ready_at = time.monotonic(), time.time()
        self._num_videos = self._num_failed = self._num_skipped = self._num_bytes = 0
        self._stage_seconds: dict[str, float] = defaultdict(float)
        self._videos = Counter("vidlex_bulk_videos", "Tagged videos by outcome", tag_keys=("outcome",))
        self._stages = Counter("vidlex_bulk_stage_seconds", "Seconds of the stages", tag_keys=("stage",))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        sources = list(sources_of(table))
        options, fetcher = self._setup.options, Fetcher(max_file_bytes=self._setup.max_file_bytes)
        with closing(fetcher):
            found = run_numbered(sources, self._engine, options, known=self._done, fetcher=fetcher)
            tagged = [one for one in found if not self._is_done(one)]
        for one in tagged:
            self._count(one)
        self._num_skipped += len(sources) - len(tagged)
        self._report()
        tagged.sort(key=lambda one: one.order)
        results = table_of([row_of(one.result, one.file_version) for one in tagged], schema())
        if ORDER in table.column_names:
            orders = table[ORDER].take(pa.array([one.order for one in tagged], pa.int64()))
            results = results.append_column(ORDER, orders)
        yield results

    @staticmethod
    def _is_done(tagged: Tagged) -> bool:
        return tagged.result.failure is None and tagged.result.receipt is None

    def _count(self, tagged: Tagged) -> None:
        result = tagged.result
        self._num_videos += 1
        self._num_failed += result.failure is not None
        self._num_bytes += result.num_bytes or 0
        self._videos.inc(tags={"outcome": "tagged" if result.failure is None else "failed"})
        for stage, milliseconds in result.timings_ms.items() if tagged.is_new else ():
            self._stage_seconds[stage] += milliseconds / 1000
            if milliseconds > 0:
                self._stages.inc(milliseconds / 1000, tags={"stage": stage})

    def _report(self) -> None:
        if self._setup.board is not None:
            self._setup.board.report.remote(self._name, self._totals(self._stage_seconds))

    def _totals(self, stage_seconds: Mapping[str, float]) -> WorkerTotals:
        busy = self._engine.busy()
        return WorkerTotals(
            node_id=str(ray.get_runtime_context().get_node_id()),
            ready_at=self._ready_at,
            seconds=time.monotonic() - self._started,
            decode_seconds=busy.decode_seconds,
            num_decoders=busy.num_decoders,
            device_seconds=busy.device_seconds,
            num_devices=busy.num_devices,
            num_videos=self._num_videos,
            num_failed=self._num_failed,
            num_skipped=self._num_skipped,
            num_bytes=self._num_bytes,
            stage_seconds=dict(stage_seconds),
        )


def _open(setup: WorkerSetup, snapshot: Snapshot) -> LocalEngine:
    """Raises ValueError if the model of this node is not that of the snapshot."""
    quiet_logs()
    encoder: LocalEncoder | RemoteEncoder
    if setup.load is not None:
        encoder = setup.load()
        fingerprint, name = encoder.facts.fingerprint, encoder.facts.encoder
    else:
        encoder = RemoteEncoder(setup.encoders)
        fingerprint, name = encoder.use.fingerprint, encoder.use.encoder
    if fingerprint != snapshot.facts.fingerprint:
        raise ValueError(
            f"the model {snapshot.spec} is another one on this node: {fingerprint[:12]}, not "
            f"{snapshot.facts.fingerprint[:12]}; install the same files everywhere"
        )
    return LocalEngine(
        snapshot, encoder, decode_workers=1, limits=setup.limits, decoder=setup.decoder, encoder_name=name
    )

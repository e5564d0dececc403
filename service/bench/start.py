"""Start-up: the time from a loaded model to a ready service with many stored labels.

The service's log has the times at which the model is loaded and the service is ready. The floor is reading the bytes of
the stored records and vectors over the socket of the store.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.migrations.runner import migrate
from vidlex.service.bench.harness import BenchOptions, Case, Figure, Floor, Report, Timing, report, timed
from vidlex.service.bench.live import live_service
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.labels.store.redis_keys import Keys

MAX_READY_SECONDS = 10.0
_CLIP_DIM = 512  # of ViT-B/16
_DUMMY_DIM = 3
_BATCH = 5000
_READ_BATCH = 1000


@dataclass(frozen=True)
class StartOptions(BenchOptions):
    num_labels: int = 100_000
    """Stored labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 1:
            raise ValueError("num_labels must be positive")


def run(options: StartOptions) -> Report:
    num_labels = min(options.num_labels, 500) if options.quick else options.num_labels
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as folder:
        cases = [
            _service(Path(folder) / "service", num_labels, options),
            _index(Path(folder) / "index", num_labels, options),
        ]
    return report("start", cases, options)


def _service(folder: Path, num_labels: int, options: StartOptions) -> Case:
    with EmbeddedStore(folder) as embedded:
        _fill(embedded, "dummy-1", _DUMMY_DIM, num_labels, options.seed)
    seconds = []
    for _ in range(options.num_repetitions):
        with live_service(folder, "dummy") as service, service.client() as client:
            index = client.get("/readyz").json()["checks"]["index"]
            if index != {"ok": True, "detail": f"{num_labels} labels"}:
                raise RuntimeError(f"the service started with {index}")
            seconds.append(_seconds_between(service.log_text(), "model_loaded", "ready"))
    timing = Timing(name="vidlex", seconds=tuple(seconds), work=num_labels, unit="labels")
    limit = Figure(name="from model loaded to ready", value=timing.median_seconds, unit="s", at_most=MAX_READY_SECONDS)
    return Case(name=f"a service with {num_labels} labels, D={_DUMMY_DIM}", timings=(timing,), figures=(limit,))


def _index(folder: Path, num_labels: int, options: StartOptions) -> Case:
    with EmbeddedStore(folder) as embedded:
        store = _fill(embedded, "bench", _CLIP_DIM, num_labels, options.seed)

        def load() -> None:
            index = LabelIndex(_CLIP_DIM, "bench")
            IndexSync(store, index).load()
            if len(index) != num_labels:
                raise RuntimeError(f"{len(index)} of {num_labels} labels were loaded")

        seconds = tuple(timed(load) for _ in range(options.num_repetitions))
        floor = timed(lambda: _read_bytes(embedded.client()))
    timing = Timing(name="vidlex", seconds=seconds, work=num_labels, unit="labels")
    return Case(
        name=f"an index with {num_labels} labels, D={_CLIP_DIM}",
        timings=(timing,),
        figures=(Figure(name="load", value=timing.median_seconds, unit="s", at_most=MAX_READY_SECONDS),),
        floor=Floor(seconds=floor, how="reading the stored bytes of all records and vectors over the same socket"),
    )


def _fill(embedded: EmbeddedStore, fingerprint: str, dim: int, num_labels: int, seed: int) -> LabelStore:
    client = embedded.client()
    list(migrate(client))
    store = LabelStore(client)
    random = np.random.default_rng(seed)
    for start in range(0, num_labels, _BATCH):
        vectors = random.standard_normal((min(_BATCH, num_labels - start), dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [NewLabel(f"label number {start + n}", categories=("bench",)) for n in range(len(vectors))]
        store.add_many(list(zip(names, vectors, strict=True)), fingerprint)
    return store


def _read_bytes(client: Any) -> None:
    keys = Keys("default")
    ids = client.zrange(keys.order, 0, -1)
    for start in range(0, len(ids), _READ_BATCH):
        part = ids[start : start + _READ_BATCH]
        client.hmget(keys.records, part)
        client.hmget(keys.vectors("bench"), part)


def _seconds_between(log: str, first: str, last: str) -> float:
    times: dict[str, datetime] = {}
    for line in log.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            if entry.get("event") in (first, last):
                times[entry["event"]] = datetime.fromisoformat(entry["timestamp"])
    return (times[last] - times[first]).total_seconds()

"""A Ray dataset of URIs -> a dataset of results. Rows are URIs and results, never frames."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.data import ActorPoolStrategy, Dataset

from vidlex.service.bulk.fetch import DEFAULT_MAX_FILE_BYTES
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.opening import open_snapshot, quiet_logs
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.local.snapshot import Snapshot
from vidlex.service.bulk.options import TagOptions
from vidlex.service.cluster.checkpoint import DoneRows
from vidlex.service.cluster.encoders import start_encoders
from vidlex.service.cluster.meter import StageMetrics
from vidlex.service.cluster.parts import done_rows
from vidlex.service.cluster.worker import TagWorker, WorkerSetup
from vidlex.service.decode.limits import pool_limits
from vidlex.service.engine.limits import engine_limits
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.settings import Settings

if TYPE_CHECKING:
    from vidlex.model.video.precision import Precision


@dataclass(frozen=True, kw_only=True)
class ClusterLayout:
    """How much of a cluster a job takes.

    Workers read, decode and match, each on ``worker_cpus``. Where ``num_encoders`` is 0 they encode too; else as many
    actors do it, each with ``encoder_gpus`` and ``encoder_cpus``. None: an encoder per GPU of the cluster, which has to
    have one if ``device`` is cuda; none if it is cpu.
    """

    min_workers: int = 1
    max_workers: int | None = None  # None: as many as there is room for, also on nodes that come later
    worker_cpus: float = 1.0
    worker_resources: dict[str, float] | None = None  # names and amounts of custom resources of a node
    num_encoders: int | None = None
    encoder_gpus: float | None = None  # None: 1, or 0 if the cluster has none
    encoder_cpus: float = 1.0
    encoder_resources: dict[str, float] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not 1 <= self.min_workers <= (self.max_workers or self.min_workers):
            raise ValueError(f"{self.min_workers = } must be positive and at most {self.max_workers = }")
        if (self.num_encoders or 0) < 0:
            raise ValueError(f"{self.num_encoders = } must not be negative")

    def resolved(self, resources: dict[str, float]) -> ClusterLayout:
        """For a cluster with these resources, see `cluster_resources`. Raises ValueError."""
        num_gpus = 0 if self.device == "cpu" else int(resources.get("GPU", 0))
        if self.device == "cuda" and not num_gpus:
            raise ValueError("the cluster has no GPU")
        num_encoders = num_gpus if self.num_encoders is None else self.num_encoders
        gpus = self.encoder_gpus if self.encoder_gpus is not None else float(num_gpus > 0)
        return replace(self, num_encoders=num_encoders, encoder_gpus=gpus)

    def initial_workers(self, resources: dict[str, float], *, spare_cpus: float) -> int:
        """That fill the cluster at once, so that a job does not wait for the pool to grow.

        ``spare_cpus`` are those for other tasks of the dataset: a pool that holds all CPUs would wait for them forever.
        """
        cpus = resources.get("CPU", 1.0) - (self.num_encoders or 0) * self.encoder_cpus - spare_cpus
        room = int(cpus / self.worker_cpus) if self.worker_cpus > 0 else 1
        return max(self.min_workers, min(room, self.max_workers or room))


def cluster_resources() -> dict[str, float]:
    """Of all nodes together: CPUs, GPUs and custom resources by name."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def tag(
    uris: Dataset,
    *,
    model: str | None = None,
    labels: Sequence[str] | None = None,
    snapshot: Snapshot | None = None,
    options: TagOptions = TagOptions(),
    layout: ClusterLayout = ClusterLayout(),
    rows_per_task: int = 16,
    resume_from: str | None = None,
    retry_failed: bool = False,
    metrics: StageMetrics | None = None,
) -> Dataset:
    """A row per video of `vidlex.service.bulk.rows.schema`: labels, receipt, timings, or the error of this video.

    ``uris`` has a column ``uri``, ``path`` or ``video`` that every node can read, and optionally ``id``; other columns
    become metadata. The vocabulary is ``labels``, encoded here once by ``model``, or a ``snapshot``, which names its
    model. Rows that `write_parts` has written to ``resume_from`` are left out; with ``retry_failed`` only those without
    an error. Ray repeats ``rows_per_task`` rows when a node is lost.

    Lazy, as every dataset. The pool begins with all CPUs of the cluster but one, for what makes ``uris``; a write by
    other means than `write_parts` should need none: ``write_lance(out, ray_remote_args={"num_cpus": 0})``.

    Raises ValueError for neither or both vocabularies, InvalidParameter for ``options``, and what `open_snapshot`
    raises.
    """
    if (labels is None) == (snapshot is None):
        raise ValueError("give either labels or a snapshot")
    if snapshot is not None and model not in (None, snapshot.spec):
        raise ValueError(f"the snapshot is of the model {snapshot.spec}, not {model}")
    options.check()
    if not ray.is_initialized():
        ray.init()
    if snapshot is None:
        assert labels is not None
        snapshot = open_snapshot(LocalSetup(model=model, labels=tuple(labels), device="cpu"))
    job = ClusterJob(snapshot, LocalSetup(model=snapshot.spec, labels=()).settings(), layout)
    if metrics is not None:
        metrics.encoders = job.encoders
    done = DoneRows()
    if resume_from is not None:
        done = done_rows(resume_from, snapshot.identity, options, retry_failed=retry_failed)
    return job.tag(uris, options, rows_per_task, done=done, board=None if metrics is None else metrics.board)


class ClusterJob:
    """The vocabulary in Ray's shared memory, and running encoders, which stop once this and its datasets are gone."""

    def __init__(self, snapshot: Snapshot, settings: Settings, layout: ClusterLayout) -> None:
        self.layout = layout.resolved(cluster_resources())
        self._settings = settings
        self._spec = snapshot.spec
        self._snapshot = ray.put(snapshot)
        gc.collect()  # datasets are parts of circles: the encoders of an earlier one would keep their GPUs
        self.encoders = start_encoders(
            self._loader("cuda" if self.layout.encoder_gpus else "cpu"),
            count=self.layout.num_encoders or 0,
            num_gpus=self.layout.encoder_gpus or 0.0,
            num_cpus=self.layout.encoder_cpus,
            resources=self.layout.encoder_resources or {},
        )

    def tag(
        self,
        uris: Dataset,
        options: TagOptions,
        rows_per_task: int,
        *,
        done: DoneRows,
        board: Any,
        max_file_bytes: int = DEFAULT_MAX_FILE_BYTES,
        spare_cpus: float = 1.0,
    ) -> Dataset:
        layout = self.layout
        setup = WorkerSetup(
            snapshot=self._snapshot,
            done=ray.put(done),
            options=options,
            max_file_bytes=max_file_bytes,
            limits=pool_limits(self._settings),
            decoder=self._settings.decoder,
            load=None if self.encoders else self._loader("cpu"),
            encoders=self.encoders,
            board=board,
        )
        strategy = ActorPoolStrategy(
            min_size=layout.min_workers,
            max_size=layout.max_workers,
            initial_size=layout.initial_workers(cluster_resources(), spare_cpus=spare_cpus),
        )
        return uris.map_batches(
            TagWorker,
            fn_constructor_args=[setup],
            batch_size=rows_per_task,
            batch_format="pyarrow",
            compute=strategy,
            num_cpus=layout.worker_cpus,
            resources=layout.worker_resources,
        )

    def _loader(self, device: str) -> Callable[[], LocalEncoder]:
        settings = self._settings
        return partial(_load, self._spec, device, settings.precision, engine_limits(settings))


def _load(spec: str, device: str, precision: Precision, limits: EngineLimits) -> LocalEncoder:
    quiet_logs()
    return LocalEncoder.load(spec, device=device, precision=precision, limits=limits)

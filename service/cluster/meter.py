"""What the parts of a running Ray job do: busy seconds of decoders and devices, seconds of each stage, counts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidlex.service.bulk.engine import BusyShares
from vidlex.service.cluster.encoders import EncoderUse

_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class WorkerTotals:
    """Of one actor that reads, decodes and matches, since it was ready."""

    node_id: str
    ready_at: float  # of time.time
    seconds: float
    decode_seconds: float  # busy seconds of its decoders
    num_decoders: int
    device_seconds: float  # of its own device; 0 where encoders encode
    num_devices: int
    num_videos: int
    num_failed: int
    num_skipped: int  # done in an earlier run
    num_bytes: int
    stage_seconds: Mapping[str, float]  # by the keys of TagResult.timings_ms


class _Board:
    """The body of a Ray actor."""

    def __init__(self) -> None:
        self._totals: dict[str, WorkerTotals] = {}

    def report(self, worker: str, totals: WorkerTotals) -> None:
        self._totals[worker] = totals

    def totals(self) -> list[WorkerTotals]:
        return list(self._totals.values())


@dataclass(frozen=True)
class StageSummary:
    """``*_busy_share``: of the time in which the parts were there; None where there are none."""

    num_videos: int
    num_failed: int
    num_skipped: int
    num_bytes: int
    num_workers: int
    node_ids: frozenset[str]
    num_encoders: int
    decode_busy_share: float | None
    device_busy_share: float | None
    seconds_per_video: Mapping[str, float] = field(default_factory=dict)  # by stage: fetch, decode, queue, ...

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"node_ids": sorted(self.node_ids)}

    def describe(self) -> str:
        shares = (("decode", self.decode_busy_share), ("device", self.device_busy_share))
        busy = ", ".join(f"{name} {share:.0%} busy" for name, share in shares if share is not None)
        stages = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in self.seconds_per_video.items())
        return (
            f"{self.num_videos} videos, {self.num_failed} failed, {self.num_skipped} done before; {self.num_workers} "
            f"workers on {len(self.node_ids)} nodes, {self.num_encoders} encoders; {busy}; per video: {stages}"
        )


class StageMetrics:
    """Pass one to `vidlex.ray.tag`, and read it while the dataset is executed or afterwards. Needs a running Ray."""

    def __init__(self, encoders: Sequence[Any] = ()) -> None:
        # On the driver's node, which the job does not outlive.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board: Any = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self.encoders = encoders

    def summary(self) -> StageSummary:
        """What cannot be asked any more, such as an encoder on a lost node, is left out."""
        return summarize(self.workers(), self._encoder_uses())

    def busy(self) -> BusyShares:
        """Of the workers that have reported."""
        totals, encoders = self.workers(), self._encoder_uses()
        return BusyShares(
            decode_seconds=sum(worker.decode_seconds for worker in totals),
            num_decoders=sum(worker.num_decoders for worker in totals),
            device_seconds=sum(w.device_seconds for w in totals) + sum(e.busy_seconds for e in encoders),
            num_devices=sum(w.num_devices for w in totals) + sum(e.num_devices for e in encoders),
        )

    def workers(self) -> list[WorkerTotals]:
        """That have reported."""
        found: list[WorkerTotals] = ray.get(self.board.totals.remote(), timeout=_ANSWER_SECONDS)
        return found

    def _encoder_uses(self) -> list[EncoderUse]:
        references = [encoder.use.remote() for encoder in self.encoders]
        uses = []
        deadline = time.monotonic() + _ANSWER_SECONDS
        for reference in references:
            try:
                uses.append(ray.get(reference, timeout=max(0.1, deadline - time.monotonic())))
            except RayError:
                continue
        return uses


def summarize(totals: Sequence[WorkerTotals], encoders: Sequence[EncoderUse]) -> StageSummary:
    stages: dict[str, float] = defaultdict(float)
    for worker in totals:
        for name, seconds in worker.stage_seconds.items():
            stages[name] += seconds
    num_videos = sum(worker.num_videos for worker in totals)
    decode_seconds = sum(worker.seconds * worker.num_decoders for worker in totals)
    device_seconds = sum(worker.seconds * worker.num_devices for worker in totals)
    device_seconds += sum(encoder.seconds * encoder.num_devices for encoder in encoders)
    device_busy = sum(worker.device_seconds for worker in totals) + sum(encoder.busy_seconds for encoder in encoders)
    return StageSummary(
        num_videos=num_videos,
        num_failed=sum(worker.num_failed for worker in totals),
        num_skipped=sum(worker.num_skipped for worker in totals),
        num_bytes=sum(worker.num_bytes for worker in totals),
        num_workers=len(totals),
        node_ids=frozenset([*(worker.node_id for worker in totals), *(encoder.node_id for encoder in encoders)]),
        num_encoders=len(encoders),
        decode_busy_share=sum(w.decode_seconds for w in totals) / decode_seconds if decode_seconds else None,
        device_busy_share=device_busy / device_seconds if device_seconds else None,
        seconds_per_video={name: seconds / max(1, num_videos) for name, seconds in stages.items()},
    )

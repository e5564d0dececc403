"""The kind of job that applies labels to all kept videos of the served model, without decoding any."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from vidlex.service.errors import InvalidParameter, WebhookConflict
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job, JobProgress
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.retagging.match_files import MatchedVideos, texts_of
from vidlex.service.retagging.matches import MatchRecord, MatchStore
from vidlex.service.retagging.scan import Matched, TooManyMatches, scan
from vidlex.service.retagging.scored_labels import ScoredLabels, read_labels
from vidlex.service.retagging.tables import count_missing, table_of
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.store import KeptVideoStore
from vidlex.service.webhooks.events import WebhookEvent
from vidlex.service.webhooks.store import WebhookStore

EVENT = "video.labels_changed"
MAX_LABELS = 10_000  # of one job
MAX_SHOWN_IDS = 20_000  # of all changes in a result
MAX_LABEL_IDS_SHOWN = 100  # of the changes of one label, in a result and in a webhook, and as many lost ones
_MAX_LABELS_AT_ONCE = 128
_PAGE_LABELS = 1000
_REVISION_WAIT_SECONDS = 30.0

_log = structlog.get_logger("vidlex.retagging")


@dataclass(frozen=True)
class BackfillParams:
    """Of a job, as JSON. Either ``label_ids``, or ``since_revision``: all labels that were written later."""

    label_ids: Sequence[str] | None = None
    since_revision: int | None = None
    min_score: float | None = None  # in place of the labels' thresholds
    min_revision: int = 0  # which the vocabulary must have reached

    def as_json(self) -> dict[str, Any]:
        return {
            "label_ids": None if self.label_ids is None else list(self.label_ids),
            "since_revision": self.since_revision,
            "min_score": self.min_score,
            "min_revision": self.min_revision,
        }


class BackfillHandler:
    """See JobHandler."""

    def __init__(
        self, models: ModelRegistry, videos: KeptVideoStore, matches: MatchStore, webhooks: WebhookStore
    ) -> None:
        self._models = models
        self._parts = _Parts(videos, matches, webhooks)

    def __call__(self, job: Job, work: JobWork) -> Mapping[str, Any]:
        """Raises InvalidParameter, RevisionNotReached, FeatureGenerationMissing, and what the stores raise."""
        started = time.monotonic()
        params = BackfillParams(**job.params)
        vocabulary = self._models.acquire(job.namespace, job.client)
        try:
            return _Run(job, work, params, vocabulary, self._parts).run() | {
                "seconds": round(time.monotonic() - started, 3)
            }
        finally:
            vocabulary.release()


def labels_since(
    vocabulary: Vocabulary, revision: int, max_labels: int = MAX_LABELS, *, check: Callable[[], None] = lambda: None
) -> list[str]:
    """Ids of labels that were created or changed later. Reads the whole vocabulary; ``check`` is called with each page.

    Raises InvalidParameter if there are more than ``max_labels``, and what ``check`` raises.
    """
    found: list[str] = []
    after = None
    while True:
        check()
        page = vocabulary.store.list(_PAGE_LABELS, after)
        found += [label.id for label in page.data if label.revision > revision]
        if len(found) > max_labels:
            raise InvalidParameter(f"More than {max_labels} labels are newer; name fewer as label_ids")
        if not page.has_more or not page.data:
            return found
        after = page.data[-1].id


@dataclass(frozen=True)
class _Parts:
    videos: KeptVideoStore
    matches: MatchStore
    webhooks: WebhookStore


def unknown_labels(vocabulary: Vocabulary, label_ids: Sequence[str]) -> set[str]:
    """Those that do not exist; not those that are only not encoded yet."""
    nothing = np.zeros((1, vocabulary.facts.dim), np.float32)
    unknown = set(vocabulary.index.search(nothing, label_ids=label_ids).unknown_ids)
    return unknown - {label.id for label in vocabulary.store.get_many(sorted(unknown))}


class _Run:
    """One attempt at a job."""

    def __init__(self, job: Job, work: JobWork, params: BackfillParams, vocabulary: Vocabulary, parts: _Parts) -> None:
        self._job = job
        self._work = work
        self._params = params
        self._vocabulary = vocabulary
        self._videos = parts.videos
        self._matches = parts.matches
        self._webhooks = parts.webhooks
        self._requester = Requester(job.client, work.deadline, work.cancelled)
        self._num_done = 0  # segments, those of each pass

    def run(self) -> dict[str, Any]:
        vocabulary, params, namespace = self._vocabulary, self._params, self._job.namespace
        vocabulary.await_revision(params.min_revision, _REVISION_WAIT_SECONDS)
        if params.label_ids is None:
            label_ids = labels_since(vocabulary, params.since_revision or 0, check=self._requester.check)
        else:
            label_ids = list(dict.fromkeys(params.label_ids))
        table = table_of(self._videos, namespace, vocabulary.facts.fingerprint)
        self._forget_removed_labels()
        num_missing = count_missing(self._videos, namespace, table)
        num_shown = min(MAX_LABEL_IDS_SHOWN, MAX_SHOWN_IDS // max(1, 2 * len(label_ids)))
        entries: dict[str, dict[str, Any]] = {}
        revision, calibration = vocabulary.index.revision, None
        for scored, found in self._passes(table, label_ids):
            revision, calibration = scored.revision, scored.calibration
            for row, label in enumerate(scored.labels):
                record, changed = self._keep(table, scored, row, found[row])
                entries[label.id] = _entry(label, record, changed, num_shown)
        return {
            "object": "videos.backfill",
            "model": vocabulary.facts.fingerprint,
            "calibration": calibration,
            "vocabulary_revision": revision,
            "num_videos": table.num_videos,
            "num_segments": table.num_segments,
            "num_missing": num_missing,
            "num_labels": len(entries),
            "num_gained": sum(entry["num_gained"] for entry in entries.values()),
            "num_lost": sum(entry["num_lost"] for entry in entries.values()),
            "labels": [entries[label_id] for label_id in label_ids if label_id in entries],
            "unknown_label_ids": [label_id for label_id in label_ids if label_id not in entries],
        }

    def _passes(
        self, table: KeptTable, label_ids: Sequence[str]
    ) -> Iterator[tuple[ScoredLabels, list[Matched | None]]]:
        """Labels with what they match; None for those that an earlier attempt at the job has finished."""
        done = {x.label_id for x in self._matches.records(self._job.namespace).values() if x.job_id == self._job.id}
        size, start = _MAX_LABELS_AT_ONCE, 0
        while start < len(label_ids):
            part = label_ids[start : start + size]
            finished = [label_id for label_id in part if label_id in done]
            if finished:
                scored, _ = read_labels(self._vocabulary, finished, min_score=self._params.min_score)
                yield scored, [None] * len(scored)
            open_ids = [label_id for label_id in part if label_id not in done]
            if not open_ids:
                start += len(part)
                continue
            scored, _ = read_labels(self._vocabulary, open_ids, min_score=self._params.min_score)
            total = self._num_done + table.num_segments * -(-(len(label_ids) - start) // size)
            try:
                found = scan(table, scored, lambda num, total=total: self._advance(num, total))  # type: ignore[misc]
            except TooManyMatches:
                size = max(1, len(part) // 4)
                continue
            yield scored, list(found)
            start += len(part)

    def _forget_removed_labels(self) -> None:
        ids = [x for x in self._matches.records(self._job.namespace) if self._vocabulary.index.vector(x) is None]
        existing = {label.id for label in self._vocabulary.store.get_many(ids)}  # some are only not encoded yet
        self._matches.forget(self._job.namespace, [label_id for label_id in ids if label_id not in existing])

    def _advance(self, num_segments: int, total: int) -> None:
        self._requester.check()
        self._num_done += num_segments
        self._work.report(JobProgress("match", "segments", self._num_done, total))

    def _keep(
        self, table: KeptTable, scored: ScoredLabels, row: int, found: Matched | None
    ) -> tuple[MatchRecord, MatchedVideos]:
        namespace, label = self._job.namespace, scored.labels[row]
        while True:
            self._requester.check()
            before = self._matches.record(namespace, label.id)
            stored = self._matches.read(namespace, label.id)
            if before is not None and before.job_id == self._job.id and stored is not None:
                record, changed = stored
                break
            if found is None:  # the file that an earlier attempt wrote is gone
                (found,) = scan(table, scored.part(row, row + 1))
            changed = self._changes(table, found, None if stored is None else stored[1])
            record = MatchRecord(
                label.id,
                self._job.id,
                file="",
                num_bytes=0,
                model=scored.model,
                calibration=scored.calibration,
                vocabulary_revision=scored.revision,
                threshold=float(scored.thresholds[row]),
                num_videos=table.num_videos,
                num_matched=len(changed.ids),
                num_gained=int(np.count_nonzero(changed.is_gained)),
                num_lost=len(changed.lost_ids),
                created_at_ms=time.time_ns() // 1_000_000,
            )
            if self._matches.replace(namespace, record, changed, before=before):
                break
        self._tell(label, record, changed)
        return record, changed

    def _changes(self, table: KeptTable, found: Matched, before: MatchedVideos | None) -> MatchedVideos:
        ids = table.packed_ids(found.video_rows)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        old_ids = MatchedVideos.none().ids if before is None else before.ids
        lost = old_ids[~np.isin(old_ids, ids)]
        lost = lost[table.contains(lost)]  # others were removed, or have no features of this model
        return MatchedVideos(
            ids,
            found.scores[order],
            found.start_ms[order],
            found.end_ms[order],
            is_gained=~np.isin(ids, old_ids),
            lost_ids=lost,
        )

    def _tell(self, label: IndexedLabel, record: MatchRecord, changed: MatchedVideos) -> None:
        """At least once: a process that is killed before ``mark_told`` tells again."""
        target = self._job.webhook
        if target is None or record.is_told or not (record.num_gained or record.num_lost) or not target.wants(EVENT):
            return
        data = {"job_id": self._job.id, **_entry(label, record, changed, MAX_LABEL_IDS_SHOWN)}
        try:
            self._webhooks.queue_now(target, WebhookEvent(EVENT, self._job.namespace, data, record.created_at_ms))
        except WebhookConflict as error:  # as any webhook that the namespace has no room for
            _log.warning("webhook_dropped", namespace=self._job.namespace, type=EVENT, reason=str(error))
        self._matches.mark_told(self._job.namespace, replace(record, is_told=True))


def _entry(label: IndexedLabel, record: MatchRecord, changed: MatchedVideos, num_shown: int) -> dict[str, Any]:
    return {
        "label_id": label.id,
        "name": label.name,
        "threshold": record.threshold,
        "num_videos": record.num_videos,
        "num_matched": record.num_matched,
        "num_gained": record.num_gained,
        "num_lost": record.num_lost,
        "gained_ids": texts_of(changed.gained_ids[:num_shown]),
        "lost_ids": texts_of(changed.lost_ids[:num_shown]),
    }

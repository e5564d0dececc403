"""Judgements of users, and the thresholds that are fitted to them. Blocking: call it in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog
from cachetools import LRUCache

from vidlex.service import audit
from vidlex.service.errors import FeedbackConflict, InvalidParameter, NotFound, PreconditionFailed, VidlexError
from vidlex.service.feedback.proposal import Proposal, propose
from vidlex.service.feedback.records import (
    JUDGEMENT_PREFIX,
    VERSION_PREFIX,
    Judgement,
    NewJudgement,
    ThresholdVersion,
)
from vidlex.service.feedback.scores import KeptScore, KeptVideos, Scale, kept_scores
from vidlex.service.feedback.store import FeedbackStore, JudgementPage, LabelCount
from vidlex.service.ids import new_id
from vidlex.service.labels.store.label_store import IfMatch, check_match
from vidlex.service.labels.store.records import Label, LabelChanges, etag_of
from vidlex.service.models.served_model import Vocabulary

MAX_BATCH = 1000
AUTOMATIC = "auto"  # the client of what the service applies itself
_CACHED_SCORES = 100_000
_AUTOMATIC_SECONDS = 5.0  # of one request; other labels wait for their next judgement
_MAX_PROBLEMS = 100

_log = structlog.get_logger("vidlex.feedback")


@dataclass(frozen=True)
class AddedFeedback:
    judgements: list[Judgement]
    labels: dict[str, str]  # names of the judged labels, by id
    counts: dict[str, int]  # judgements of each, by id
    applied: list[ThresholdVersion]  # automatically


@dataclass(frozen=True)
class ChangedThreshold:
    version: ThresholdVersion
    revision: int  # of the vocabulary that has it


class Feedback:
    """Thread-safe. Every method raises StoreUnavailable. ``videos``: None if no videos are kept."""

    def __init__(
        self, store: FeedbackStore, videos: KeptVideos | None, *, min_judgements: int, apply_automatically: bool
    ) -> None:
        self.min_judgements = min_judgements
        self._store = store
        self._videos = videos
        self._apply_automatically = apply_automatically
        # (judgement id, fingerprint, calibration): features of a kept video do not change.
        self._scores: LRUCache[tuple[str, str, str | None], float] = LRUCache(_CACHED_SCORES)
        self._scores_lock = threading.Lock()

    # --- judgements

    def add(
        self, vocabulary: Vocabulary, new: Sequence[NewJudgement], client: str, pointer: str = "/judgements/{}"
    ) -> AddedFeedback:
        """All or none. Raises InvalidParameter (with the ``pointer`` to each bad one), LabelTextInvalid,
        ByteQuotaExceeded."""
        judgements, labels = self._resolved(vocabulary, new, client, pointer)
        scored = self._with_scores(vocabulary, judgements)
        counts = self._store.add(vocabulary.namespace, scored)
        applied = []
        if self._apply_automatically:
            enough = [label_id for label_id, count in counts.items() if count >= self.min_judgements]
            applied = self._applied_automatically(vocabulary, enough)
        return AddedFeedback(scored, {label.id: label.name for label in labels}, counts, applied)

    def page(self, vocabulary: Vocabulary, label_id: str, *, limit: int, after: str | None) -> JudgementPage:
        """Newest first. Raises NotFound."""
        vocabulary.store.get(label_id)
        return self._store.page(vocabulary.namespace, label_id, limit=limit, after=after)

    def labels(self, vocabulary: Vocabulary, limit: int, after: str | None) -> list[tuple[str, LabelCount]]:
        """Names and counts of up to ``limit`` labels with judgements, in the order of their ids."""
        counts = [c for c in self._store.labels(vocabulary.namespace) if after is None or c.label_id > after]
        found: list[tuple[str, LabelCount]] = []
        for start in range(0, len(counts), limit):
            chunk = counts[start : start + limit]
            names = vocabulary.store.names_of(count.label_id for count in chunk)
            found += [(names[count.label_id], count) for count in chunk if count.label_id in names]
            if len(found) >= limit:
                break
        return found[:limit]

    def remove(self, namespace: str, judgement_id: str) -> None:
        """Raises NotFound."""
        label_id = self._store.remove(namespace, judgement_id)
        audit.record("feedback.remove", judgement_id, before={"label_id": label_id}, namespace=namespace)

    # --- thresholds

    def proposal(self, vocabulary: Vocabulary, label_id: str, target_precision: float | None = None) -> Proposal:
        """Raises NotFound, LabelCorrupt."""
        return self._proposal(vocabulary, vocabulary.store.get(label_id), target_precision)

    def apply(
        self,
        vocabulary: Vocabulary,
        label_id: str,
        client: str,
        *,
        target_precision: float | None = None,
        expected: str | None = None,
        if_match: IfMatch = None,
    ) -> ChangedThreshold:
        """Store the proposed threshold with its version. ``expected``: the id of the proposal that was confirmed.

        Raises NotFound, LabelCorrupt, PreconditionFailed, FeedbackConflict (there is no other threshold to apply).
        """
        label = vocabulary.store.get(label_id)
        check_match(label, if_match)
        proposal = self._proposal(vocabulary, label, target_precision)
        if expected is not None and proposal.id != expected:
            raise PreconditionFailed("The proposal has changed since it was read; read it again")
        if proposal.threshold is None:
            raise FeedbackConflict(f"The judgements give no threshold: {proposal.status}")
        return self._apply(vocabulary, proposal, client)

    def revert(
        self, vocabulary: Vocabulary, label_id: str, client: str, *, if_match: IfMatch = None
    ) -> ChangedThreshold:
        """Restore the threshold from before the newest applied one that was not reverted yet.

        Raises NotFound, LabelCorrupt, PreconditionFailed, FeedbackConflict (there is none, or the threshold was changed
        since).
        """
        label = vocabulary.store.get(label_id)
        check_match(label, if_match)
        last = _last_fit(self._store.versions(vocabulary.namespace, label_id))
        if last is None:
            raise FeedbackConflict("No fitted threshold is left to revert")
        if label.threshold != last.threshold:
            raise FeedbackConflict("The threshold was changed after it was fitted; change it with PATCH /labels")
        scale = Scale.of(vocabulary, label)
        version = _version(label, scale, client, last.threshold_before, kind="revert", reverts=last.id)
        return self._store_version(vocabulary, label, version)

    def versions(self, vocabulary: Vocabulary, label_id: str) -> list[ThresholdVersion]:
        """Newest first. Raises NotFound."""
        vocabulary.store.get(label_id)
        return self._store.versions(vocabulary.namespace, label_id)

    # --- internals

    def _proposal(self, vocabulary: Vocabulary, label: Label, target_precision: float | None) -> Proposal:
        last = _last_fit(self._store.versions(vocabulary.namespace, label.id))
        judgements = self._store.judgements(vocabulary.namespace, label.id)
        return propose(
            label,
            Scale.of(vocabulary, label),
            self._rescored(vocabulary, label, judgements),
            default_threshold=vocabulary.facts.default_threshold,
            min_judgements=self.min_judgements,
            target_precision=target_precision,
            applied=last if last is not None and last.threshold == label.threshold else None,
        )

    def _apply(self, vocabulary: Vocabulary, proposal: Proposal, client: str) -> ChangedThreshold:
        label, threshold = proposal.label, proposal.threshold
        assert threshold is not None
        if label.threshold == threshold.value:
            raise FeedbackConflict("The label has this threshold already")
        version = _version(label, proposal.scale, client, threshold.value, kind="fit", fit=_evidence(proposal))
        return self._store_version(vocabulary, label, version)

    def _store_version(self, vocabulary: Vocabulary, label: Label, version: ThresholdVersion) -> ChangedThreshold:
        changed = vocabulary.labeler.update(
            label.id,
            LabelChanges(threshold=version.threshold),
            if_match=[etag_of(label)],  # so that ``threshold_before`` is true
            also=self._store.version_writer(vocabulary.namespace, version),
        )
        return ChangedThreshold(version, changed.revision)

    def _applied_automatically(self, vocabulary: Vocabulary, label_ids: Sequence[str]) -> list[ThresholdVersion]:
        """Of labels whose evidence suffices and whose threshold was not set or restored by hand."""
        applied = []
        deadline = time.monotonic() + _AUTOMATIC_SECONDS
        for label_id in label_ids:
            if time.monotonic() > deadline:
                break
            try:
                proposal = self.proposal(vocabulary, label_id)
                versions = self._store.versions(vocabulary.namespace, label_id)
                is_reverted = bool(versions) and versions[0].kind == "revert"
                is_own = proposal.label.threshold is None or proposal.applied is not None
                if proposal.is_beyond_uncertainty and is_own and not is_reverted:
                    applied.append(self._apply(vocabulary, proposal, AUTOMATIC).version)
            except (PreconditionFailed, FeedbackConflict, NotFound):
                continue  # another replica has applied it, or the label has changed: the next judgement tries again
            except VidlexError as error:
                _log.warning("threshold_not_applied", label_id=label_id, code=error.code)  # the judgements are stored
        return applied

    def _resolved(
        self, vocabulary: Vocabulary, new: Sequence[NewJudgement], client: str, pointer: str
    ) -> tuple[list[Judgement], list[Label]]:
        ids = list(dict.fromkeys(item.label_id for item in new if item.label_id is not None))
        names = list(dict.fromkeys(item.label for item in new if item.label is not None))
        by_id = {label.id: label for label in vocabulary.store.get_many(ids)} if ids else {}
        by_name = dict(zip(names, vocabulary.store.find_many(names), strict=True))
        video_ids = list(dict.fromkeys(item.video_id for item in new if item.video_id is not None))
        kept = {} if self._videos is None or not video_ids else self._kept(self._videos, vocabulary, video_ids)
        problems: list[dict[str, str]] = []
        judgements: list[Judgement] = []
        labels: dict[str, Label] = {}
        now_ms = time.time_ns() // 1_000_000
        for i, item in enumerate(new):
            label = by_name.get(item.label) if item.label is not None else by_id.get(item.label_id or "")
            sha256 = item.sha256 if item.video_id is None else kept.get(item.video_id)
            if label is None:
                member = "label_id" if item.label is None else "label"
                problems.append({"pointer": f"{pointer.format(i)}/{member}", "detail": "there is no such label"})
            if sha256 is None:
                problems.append({"pointer": f"{pointer.format(i)}/video_id", "detail": "no such video is kept"})
            if label is not None and sha256 is not None:
                labels[label.id] = label
                judgements.append(_judgement(item, label, sha256.lower(), client, now_ms))
        if problems:
            raise InvalidParameter("Some judgements name what does not exist", errors=problems[:_MAX_PROBLEMS])
        return judgements, list(labels.values())

    @staticmethod
    def _kept(videos: KeptVideos, vocabulary: Vocabulary, video_ids: Sequence[str]) -> dict[str, str]:
        return {video.id: video.sha256 for video in videos.get_many(vocabulary.namespace, video_ids)}

    def _with_scores(self, vocabulary: Vocabulary, judgements: Sequence[Judgement]) -> list[Judgement]:
        """Scores from kept features replace those that clients saw."""
        found = self._kept_scores(vocabulary, judgements)
        return [_scored(judgement, found.get(judgement.id), vocabulary) for judgement in judgements]

    def _rescored(self, vocabulary: Vocabulary, label: Label, judgements: Sequence[Judgement]) -> list[Judgement]:
        """With scores of the present model and calibration where they can be computed."""
        scale = Scale.of(vocabulary, label)
        by_id: dict[str, Judgement] = {}
        old: list[Judgement] = []
        for judgement in judgements:
            key = judgement.id, scale.fingerprint, scale.calibration
            with self._scores_lock:
                score = self._scores.get(key)
            if scale.is_of(judgement) or judgement.video_id is None or judgement.label_name != label.name:
                by_id[judgement.id] = judgement
            elif score is not None:
                by_id[judgement.id] = _scored(judgement, KeptScore(score, scale.calibration), vocabulary)
            else:
                old.append(judgement)
        found = self._kept_scores(vocabulary, old)
        with self._scores_lock:
            for judgement_id, kept in found.items():
                self._scores[judgement_id, scale.fingerprint, kept.calibration] = kept.score
        by_id |= {judgement.id: _scored(judgement, found.get(judgement.id), vocabulary) for judgement in old}
        return [by_id[judgement.id] for judgement in judgements]

    def _kept_scores(self, vocabulary: Vocabulary, judgements: Sequence[Judgement]) -> dict[str, KeptScore]:
        return {} if self._videos is None or not judgements else kept_scores(self._videos, vocabulary, judgements)


def _judgement(item: NewJudgement, label: Label, sha256: str, client: str, now_ms: int) -> Judgement:
    is_scored = item.score is not None
    return Judgement(
        id=new_id(JUDGEMENT_PREFIX),
        label_id=label.id,
        label_name=label.name,
        sha256=sha256,
        right=item.right,
        client=client,
        created_at_ms=now_ms,
        video_id=item.video_id,
        start_ms=item.start_ms,
        end_ms=item.end_ms,
        score=item.score,
        scored_by="client" if is_scored else None,
        fingerprint=item.fingerprint if is_scored else None,
        calibration=item.calibration if is_scored else None,
        note=item.note,
        source=item.source,
    )


def _scored(judgement: Judgement, kept: KeptScore | None, vocabulary: Vocabulary) -> Judgement:
    if kept is None:
        return judgement
    return replace(
        judgement,
        score=kept.score,
        scored_by="service",
        fingerprint=vocabulary.facts.fingerprint,
        calibration=kept.calibration,
    )


def _last_fit(versions: Sequence[ThresholdVersion]) -> ThresholdVersion | None:
    """The newest fitted threshold that was not reverted."""
    reverted = {version.reverts for version in versions}
    return next((v for v in versions if v.kind == "fit" and v.id not in reverted), None)


def _version(
    label: Label,
    scale: Scale,
    client: str,
    threshold: float | None,
    **more: Any,
) -> ThresholdVersion:
    return ThresholdVersion(
        id=new_id(VERSION_PREFIX),
        label_id=label.id,
        label_name=label.name,
        threshold_before=label.threshold,
        threshold=threshold,
        fingerprint=scale.fingerprint,
        calibration=scale.calibration,
        client=client,
        created_at_ms=time.time_ns() // 1_000_000,
        **more,
    )


def _evidence(proposal: Proposal) -> dict[str, Any]:
    """What a version keeps of the fit, as JSON."""
    fit, threshold = proposal.fit, proposal.threshold
    assert fit is not None and threshold is not None
    return {
        "slope": fit.slope,
        "intercept": fit.intercept,
        "low": threshold.low,
        "high": threshold.high,
        "num_judgements": proposal.counts.num_usable,
        "num_right": proposal.counts.num_right,
        "num_wrong": proposal.counts.num_wrong,
        "target_precision": proposal.target_precision,
        "before": None if proposal.before is None else asdict(proposal.before),
        "after": None if proposal.after is None else asdict(proposal.after),
    }

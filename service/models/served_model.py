"""A loaded model with its engine, and each namespace's vocabulary encoded by it.

A request acquires one Vocabulary and uses nothing else, so its response comes from one encoder and one namespace, even
if models are loaded, activated or dropped at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.classifier import Classifier
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.engine.engine import Engine
from vidlex.service.errors import ModelLoading, RevisionNotReached
from vidlex.service.labels.index.approximate import ApproximateIndexBuilder
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.model_pointer import ModelName
from vidlex.service.models.applied_calibration import to_apply
from vidlex.service.models.namespace_slots import NamespaceSlots
from vidlex.service.registration.backfill import Backfill
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.registration.labeler import Labeler
from vidlex.service.sharing.requester import BACKGROUND

_log = structlog.get_logger("vidlex.models")


@dataclass(frozen=True)
class ModelFacts:
    id: str
    fingerprint: str
    dim: int
    geometry: FrameGeometry
    num_frames: int
    scorer: Scorer
    default_threshold: float
    # Such as ``fast bfloat16``; empty where there is no choice.
    encoder: str = ""
    calibration: DefaultCalibration | None = None

    @classmethod
    def of(cls, classifier: Classifier) -> ModelFacts:
        return cls(
            classifier.id,
            classifier.fingerprint,
            classifier.dim,
            classifier.geometry,
            classifier.num_frames,
            classifier.scorer,
            classifier.default_threshold,
            str(classifier.info().get("encoder", "")),
            classifier.calibration,
        )

    def threshold_of(self, label: IndexedLabel) -> float:
        return self.default_threshold if label.threshold is None else label.threshold


@dataclass(frozen=True, eq=False)
class Vocabulary:
    namespace: str
    facts: ModelFacts
    engine: Engine
    store: LabelStore
    index: LabelIndex
    sync: IndexSync
    labeler: Labeler
    # Call once per ``acquire``; nothing is closed while the vocabulary is in use.
    release: Callable[[], None] = lambda: None

    def await_revision(self, min_revision: int | None, timeout_seconds: float) -> None:
        """Wait until the index contains all writes up to ``min_revision``.

        Raises RevisionNotReached (at once if the store itself has not reached it), and StoreUnavailable.
        """
        if min_revision is None or self.sync.revision >= min_revision:
            return
        is_indexed = self.store.revision() >= min_revision and self.sync.wait_for_revision(
            min_revision, max(0.0, timeout_seconds)
        )
        if not is_indexed:
            raise self.revision_not_reached(self.sync.revision)

    @staticmethod
    def revision_not_reached(revision: int) -> RevisionNotReached:
        return RevisionNotReached(
            f"The vocabulary is at revision {revision} here; ask again in a moment", current_revision=revision
        )


@dataclass(frozen=True)
class ServedLimits:
    max_namespaces: int = 64  # open at the same time
    label_timeout_seconds: float = 900.0
    candidate_cache_bytes: int = 64 * 2**20
    storage: Storage = "float32"
    approximate: bool = False


class ModelClosed(ModelLoading):
    """The model was unloaded. Another one is served, unless the service is stopping."""


OnEncoded = Callable[["ServedModel", str, Sequence[IndexedLabel]], None]


class ServedModel:
    """``start`` first, ``close`` last. Thread-safe.

    ``open_store(namespace)`` returns the namespace's LabelStore without contacting the server.
    """

    def __init__(
        self,
        classifier: Classifier,
        engine: Engine,
        open_store: Callable[[str], LabelStore],
        label_cache: LabelCache,
        limits: ServedLimits = ServedLimits(),
        *,
        spec: str = "",
    ) -> None:
        self.facts = ModelFacts.of(classifier)
        self.name = ModelName(spec or self.facts.id, self.facts.id, self.facts.fingerprint)
        # Called with labels that now lack the vectors of other models.
        self.on_encoded: OnEncoded = lambda model, namespace, labels: None
        self.engine = engine
        self.backfill = Backfill()
        self.open_store = open_store
        self._label_cache = label_cache
        self._candidate_cache = CandidateCache(limits.candidate_cache_bytes)
        self._device = classifier.device
        self._limits = limits
        self._slots = NamespaceSlots[Vocabulary](limits.max_namespaces)

    def start(self) -> None:
        self.engine.start()
        self.backfill.start()

    def close(self) -> None:
        # Does not wait for requests in progress: see ``num_users``.
        slots = self._slots.close()
        self.backfill.close()
        for slot in slots:
            with slot.opening:
                if slot.opened is not None:
                    slot.opened.sync.close()
        self.engine.close()

    # --- vocabularies

    def acquire(self, namespace: str, client: str = BACKGROUND) -> Vocabulary:
        """The namespace's vocabulary; ``release`` it after use. Blocks while it is loaded.

        Raises StoreUnavailable, Overloaded or ShareExceeded if too many namespaces are in use, ModelClosed, ValueError
        for an invalid name.
        """
        entered = self._slots.enter(namespace, client)
        if entered is None:
            raise ModelClosed("The model is being unloaded")
        slot, evicted = entered
        if evicted is not None:
            evicted.sync.close()
        try:
            with slot.opening:
                if slot.opened is None:
                    slot.opened = self._open(namespace)
                return self._of_client(slot.opened, client)
        except BaseException:
            self._slots.leave(namespace, client)
            raise

    def try_acquire(self, namespace: str, client: str = BACKGROUND) -> Vocabulary | None:
        """As ``acquire`` without blocking; None if that is not possible."""
        vocabulary = self._slots.try_enter(namespace, client)
        return None if vocabulary is None else self._of_client(vocabulary, client)

    def _of_client(self, vocabulary: Vocabulary, client: str) -> Vocabulary:
        return replace(vocabulary, release=partial(self._slots.leave, vocabulary.namespace, client))

    def pin(self, namespace: str) -> Vocabulary:
        """Open the namespace until the model is closed. The vocabulary must not be released."""
        vocabulary = self.acquire(namespace)
        self._slots.pin(namespace)
        vocabulary.release()
        return vocabulary

    def encode_stored(self, namespace: str, labels: Sequence[IndexedLabel]) -> None:
        vocabulary = self.acquire(namespace)
        try:
            vocabulary.labeler.encode_stored(labels)
            vocabulary.labeler.wait_for_index()
        finally:
            vocabulary.release()

    def missing_ids(self, vocabulary: Vocabulary) -> set[str]:
        missing = vocabulary.sync.missing_ids
        return missing - self.backfill.refused_ids(vocabulary.namespace) if missing else set()

    def pending_ids(self, vocabulary: Vocabulary) -> set[str]:
        missing = self.missing_ids(vocabulary)
        return missing - self.backfill.failed_ids(vocabulary.namespace) if missing else set()

    def open_vocabularies(self) -> list[Vocabulary]:
        return self._slots.opened()

    @property
    def num_users(self) -> int:
        return self._slots.num_users

    def _open(self, namespace: str) -> Vocabulary:
        started = time.monotonic()
        store = self.open_store(namespace)
        index = LabelIndex(
            self.facts.dim,
            self.facts.fingerprint,
            storage=self._limits.storage,
            approximate_builder=ApproximateIndexBuilder() if self._limits.approximate else None,
        )
        sync = IndexSync(
            store,
            index,
            on_missing=lambda labels: self.backfill.add(labeler, labels),
            read_calibration=partial(to_apply, dim=self.facts.dim),
        )
        labeler = Labeler(
            self.engine,
            store,
            sync,
            self._label_cache,
            self._candidate_cache,
            fingerprint=self.facts.fingerprint,
            device=self._device,
            timeout_seconds=self._limits.label_timeout_seconds,
            on_encoded=lambda labels: self.on_encoded(self, namespace, labels),
        )
        sync.load()
        if sync.num_missing:
            _log.warning(
                "encoding_stored_labels",
                reason="the labels have no vector of this model",
                namespace=namespace,
                labels=sync.num_missing,
                fingerprint=self.facts.fingerprint,
                other_fingerprints=[f for f in store.generations() if f != self.facts.fingerprint],
            )
        sync.start()
        seconds = round(time.monotonic() - started, 2)
        _log.info("namespace_opened", namespace=namespace, labels=len(index), revision=index.revision, seconds=seconds)
        return Vocabulary(namespace, self.facts, self.engine, store, index, sync, labeler)

"""A loaded model as the requests see it, with the labels of each namespace in its vectors.

A request takes one Vocabulary at its start and uses nothing else to its end, so its answer comes from one encoder and
one namespace, whatever is loaded, activated or dropped meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from vidlex.model.classifier import Classifier
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.engine.engine import Engine
from vidlex.service.errors import ModelLoading, Overloaded, RevisionNotReached
from vidlex.service.labels.index.approximate import Approximation
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.model_pointer import ModelName
from vidlex.service.labels.store.records import Label
from vidlex.service.registration.backfill import Filler
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.registration.labeler import Labeler

log = structlog.get_logger("vidlex.models")


@dataclass(frozen=True)
class ModelFacts:
    """What does not change while a classifier is served; safe to read from any thread."""

    id: str
    fingerprint: str
    dim: int
    geometry: FrameGeometry
    num_frames: int
    scorer: Scorer
    default_threshold: float
    encoder: str = ""
    """How the video encoder runs, such as ``fast bfloat16``; empty where there is no choice."""

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
        )


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The labels of one namespace in the vectors of one model: all that a request uses of either."""

    namespace: str
    facts: ModelFacts
    engine: Engine
    store: LabelStore
    index: LabelIndex
    sync: IndexSync
    labeler: Labeler
    give_back: Callable[[], None]
    """Once for each ``take``: nothing of it may be closed while a request uses it."""

    def await_revision(self, min_revision: int | None, timeout_seconds: float) -> None:
        """Wait until the index holds all steps up to ``min_revision``.

        Raises RevisionNotReached: at once when the store itself has not come so far, since then no waiting helps.
        Raises StoreUnavailable where only the store could tell.
        """
        if min_revision is None or self.sync.revision >= min_revision:
            return
        if self.store.revision() < min_revision or not self.sync.caught_up(min_revision, max(0.0, timeout_seconds)):
            raise self.is_behind(self.sync.revision)

    @staticmethod
    def is_behind(revision: int) -> RevisionNotReached:
        return RevisionNotReached(
            f"The vocabulary is at revision {revision} here; ask again in a moment", current_revision=revision
        )


@dataclass(frozen=True)
class ServedLimits:
    max_namespaces: int = 64
    """Open at the same time; the one that was not used for longest makes room."""
    label_timeout_seconds: float = 900.0
    candidate_cache_bytes: int = 64 * 2**20
    storage: Storage = "float32"
    approximate: bool = False
    """Whether large vocabularies are searched approximately."""


@dataclass(eq=False)
class _Slot:
    """A place for one open namespace. ``opening`` is held while it is loaded; the rest under ServedModel's lock."""

    opening: threading.Lock
    vocabulary: Vocabulary | None = None
    num_users: int = 0
    used_at: float = 0.0


class ModelClosed(ModelLoading):
    """The model was unloaded; another one serves, unless the service is stopping."""


OnWritten = Callable[["ServedModel", str, Sequence[Label]], None]


class ServedModel:
    """``start`` first, ``close`` last. Thread-safe."""

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
        """``open_store(namespace)`` gives the one LabelStore of a namespace; it must not talk to the server."""
        self.facts = ModelFacts.of(classifier)
        self.name = ModelName(spec or self.facts.id, self.facts.id, self.facts.fingerprint)
        self.on_written: OnWritten | None = None
        """``on_written(self, namespace, labels)``: labels whose vectors of other models are now missing."""
        self.engine = engine
        self.filler = Filler()
        self._open_store = open_store
        self._label_cache = label_cache
        self._candidates = CandidateCache(limits.candidate_cache_bytes)
        self._device = classifier.device
        self._limits = limits
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._kept: set[str] = set()
        self._closing = False

    def start(self) -> None:
        self.engine.start()
        self.filler.start()

    def close(self) -> None:
        """Ends everything, also for requests at work: see ``num_users``."""
        with self._lock:
            self._closing = True
            slots = list(self._slots.values())
        self.filler.close()
        for slot in slots:
            with slot.opening:
                if slot.vocabulary is not None:
                    slot.vocabulary.sync.close()
        self.engine.close()

    # --- vocabularies

    def take(self, namespace: str) -> Vocabulary:
        """The namespace's vocabulary, for a request; ``give_back`` it. Blocks while it is loaded for the first time.

        A name that nobody has written to is an empty vocabulary and leaves no trace in the store.
        Raises StoreUnavailable, Overloaded when too many namespaces are in use, ValueError for a bad name.
        """
        slot, evicted = self._enter(namespace)
        if evicted is not None:
            evicted.sync.close()
        try:
            with slot.opening:
                if slot.vocabulary is None:
                    slot.vocabulary = self._open(namespace)
                return slot.vocabulary
        except BaseException:
            self._leave(namespace)
            raise

    def take_open(self, namespace: str) -> Vocabulary | None:
        """As ``take`` if the namespace is open already, else None. Never blocks: for the event loop."""
        with self._lock:
            slot = self._slots.get(namespace)
            if slot is None or slot.vocabulary is None or self._closing:
                return None
            slot.num_users += 1
            slot.used_at = time.monotonic()
            return slot.vocabulary

    def keep(self, namespace: str) -> Vocabulary:
        """``take`` a vocabulary that stays open as long as the model."""
        vocabulary = self.take(namespace)
        with self._lock:
            self._kept.add(namespace)
        vocabulary.give_back()
        return vocabulary

    def complete(self, namespace: str, labels: Sequence[Label]) -> None:
        """Give stored labels this model's vectors and wait until its own index has them. Raises VidlexError."""
        vocabulary = self.take(namespace)
        try:
            vocabulary.labeler.encode_stored(labels)
            vocabulary.labeler.catch_up()
        finally:
            vocabulary.give_back()

    def store_of(self, namespace: str) -> LabelStore:
        return self._open_store(namespace)

    def missing(self, vocabulary: Vocabulary) -> set[str]:
        """Ids of labels that this model has yet to encode; those that it cannot encode are not among them."""
        missing = vocabulary.sync.missing
        return missing - self.filler.refused(vocabulary.namespace) if missing else set()

    def awaited(self, vocabulary: Vocabulary) -> set[str]:
        """Those of the missing that are being encoded: all but those on which the encoder fails."""
        missing = self.missing(vocabulary)
        return missing - self.filler.given_up(vocabulary.namespace) if missing else set()

    def open_vocabularies(self) -> list[Vocabulary]:
        with self._lock:
            return [slot.vocabulary for slot in self._slots.values() if slot.vocabulary is not None]

    @property
    def num_users(self) -> int:
        """Requests at work."""
        with self._lock:
            return sum(slot.num_users for slot in self._slots.values())

    # --- inside

    def _enter(self, namespace: str) -> tuple[_Slot, Vocabulary | None]:
        """The namespace's slot with one more user, and the vocabulary that had to make room, to be closed."""
        with self._lock:
            if self._closing:
                raise ModelClosed("The model is being unloaded")
            evicted = None
            slot = self._slots.get(namespace)
            if slot is None:
                evicted = self._make_room()
                slot = self._slots[namespace] = _Slot(threading.Lock())
            slot.num_users += 1
            slot.used_at = time.monotonic()
            return slot, evicted

    def _make_room(self) -> Vocabulary | None:
        if len(self._slots) < self._limits.max_namespaces:
            return None
        idle = [(slot.used_at, name) for name, slot in self._slots.items() if not slot.num_users]
        idle = [(used_at, name) for used_at, name in idle if name not in self._kept]
        if not idle:
            raise Overloaded("Too many namespaces are in use at the same time")
        return self._slots.pop(min(idle)[1]).vocabulary

    def _leave(self, namespace: str) -> None:
        with self._lock:
            slot = self._slots[namespace]
            slot.num_users -= 1
            if not slot.num_users and slot.vocabulary is None:
                del self._slots[namespace]

    def _tell(self, namespace: str, labels: Sequence[Label]) -> None:
        if self.on_written is not None:
            self.on_written(self, namespace, labels)

    def _open(self, namespace: str) -> Vocabulary:
        started = time.monotonic()
        store = self._open_store(namespace)
        index = LabelIndex(
            self.facts.dim,
            self.facts.fingerprint,
            storage=self._limits.storage,
            approximation=Approximation() if self._limits.approximate else None,
        )
        sync = IndexSync(store, index, on_missing=lambda labels: self.filler.add(labeler, labels))
        labeler = Labeler(
            self.engine,
            store,
            sync,
            self.facts.fingerprint,
            self._label_cache.within(namespace, self.facts.fingerprint, self._device),
            candidates=self._candidates,
            timeout_seconds=self._limits.label_timeout_seconds,
            on_written=lambda labels: self._tell(namespace, labels),
        )
        sync.load()
        if sync.num_missing:
            log.warning(
                "encoding_stored_labels",
                reason="this model has not encoded them; vectors of another model are never used",
                namespace=namespace,
                labels=sync.num_missing,
                fingerprint=self.facts.fingerprint,
                other_fingerprints=[f for f in store.generations() if f != self.facts.fingerprint],
            )
        sync.start()
        seconds = round(time.monotonic() - started, 2)
        log.info("namespace_open", namespace=namespace, labels=len(index), revision=index.revision, seconds=seconds)
        return Vocabulary(
            namespace, self.facts, self.engine, store, index, sync, labeler, give_back=partial(self._leave, namespace)
        )

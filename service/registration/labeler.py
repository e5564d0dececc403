"""From a label's text to a stored label with its vector, and back for changes. Blocks; call it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.service.engine.device_worker import LabelResult
from vidlex.service.engine.engine import Engine
from vidlex.service.errors import LabelExists, LabelTextInvalid, VidlexError
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.store.idempotency import Ticket
from vidlex.service.labels.store.label_store import IfMatch, LabelStore, check_match
from vidlex.service.labels.store.names import display_name
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel, Unset, clean
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import KeptLabels
from vidlex.service.tracing import stage

log = structlog.get_logger("vidlex.labels")

_SYNC_SECONDS = 5.0
"""How long a write waits until this replica's index has it. Later the follower brings it anyway."""


@dataclass(frozen=True)
class Registered:
    label: Label
    created: bool


@dataclass(frozen=True)
class Unencoded:
    """Stored labels that got no vector."""

    refused: list[Label]
    """The encoder cannot take their text."""
    failed: list[Label]
    """It failed on them, and may not another time."""


class Labeler:
    """Thread-safe. Every method raises StoreUnavailable when the store does not answer."""

    def __init__(
        self,
        engine: Engine,
        store: LabelStore,
        sync: IndexSync,
        fingerprint: str,
        kept: KeptLabels,
        *,
        candidates: CandidateCache,
        timeout_seconds: float = 900.0,
        on_written: Callable[[Sequence[Label]], None] = lambda _: None,
    ) -> None:
        """``on_written(labels)`` is told of labels that have just got their only vector, before they are answered."""
        self.namespace = store.namespace
        self._engine = engine
        self._store = store
        self._sync = sync
        self._fingerprint = fingerprint
        self._kept = kept
        self._candidates = candidates
        self._timeout_seconds = timeout_seconds
        self._on_written = on_written

    def register(
        self,
        items: Sequence[NewLabel],
        *,
        return_existing: bool = False,
        ticket: Ticket | None = None,
        max_labels: int | None = None,
    ) -> list[Registered | VidlexError]:
        """One result for each item, in order: one bad item fails alone.

        With ``return_existing`` a name that a label has already (as name or alias) gives that label, unchanged.
        ``ticket`` is of the request that the items came with: what an earlier try of it has created is not tried again.
        ``max_labels`` is the requester's own quota, under the namespace's.
        Raises Overloaded when the whole request cannot be taken, IdempotencyInFlight when the ticket was lost.
        """
        created = {} if ticket is None else ticket.created
        results: dict[int, Registered | VidlexError] = {i: Registered(x, created=True) for i, x in created.items()}
        cleaned: dict[int, NewLabel] = {}
        for i, item in enumerate(items):
            if i not in results:
                try:
                    cleaned[i] = clean(item)
                except VidlexError as error:
                    results[i] = error
        # Looked up before the encoder works for them; add_many decides in the end.
        existing = self._store.find_many([item.name for item in cleaned.values()])
        wanted: list[tuple[int, NewLabel]] = []
        for (i, item), owner in zip(cleaned.items(), existing, strict=True):
            if owner is None:
                wanted.append((i, item))
            else:
                results[i] = _existing(owner, return_existing)
        names = list(dict.fromkeys(item.name for _, item in wanted))
        vectors = dict(zip(names, self.encode(names), strict=True))
        ready: list[tuple[int, NewLabel, NDArray[np.float32]]] = []
        for i, item in wanted:
            vector = vectors[item.name]
            if isinstance(vector, VidlexError):
                results[i] = vector
            else:
                ready.append((i, item, vector))
        added = self._store.add_many(
            [(item, vector) for _, item, vector in ready],
            self._fingerprint,
            ticket=ticket,
            max_labels=max_labels,
            places=[i for i, _, _ in ready],
        )
        for (i, item, _), outcome in zip(ready, added, strict=True):
            results[i] = self._outcome(item, outcome, return_existing)
        registered = [r for r in results.values() if isinstance(r, Registered)]
        written = [r.label for r in registered if r.created]
        if written:
            self._on_written(written)
        self._catch_up(r.label.revision for r in registered)  # another replica may have written those that exist
        return [results[i] for i in range(len(items))]

    def _outcome(self, item: NewLabel, outcome: Label | VidlexError, return_existing: bool) -> Registered | VidlexError:
        if isinstance(outcome, Label):
            return Registered(outcome, created=True)
        if isinstance(outcome, LabelExists) and return_existing:
            existing = self._store.find(item.name)  # None when one of its aliases is what is taken
            if existing is not None:
                return Registered(existing, created=False)
        return outcome

    def update(self, label_id: str, changes: LabelChanges, *, if_match: IfMatch = None) -> Label:
        """Only a name that reads differently is encoded anew. Raises NotFound, LabelExists, PreconditionFailed ..."""
        vector: NDArray[np.float32] | None = None
        old = self._store.get(label_id)
        check_match(old, if_match)  # before the encoder works for it; the store decides in the end
        if not isinstance(changes.name, Unset) and display_name(changes.name) != old.name:
            (result,) = self.encode([display_name(changes.name)])
            if isinstance(result, VidlexError):
                raise result
            vector = result
        try:
            label = self._store.update(
                label_id,
                changes,
                vector=vector,
                fingerprint=None if vector is None else self._fingerprint,
                if_match=if_match,
            )
        except ValueError:
            if vector is not None or isinstance(changes.name, Unset):
                raise
            return self.update(
                label_id, changes, if_match=if_match
            )  # another request renamed it since: now the name wants a vector
        if vector is not None:
            self._on_written([label])
        self._catch_up([label.revision])
        return label

    def remove(self, label_id: str, *, if_match: IfMatch = None) -> int:
        """Returns a revision of the vocabulary that no longer has the label. Raises NotFound, PreconditionFailed."""
        self._store.remove(label_id, if_match=if_match)
        revision = self._store.revision()
        self._catch_up([revision])
        return revision

    def candidates(self, names: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
        """Names to score once, without storing: their display names, without repeats, and vectors [n, D].

        Raises LabelTextInvalid or EncodeFailed with the place of the first bad name.
        """
        shown = []
        for i, name in enumerate(names):
            try:
                shown.append(display_name(name))
            except LabelTextInvalid as error:
                raise _at_candidate(error, i) from None
        unique = list(dict.fromkeys(shown))
        found: dict[str, LabelResult] = dict(self._candidates.get(self.namespace, unique))
        rest = [n for n in unique if n not in found]
        found.update(zip(rest, self.encode(rest), strict=True))
        vectors = []
        for name in unique:
            result = found[name]
            if isinstance(result, VidlexError):
                raise _at_candidate(result, shown.index(name))
            vectors.append(result)
        every = dict(zip(unique, vectors, strict=True))
        self._candidates.put(self.namespace, {name: every[name] for name in rest})
        return unique, np.stack(vectors)

    def encode(self, names: Sequence[str]) -> list[LabelResult]:
        """One result for each name as it is, in order: its vector [D] of this namespace's earlier work, or a new one.

        Raises what ``Engine.encode_labels`` raises, and gives what it gives.
        """
        found: dict[str, LabelResult] = dict(self._kept.get(names))
        rest = [name for name in dict.fromkeys(names) if name not in found]
        if not rest:
            return [found[name] for name in names]
        with stage("encode_labels", labels=len(rest)):
            new = dict(zip(rest, self._engine.encode_labels(rest, timeout_seconds=self._timeout_seconds), strict=True))
        self._kept.put({name: x for name, x in new.items() if not isinstance(x, VidlexError)})
        found.update(new)
        return [found[name] for name in names]

    def encode_stored(self, labels: Sequence[Label]) -> Unencoded:
        """Give stored labels the vectors of this encoder that they lack.

        A label whose text this encoder refuses stays stored, with the vectors it has of other encoders; one that was
        renamed or removed meanwhile is left alone. Raises Overloaded, or EncodeFailed when the engine is stopped.
        """
        results = self.encode([x.name for x in labels])
        rest = Unencoded([], [])
        vectors: dict[str, NDArray[np.float32]] = {}
        for label, result in zip(labels, results, strict=True):
            if isinstance(result, VidlexError):
                log.warning("label_not_encoded", label_id=label.id, name=label.name, code=result.code)
                (rest.refused if isinstance(result, LabelTextInvalid) else rest.failed).append(label)
            else:
                vectors[label.id] = result
        if vectors:
            self._store.put_vectors(self._fingerprint, vectors, names={x.id: x.name for x in labels})
        return rest

    def catch_up(self) -> None:
        """Wait a moment until this replica's index has all that is stored."""
        self._catch_up([self._store.revision()])

    def still_missing(self, labels: Sequence[Label]) -> list[Label]:
        """Those of the labels that nobody has encoded for this model meanwhile, another replica say."""
        missing = self._sync.missing
        return [label for label in labels if label.id in missing]

    def _catch_up(self, revisions: Iterable[int]) -> None:
        newest = max(revisions, default=0)
        if newest and not self._sync.caught_up(newest, _SYNC_SECONDS):
            log.warning("index_is_behind", revision=newest)


def _existing(label: Label, return_existing: bool) -> Registered | VidlexError:
    if return_existing:
        return Registered(label, created=False)
    return LabelExists("A label of this name exists", existing_id=label.id)


def _at_candidate(error: VidlexError, place: int) -> VidlexError:
    """The same error, saying which of the candidates it is about."""
    if not isinstance(error, LabelTextInvalid):
        return error
    detail = str(error)
    return LabelTextInvalid(detail, errors=[{"pointer": f"/candidate_labels/{place}", "detail": detail}])

"""Encodes label names and stores labels with their vectors. Blocking: call it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.service.engine.engine import Engine
from vidlex.service.engine.label_queue import LabelResult
from vidlex.service.errors import LabelExists, LabelTextInvalid, VidlexError
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.store.idempotency import IdempotentRequest
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_store import IfMatch, LabelStore, check_match
from vidlex.service.labels.store.names import display_name
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel, Unset, clean
from vidlex.service.labels.store.redis_types import RedisWrites
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.tracing import stage

_log = structlog.get_logger("vidlex.registration")

# Longest wait of a write for this replica's index; the index catches up in the background in any case.
_INDEX_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class RegisteredLabel:
    label: Label
    created: bool


@dataclass(frozen=True)
class EncodingFailures:
    refused: list[IndexedLabel]  # the encoder cannot encode their text
    failed: list[IndexedLabel]  # the encoder failed; a retry may succeed


class Labeler:
    """Of one namespace and one model. Thread-safe. Every method raises StoreUnavailable if the store is down.

    ``on_encoded(labels)`` is called before a write returns, with labels that have a vector of this model only.
    ``device`` is part of the label cache's key, because devices round differently.
    """

    def __init__(
        self,
        engine: Engine,
        store: LabelStore,
        sync: IndexSync,
        label_cache: LabelCache,
        candidate_cache: CandidateCache,
        *,
        fingerprint: str,
        device: str,
        timeout_seconds: float = 900.0,
        on_encoded: Callable[[Sequence[IndexedLabel]], None] = lambda _: None,
    ) -> None:
        self.namespace = store.namespace
        self._engine = engine
        self._store = store
        self._sync = sync
        self._label_cache = label_cache
        self._label_cache_scope = (store.namespace, fingerprint, device)
        self._candidate_cache = candidate_cache
        self._fingerprint = fingerprint
        self._timeout_seconds = timeout_seconds
        self._on_encoded = on_encoded

    def register(
        self,
        items: Sequence[NewLabel],
        *,
        return_existing: bool = False,
        idempotent_request: IdempotentRequest | None = None,
        max_labels: int | None = None,
        requester: Requester | None = None,
    ) -> list[RegisteredLabel | VidlexError]:
        """One result per item, in order; a bad item does not affect the others.

        With ``return_existing`` a name that is already a label's name or alias returns that label unchanged. Items that
        an earlier attempt of the request ``idempotent_request`` created are not created again. ``max_labels`` is the
        client's own quota, in addition to the namespace's.

        Raises what ``encode`` raises, then nothing was registered, and IdempotencyInFlight if the lease of the request
        was lost.
        """
        created = {} if idempotent_request is None else idempotent_request.created
        results: dict[int, RegisteredLabel | VidlexError] = {
            i: RegisteredLabel(reference.label(items[i]), created=True) for i, reference in created.items()
        }
        cleaned: dict[int, NewLabel] = {}
        for i, item in enumerate(items):
            if i not in results:
                try:
                    cleaned[i] = clean(item)
                except VidlexError as error:
                    results[i] = error
        # Existing names are not encoded; add_many makes the final decision.
        existing = self._store.find_many([item.name for item in cleaned.values()])
        new: dict[int, NewLabel] = {}
        for (i, item), label in zip(cleaned.items(), existing, strict=True):
            if label is None:
                new[i] = item
            elif return_existing:
                results[i] = RegisteredLabel(label, created=False)
            else:
                results[i] = LabelExists("A label of this name exists", existing_id=label.id)
        results |= self._add(new, return_existing, idempotent_request, max_labels, requester)
        registered = [r for r in results.values() if isinstance(r, RegisteredLabel)]
        new_labels = [IndexedLabel.of(r.label) for r in registered if r.created]
        if new_labels:
            self._on_encoded(new_labels)
        # Existing labels too: another replica may have written them a moment ago.
        self._wait_for_index(r.label.revision for r in registered)
        return [results[i] for i in range(len(items))]

    def _add(
        self,
        items: dict[int, NewLabel],  # by their position in the request
        return_existing: bool,
        idempotent_request: IdempotentRequest | None,
        max_labels: int | None,
        requester: Requester | None,
    ) -> dict[int, RegisteredLabel | VidlexError]:
        names = list(dict.fromkeys(item.name for item in items.values()))
        vectors = dict(zip(names, self.encode(names, requester), strict=True))
        results: dict[int, RegisteredLabel | VidlexError] = {}
        encoded: dict[int, tuple[NewLabel, NDArray[np.float32]]] = {}
        for i, item in items.items():
            vector = vectors[item.name]
            if isinstance(vector, VidlexError):
                results[i] = vector
            else:
                encoded[i] = (item, vector)
        outcomes = self._store.add_many(
            list(encoded.values()),
            self._fingerprint,
            idempotent_request=idempotent_request,
            max_labels=max_labels,
            indexes=list(encoded),
        )
        for (i, (item, _)), outcome in zip(encoded.items(), outcomes, strict=True):
            if isinstance(outcome, Label):
                results[i] = RegisteredLabel(outcome, created=True)
                continue
            results[i] = outcome
            if isinstance(outcome, LabelExists) and return_existing:
                existing = self._store.find(item.name)  # None if the conflict is one of the item's aliases
                if existing is not None:
                    results[i] = RegisteredLabel(existing, created=False)
        return results

    def update(
        self,
        label_id: str,
        changes: LabelChanges,
        *,
        if_match: IfMatch = None,
        requester: Requester | None = None,
        also: Callable[[RedisWrites], None] = lambda _: None,
    ) -> Label:
        """``also``: see ``LabelStore.update``."""
        vector: NDArray[np.float32] | None = None
        old = self._store.get(label_id)
        check_match(old, if_match)  # before encoding; the store makes the final decision
        if not isinstance(changes.name, Unset) and display_name(changes.name) != old.name:
            (result,) = self.encode([display_name(changes.name)], requester)
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
                also=also,
            )
        except ValueError:
            if vector is not None or isinstance(changes.name, Unset):
                raise
            # A concurrent request renamed the label, so that the requested name now needs a vector.
            return self.update(label_id, changes, if_match=if_match, requester=requester, also=also)
        if vector is not None:
            self._on_encoded([IndexedLabel.of(label)])
        self._wait_for_index([label.revision])
        return label

    def remove(self, label_id: str, *, if_match: IfMatch = None) -> int:
        """Returns a vocabulary revision without the label."""
        self._store.remove(label_id, if_match=if_match)
        revision = self._store.revision()
        self._wait_for_index([revision])
        return revision

    def candidates(
        self, names: Sequence[str], requester: Requester | None = None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """Display names without duplicates and their vectors [n, D], for names that are not stored.

        Raises LabelTextInvalid or EncodeFailed for the first bad name, and what ``encode`` raises.
        """
        display_names = []
        for i, name in enumerate(names):
            try:
                display_names.append(display_name(name))
            except LabelTextInvalid as error:
                raise _at_candidate(error, i) from None
        unique = list(dict.fromkeys(display_names))
        vectors = self._candidate_cache.get(self.namespace, unique)
        uncached = [name for name in unique if name not in vectors]
        encoded: dict[str, NDArray[np.float32]] = {}
        for name, result in zip(uncached, self.encode(uncached, requester), strict=True):
            if isinstance(result, VidlexError):
                raise _at_candidate(result, display_names.index(name))
            encoded[name] = result
        self._candidate_cache.put(self.namespace, encoded)
        vectors |= encoded
        return unique, np.stack([vectors[name] for name in unique])

    def encode(self, names: Sequence[str], requester: Requester | None = None) -> list[LabelResult]:
        """One result per name, in order: its vector [D] or an error. Raises what ``Engine.encode_labels`` raises.

        Names that were encoded before such an error are in the label cache, so that a repeated request goes on there.
        """
        results: dict[str, LabelResult] = dict(self._label_cache.get(self._label_cache_scope, names))
        uncached = [name for name in dict.fromkeys(names) if name not in results]
        if uncached:
            with stage("encode_labels", labels=len(uncached)):
                encoded = self._engine.encode_labels(
                    uncached,
                    requester=requester,
                    timeout_seconds=self._timeout_seconds,
                    on_abandoned=lambda done: self._cache(uncached, done),
                )
            self._cache(uncached, encoded)
            results |= dict(zip(uncached, encoded, strict=True))
        return [results[name] for name in names]

    def _cache(self, names: Sequence[str], results: Sequence[LabelResult | None]) -> None:
        vectors = {name: x for name, x in zip(names, results, strict=True) if isinstance(x, np.ndarray)}
        self._label_cache.put(self._label_cache_scope, vectors)

    def encode_stored(self, labels: Sequence[IndexedLabel]) -> EncodingFailures:
        """Store this model's vectors of labels that lack them; skips labels renamed or removed in the meantime.

        Raises Overloaded, or EncodeFailed if the engine is stopped.
        """
        failures = EncodingFailures([], [])
        vectors: dict[str, NDArray[np.float32]] = {}
        for label, result in zip(labels, self.encode([x.name for x in labels]), strict=True):
            if isinstance(result, VidlexError):
                _log.warning("label_not_encoded", label_id=label.id, name=label.name, code=result.code)
                (failures.refused if isinstance(result, LabelTextInvalid) else failures.failed).append(label)
            else:
                vectors[label.id] = result
        if vectors:
            self._store.put_vectors(self._fingerprint, vectors, names={x.id: x.name for x in labels})
        return failures

    def wait_for_index(self) -> None:
        self._wait_for_index([self._store.revision()])

    def without_vector(self, labels: Sequence[IndexedLabel]) -> list[IndexedLabel]:
        missing = self._sync.missing_ids  # another replica may have encoded some
        return [label for label in labels if label.id in missing]

    def _wait_for_index(self, revisions: Iterable[int]) -> None:
        newest = max(revisions, default=0)
        if newest and not self._sync.wait_for_revision(newest, _INDEX_WAIT_SECONDS):
            _log.warning("index_lags", revision=newest)


def _at_candidate(error: VidlexError, position: int) -> VidlexError:
    if not isinstance(error, LabelTextInvalid):
        return error
    detail = str(error)
    return LabelTextInvalid(detail, errors=[{"pointer": f"/candidate_labels/{position}", "detail": detail}])

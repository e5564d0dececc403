"""The durable labels of one namespace, with one vector per encoder, in Redis or Valkey.

After normalisation a text belongs to at most one label of the namespace, as its name or as an alias; a write that would
break this raises LabelExists. Every write is one atomic step of transaction.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service import audit
from vidlex.service.bounds import DEFAULT_MAX_LABELS, DEFAULT_MAX_NAMESPACE_BYTES
from vidlex.service.errors import (
    EncodeFailed,
    PreconditionFailed,
    VidlexError,
)
from vidlex.service.labels.store.calibrations import Calibration, calibration_to_json
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.idempotency import IdempotencyStore, IdempotentRequest
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.label_size import label_bytes
from vidlex.service.labels.store.new_labels import AddResult, NewItem, Room, exists, make_labels
from vidlex.service.labels.store.parents import check_no_cycle, parent_ids, parent_texts, resolve_parents
from vidlex.service.labels.store.records import (
    Label,
    LabelChanges,
    NewLabel,
    apply_changes,
    clean,
    client_fields,
    etag_of,
    make_label,
    normalized_names,
)
from vidlex.service.labels.store.redis_keys import random_token
from vidlex.service.labels.store.redis_types import Guard, RedisPipeline, RedisReads, RedisWrites, accept_any
from vidlex.service.labels.store.transaction import NoStep, Step, StepRunner
from vidlex.service.labels.store.vectors import check_vector, encode_vector
from vidlex.service.labels.store.writes import LabelWrites

STEP_LABELS = 500  # bounds how long one step blocks the server

AddResults = list[AddResult]
Ids = list[str]
IfMatch = Collection[str] | None  # entity tags, one of which must be the label's; None: no condition


class LabelStore(LabelReader):
    """Thread-safe. Every method raises StoreUnavailable.

    ``max_labels`` and ``max_bytes`` (see label_size.py) bound the namespace.
    ``max_changes`` is the length of the change stream: a replica that is further behind reloads everything.
    ``deadline_seconds`` bounds a write's wait for other writers. ``guard`` may refuse writes to the server.
    """

    def __init__(
        self,
        client: redis.Redis,
        namespace: str = "default",
        *,
        max_changes: int = 10_000,
        deadline_seconds: float = 10.0,
        max_labels: int = DEFAULT_MAX_LABELS,
        max_bytes: int = DEFAULT_MAX_NAMESPACE_BYTES,
        guard: Guard = accept_any,
    ) -> None:
        super().__init__(client, namespace, guard=guard)
        self.idempotency = IdempotencyStore(client, self._keys)
        self._max_labels = max_labels
        self._max_bytes = max_bytes
        self._steps = StepRunner(
            client, self._keys, max_changes=max_changes, deadline_seconds=deadline_seconds, guard=guard
        )

    def add_many(
        self,
        items: Sequence[tuple[NewLabel, NDArray[np.float32]]],
        fingerprint: str,
        *,
        max_labels: int | None = None,
        idempotent_request: IdempotentRequest | None = None,
        indexes: Sequence[int] | None = None,
    ) -> AddResults:
        """Store labels with their [D] vectors; returns a label or an error per item.

        Each chunk of 500 items is one step, in which an item may name another one as its parent. ``max_labels`` can
        only lower the namespace's quota. With ``idempotent_request`` the steps also record the created labels under
        their ``indexes`` in that request.

        Raises IdempotencyInFlight if the request's lease is lost, ValueError for a vector of another dimension.
        """
        quota = self._max_labels if max_labels is None else min(max_labels, self._max_labels)
        results: dict[int, AddResult] = {}
        ready: list[NewItem] = []
        for index, (new, vector) in zip(indexes or range(len(items)), items, strict=True):
            try:
                ready.append(NewItem(index, clean(new), check_vector(vector)))
            except VidlexError as error:
                results[index] = error
            except ValueError as error:
                results[index] = EncodeFailed("The encoder returned an invalid vector", internal=str(error))
        for start in range(0, len(ready), STEP_LABELS):
            chunk = ready[start : start + STEP_LABELS]
            added = self._add_step(chunk, fingerprint, quota, idempotent_request)
            results.update(zip((item.index for item in chunk), added, strict=True))
        return [results[index] for index in indexes or range(len(items))]

    def update(
        self,
        label_id: str,
        changes: LabelChanges,
        *,
        vector: NDArray[np.float32] | None = None,
        fingerprint: str | None = None,
        if_match: IfMatch = None,
        also: Callable[[RedisWrites], None] = lambda _: None,
    ) -> Label:
        """Replace fields in one atomic step, within which ``if_match`` is checked.

        ``also`` queues writes to other keys of the namespace's hash tag; nothing is written if no field changes.

        A new name requires its ``vector`` and ``fingerprint``, otherwise ValueError is raised; the old name's vectors
        of all other encoders are removed.

        Raises NotFound, LabelExists, PreconditionFailed, ParentNotFound, ParentCycle, LabelTextInvalid,
        InvalidParameter, ByteQuotaExceeded.
        """
        if vector is not None:
            vector = check_vector(vector)
        if (vector is None) != (fingerprint is None):
            raise ValueError("vector and fingerprint must be given together")

        def body(pipe: RedisPipeline, revision: int) -> Step[Label] | NoStep[Label]:
            old = self._get_via(pipe, label_id)
            check_match(old, if_match)
            cleaned = apply_changes(old, changes)
            texts = normalized_names(cleaned)
            owners = self._owners_via(pipe, [*texts, *parent_texts(cleaned.parents)])
            owner = next((owners[text] for text in texts if owners[text] not in (None, label_id)), None)
            if owner is not None:
                raise exists(owner)
            # A parent that is quarantined stays one.
            existing = {*old.parents, *self._parents_via(pipe, parent_ids(cleaned.parents))}
            cleaned = replace(cleaned, parents=resolve_parents(cleaned.parents, owners, existing))
            if set(cleaned.parents) - set(old.parents):
                check_no_cycle(label_id, cleaned.parents, lambda ids: self._parents_via(pipe, ids))
            renamed = cleaned.name != old.name
            if renamed and vector is None:
                raise ValueError("a renamed label requires the vector of its new name")
            if cleaned == client_fields(old) and vector is None:
                return NoStep(old)
            self._room(pipe, self._max_labels).check(num_bytes=label_bytes(cleaned) - label_bytes(old))
            generations = self._generations_via(pipe)
            writes = LabelWrites(self._keys)
            if renamed:
                writes.drop_vectors(label_id, generations)
            if fingerprint is not None and vector is not None:
                _check_dim(fingerprint, len(vector), generations)
                writes.put_vector(fingerprint, label_id, encode_vector(vector))
            label = make_label(
                label_id, cleaned, created_at_ms=old.created_at_ms, updated_at_ms=_now_ms(), revision=revision
            )
            writes.put(label, old)

            def write(pipe: RedisWrites) -> None:
                writes.queue(pipe)
                also(pipe)

            return Step(label, write, "put", (label_id,), on_stored=writes.record)

        return self._steps.run(body)

    def remove(self, label_id: str, *, if_match: IfMatch = None) -> None:
        """Remove the label with its names and vectors, and remove it from the parents of its children.

        With more than 500 children, earlier steps detach 500 each. Raises NotFound, PreconditionFailed.
        """
        while not self._steps.run(lambda pipe, revision: self._remove_step(pipe, revision, label_id, if_match)):
            pass

    def _remove_step(
        self, pipe: RedisReads, revision: int, label_id: str, if_match: IfMatch
    ) -> Step[bool] | NoStep[bool]:
        old = self._get_via(pipe, label_id)
        check_match(old, if_match)
        ids = [i.decode() for i in pipe.zrange(self._keys.children(label_id), 0, STEP_LABELS)]
        is_last = len(ids) <= STEP_LABELS
        writes = LabelWrites(self._keys)
        children = self._get_many_via(pipe, ids[:STEP_LABELS])
        now_ms = _now_ms()
        for child in children:
            parents = tuple(parent for parent in child.parents if parent != label_id)
            writes.put(replace(child, parents=parents, updated_at_ms=now_ms, revision=revision), child)
        changed = tuple(child.id for child in children)
        writes.drop_children(label_id, set(ids[:STEP_LABELS]).difference(changed))  # quarantined ones
        if not is_last:
            # Only some of the children are detached.
            return Step(False, writes.queue, "put", changed, on_stored=writes.record)
        generations = self._generations_via(pipe)
        writes.remove(old, generations)
        is_empty = pipe.zcard(self._keys.order) == 1
        if is_empty:
            writes.clear(generations)
        leaves_nothing = is_empty and not pipe.hlen(self._keys.calibrations)
        ids_of_all = (label_id, *changed)
        return Step(True, writes.queue, "remove", ids_of_all, leaves_nothing=leaves_nothing, on_stored=writes.record)

    def put_vectors(
        self,
        fingerprint: str,
        vectors: Mapping[str, NDArray[np.float32]],
        *,
        names: Mapping[str, str] | None = None,
    ) -> Ids:
        """Store vectors [D] of one encoder by label id; returns the ids written, in order. Atomic per 500 ids.

        Skips labels that do not exist or whose name is no longer the encoded name, ``names[id]``. Raises ValueError for
        a wrong dimension or numbers that are not finite.
        """
        checked = {label_id: check_vector(vector) for label_id, vector in vectors.items()}
        ids = tuple(checked)
        written: Ids = []
        for start in range(0, len(ids), STEP_LABELS):
            chunk = ids[start : start + STEP_LABELS]
            written += self._put_vectors_step(fingerprint, {i: checked[i] for i in chunk}, names or {})
        return written

    def put_calibration(self, fingerprint: str, calibration: Calibration | None) -> int:
        """Store or remove (None) the calibration of one encoder. Returns the revision that has it."""

        raw = None if calibration is None else calibration_to_json(calibration)

        def write(pipe: RedisWrites) -> None:
            if raw is None:
                pipe.hdel(self._keys.calibrations, fingerprint)
            else:
                pipe.hset(self._keys.calibrations, fingerprint, raw)

        def body(pipe: RedisPipeline, revision: int) -> Step[int] | NoStep[int]:
            if raw is None and pipe.hget(self._keys.calibrations, fingerprint) is None:
                return NoStep(revision - 1)
            keys = self._keys
            leaves_nothing = raw is None and pipe.hlen(keys.calibrations) == 1 and not pipe.zcard(keys.order)
            action = "calibration.remove" if raw is None else "calibration.put"
            recorded = partial(audit.record, action, fingerprint, namespace=keys.namespace)
            return Step(revision, write, "calibration", (), fingerprint, leaves_nothing, recorded)

        return self._steps.run(body)

    def drop_generation(self, fingerprint: str) -> None:
        self.put_calibration(fingerprint, None)
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.generations, fingerprint)
            pipe.unlink(self._keys.vectors(fingerprint))
            pipe.execute()

    # -- internals ----------------------------------------------------------------------------------------------------

    def _add_step(
        self,
        chunk: Sequence[NewItem],
        fingerprint: str,
        max_labels: int,
        idempotent_request: IdempotentRequest | None,
    ) -> AddResults:
        token = random_token()

        def body(pipe: RedisPipeline, revision: int) -> Step[AddResults] | NoStep[AddResults]:
            if idempotent_request is not None:
                idempotent_request.check_lease(pipe)
            texts = [text for item in chunk for text in (*normalized_names(item.new), *parent_texts(item.new.parents))]
            owners = self._owners_via(pipe, list(dict.fromkeys(texts)))
            existing = set(self._parents_via(pipe, [i for item in chunk for i in parent_ids(item.new.parents)]))
            generations = self._generations_via(pipe)
            for item in chunk:
                _check_dim(fingerprint, len(item.vector), generations)
            room = self._room(pipe, max_labels)
            results, added = make_labels(chunk, owners, existing, room, revision=revision, token=token)
            in_order = [results[item.index] for item in chunk]
            if not added:
                return NoStep(in_order)
            writes = LabelWrites(self._keys)
            vectors = {item.index: item.vector for item in chunk}
            for index, label in added.items():
                writes.put(label)
                writes.put_vector(fingerprint, label.id, encode_vector(vectors[index]))

            def write(pipe: RedisWrites) -> None:
                writes.queue(pipe)
                if idempotent_request is not None:
                    idempotent_request.record_created(pipe, added)

            ids = tuple(label.id for label in added.values())
            return Step(in_order, write, "put", ids, on_stored=writes.record)

        return self._steps.run(body)

    def _put_vectors_step(
        self, fingerprint: str, vectors: Mapping[str, NDArray[np.float32]], names: Mapping[str, str]
    ) -> Ids:
        def body(pipe: RedisPipeline, revision: int) -> Step[Ids] | NoStep[Ids]:
            generations = self._generations_via(pipe)
            for vector in vectors.values():
                _check_dim(fingerprint, len(vector), generations)
            current = {label.id: label.name for label in self._get_many_via(pipe, tuple(vectors))}
            unchanged = [i for i in vectors if i in current and names.get(i, current[i]) == current[i]]
            if not unchanged:
                return NoStep([])

            writes = LabelWrites(self._keys)
            for label_id in unchanged:
                writes.put_vector(fingerprint, label_id, encode_vector(vectors[label_id]))
            return Step(unchanged, writes.queue, "vectors", tuple(unchanged), fingerprint)

        return self._steps.run(body)

    def _room(self, reads: RedisReads, max_labels: int) -> Room:
        num_bytes = int(reads.get(self._keys.num_bytes) or 0)
        return Room(reads.zcard(self._keys.order), max_labels, num_bytes, self._max_bytes)

    def _parents_via(self, reads: RedisReads, label_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {label.id: label.parents for label in self._get_many_via(reads, list(dict.fromkeys(label_ids)))}

    def _owners_via(self, reads: RedisReads, keys: Sequence[str]) -> dict[str, str | None]:
        if not keys:
            return {}
        owners = reads.hmget(self._keys.names, list(keys))
        return {key: None if raw is None else raw.decode() for key, raw in zip(keys, owners, strict=True)}


def check_match(label: Label, if_match: IfMatch) -> None:
    if if_match is not None and etag_of(label) not in if_match:
        raise PreconditionFailed("The label has changed since it was read; read it again", current=etag_of(label))


def _check_dim(fingerprint: str, dim: int, generations: dict[str, int]) -> None:
    known = generations.setdefault(fingerprint, dim)  # registers a new generation for the rest of the step
    if known != dim:
        raise ValueError(f"vectors of encoder {fingerprint} have {known} numbers, got {dim}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""The durable labels of one namespace, with one vector per encoder. Redis or Valkey holds them.

Names and aliases share one name space: after normalisation a text belongs to at most one label of the namespace, as
its name or as an alias, so ``find`` is never ambiguous. Whatever would break that is refused with LabelExists (409).

Every write is one atomic step of transaction.py and tells every replica of itself in the change stream.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.errors import (
    EncodeFailed,
    LabelExists,
    ParentNotFound,
    PreconditionFailed,
    QuotaExceeded,
    VidlexError,
)
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.idempotency import RequestLog, Ticket
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.parents import check_no_cycle, parent_ids, parent_texts, resolve
from vidlex.service.labels.store.records import (
    Label,
    LabelChanges,
    NewLabel,
    apply_changes,
    clean,
    etag_of,
    make_label,
    name_keys,
    user_part,
)
from vidlex.service.labels.store.redis_keys import make_label_id, random_token
from vidlex.service.labels.store.transaction import NoStep, Step, StepRunner
from vidlex.service.labels.store.vectors import check_vector, encode_vector
from vidlex.service.labels.store.writes import LabelWrites

STEP_LABELS = 500
"""Labels per atomic step of the bulk methods: bounds how long one step keeps the server to itself."""

AddResult = Label | VidlexError
AddResults = list[AddResult]
Ids = list[str]
IfMatch = Collection[str] | None
"""Entity tags of which one must be the label's; None: no condition."""


@dataclass(frozen=True, eq=False)
class _Item:
    """A cleaned label to add, its vector, and its place in what the caller gave."""

    place: int
    new: NewLabel
    vector: NDArray[np.float32]


class LabelStore(LabelReader):
    """See the module's text. Thread-safe; every method raises StoreUnavailable when the store does not answer."""

    def __init__(
        self,
        client: redis.Redis,
        namespace: str = "default",
        *,
        max_changes: int = 10_000,
        deadline_seconds: float = 10.0,
        max_labels: int = 1_000_000,
    ) -> None:
        """``max_changes``: length of the change stream; a replica that is further behind loads everything anew.
        ``deadline_seconds``: how long a write may wait for other writers. ``max_labels``: the namespace's quota."""
        super().__init__(client, namespace)
        self.requests = RequestLog(client, self._keys)
        self._max_labels = max_labels
        self._steps = StepRunner(client, self._keys, max_changes=max_changes, deadline_seconds=deadline_seconds)

    def add(self, new: NewLabel, vector: NDArray[np.float32], fingerprint: str) -> Label:
        """Store a label with its [D] vector in one atomic step.

        Raises LabelExists (with the owner of the name or alias), LabelTextInvalid, InvalidParameter, ParentNotFound,
        QuotaExceeded.
        """
        (result,) = self.add_many([(new, vector)], fingerprint)
        if isinstance(result, VidlexError):
            raise result
        return result

    def add_many(
        self,
        items: Sequence[tuple[NewLabel, NDArray[np.float32]]],
        fingerprint: str,
        *,
        max_labels: int | None = None,
        ticket: Ticket | None = None,
        places: Sequence[int] | None = None,
    ) -> AddResults:
        """``add`` for many: per item the label or the error that ``add`` would raise; one bad item fails alone.

        Atomic per 500 items, each label whole; an item may name another of the same 500 as its parent. ``max_labels``
        can only lower the namespace's quota. With a ``ticket`` what is created is noted in the same transaction, under
        the item's place in the request (``places``), and IdempotencyInFlight is raised if the ticket was lost.
        Raises ValueError when a vector has another dimension than the fingerprint's others.
        """
        quota = self._max_labels if max_labels is None else min(max_labels, self._max_labels)
        results: dict[int, AddResult] = {}
        ready: list[_Item] = []
        for place, (new, vector) in zip(places or range(len(items)), items, strict=True):
            try:
                ready.append(_Item(place, clean(new), check_vector(vector)))
            except VidlexError as error:
                results[place] = error
            except ValueError as error:
                results[place] = EncodeFailed("The encoder gave no usable vector", internal=str(error))
        for start in range(0, len(ready), STEP_LABELS):
            chunk = ready[start : start + STEP_LABELS]
            added = self._add_step(chunk, fingerprint, quota, ticket)
            results.update(zip((item.place for item in chunk), added, strict=True))
        return [results[place] for place in places or range(len(items))]

    def update(
        self,
        label_id: str,
        changes: LabelChanges,
        *,
        vector: NDArray[np.float32] | None = None,
        fingerprint: str | None = None,
        if_match: IfMatch = None,
    ) -> Label:
        """Replace fields in one atomic step.

        A name that reads differently needs the ``vector`` of the new name and its ``fingerprint`` (else ValueError):
        the vectors of all other encoders are dropped with the old name and count as missing. ``if_match``: the
        entity tags (see etag_of) of which the label must have one at that very moment.
        Raises NotFound, LabelExists, PreconditionFailed, ParentNotFound, ParentCycle, LabelTextInvalid,
        InvalidParameter.
        """
        if vector is not None:
            vector = check_vector(vector)
        if (vector is None) != (fingerprint is None):
            raise ValueError("vector and fingerprint go together")

        def body(pipe: Any, revision: int) -> Step[Label] | NoStep[Label]:
            old = self._get_through(pipe, label_id)
            check_match(old, if_match)
            cleaned = apply_changes(old, changes)
            texts = name_keys(cleaned)
            owners = self._owners_through(pipe, [*texts, *parent_texts(cleaned.parents)])
            owner = next((owners[text] for text in texts if owners[text] not in (None, label_id)), None)
            if owner is not None:
                raise _exists(owner)
            existing = self._parents_through(pipe, parent_ids(cleaned.parents))
            cleaned = replace(cleaned, parents=resolve(cleaned.parents, owners, existing))
            if set(cleaned.parents) - set(old.parents):
                check_no_cycle(label_id, cleaned.parents, lambda ids: self._parents_through(pipe, ids))
            renamed = cleaned.name != old.name
            if renamed and vector is None:
                raise ValueError("a renamed label needs the vector of its new name")
            if cleaned == user_part(old) and vector is None:
                return NoStep(old)
            generations = self._generations_through(pipe)
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
            return Step(label, writes.queue, "put", (label_id,))

        return self._steps.run(body)

    def remove(self, label_id: str, *, if_match: IfMatch = None) -> None:
        """Remove the label, its names and its vectors of every encoder; its children lose it as a parent.

        One atomic step. Only when there are more than 500 children, most are parted from it in steps before: whatever
        interrupts these, no label ever names a parent that is not there. Raises NotFound, PreconditionFailed.
        """
        while not self._steps.run(lambda pipe, revision: self._remove_step(pipe, revision, label_id, if_match)):
            pass

    def _remove_step(self, pipe: Any, revision: int, label_id: str, if_match: IfMatch) -> Step[bool] | NoStep[bool]:
        """True: the label is gone. False: some of its many children are parted from it."""
        old = self._get_through(pipe, label_id)
        check_match(old, if_match)
        ids = [i.decode() for i in pipe.zrange(self._keys.children(label_id), 0, STEP_LABELS)]
        is_last = len(ids) <= STEP_LABELS
        writes = LabelWrites(self._keys)
        children = self._get_many_through(pipe, ids[:STEP_LABELS])
        now_ms = _now_ms()
        for child in children:
            parents = tuple(parent for parent in child.parents if parent != label_id)
            writes.put(replace(child, parents=parents, updated_at_ms=now_ms, revision=revision), child)
        changed = tuple(child.id for child in children)
        if not is_last:
            return Step(False, writes.queue, "put", changed)
        writes.remove(old, self._generations_through(pipe))
        return Step(True, writes.queue, "remove", (label_id, *changed))

    def put_vectors(
        self,
        fingerprint: str,
        vectors: Mapping[str, NDArray[np.float32]],
        *,
        names: Mapping[str, str] | None = None,
    ) -> Ids:
        """Store vectors (label id to [D]) of one encoder; returns the ids written, in order.

        Ids without a label are skipped: it was removed meanwhile. So are ids whose name is no longer ``names[id]``,
        the name that was encoded; without ``names`` nothing protects from storing the vector of an old name.
        Atomic per 500 ids. Raises ValueError for a wrong dimension or numbers that are not finite.
        """
        checked = {label_id: check_vector(vector) for label_id, vector in vectors.items()}
        ids = tuple(checked)
        written: Ids = []
        for start in range(0, len(ids), STEP_LABELS):
            chunk = ids[start : start + STEP_LABELS]
            written += self._put_vectors_step(fingerprint, {i: checked[i] for i in chunk}, names or {})
        return written

    def drop_generation(self, fingerprint: str) -> None:
        """Forget all vectors of an encoder that is no longer served."""
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.generations, fingerprint)
            pipe.unlink(self._keys.vectors(fingerprint))
            pipe.execute()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _add_step(self, chunk: Sequence[_Item], fingerprint: str, max_labels: int, ticket: Ticket | None) -> AddResults:
        """Up to STEP_LABELS cleaned labels in one step."""
        token = random_token()

        def body(pipe: Any, revision: int) -> Step[AddResults] | NoStep[AddResults]:
            if ticket is not None:
                ticket.guard(pipe)
            asked = [text for item in chunk for text in (*name_keys(item.new), *parent_texts(item.new.parents))]
            owners = self._owners_through(pipe, list(dict.fromkeys(asked)))
            existing = set(self._parents_through(pipe, [i for item in chunk for i in parent_ids(item.new.parents)]))
            generations = self._generations_through(pipe)
            for item in chunk:
                _check_dim(fingerprint, len(item.vector), generations)
            num_free = max_labels - int(pipe.zcard(self._keys.order))
            now_ms = _now_ms()
            results: dict[int, AddResult] = {}
            added: dict[int, Label] = {}
            # Again and again, since a label may name a parent that comes later in the chunk.
            pending = list(chunk)
            while pending:
                waiting: list[_Item] = []
                for item in pending:
                    owner = next((owners[text] for text in name_keys(item.new) if owners[text] is not None), None)
                    try:
                        if owner is not None:
                            raise _exists(owner)
                        parents = resolve(item.new.parents, owners, existing)
                        if len(added) >= num_free:
                            raise QuotaExceeded(f"This namespace may hold {max_labels} labels")
                    except ParentNotFound as error:
                        results[item.place] = error
                        waiting.append(item)
                        continue
                    except VidlexError as error:
                        results[item.place] = error
                        continue
                    label = make_label(
                        make_label_id(revision, len(added), token),
                        replace(item.new, parents=parents),
                        created_at_ms=now_ms,
                        updated_at_ms=now_ms,
                        revision=revision,
                    )
                    owners.update(dict.fromkeys(name_keys(label), label.id))
                    results[item.place] = added[item.place] = label
                if len(waiting) == len(pending):
                    break
                pending = waiting
            in_order = [results[item.place] for item in chunk]
            if not added:
                return NoStep(in_order)
            writes = LabelWrites(self._keys)
            vectors = {item.place: item.vector for item in chunk}
            for place, label in added.items():
                writes.put(label)
                writes.put_vector(fingerprint, label.id, encode_vector(vectors[place]))

            def write(queue: Any) -> None:
                writes.queue(queue)
                if ticket is not None:
                    ticket.record(queue, added)

            return Step(in_order, write, "put", tuple(label.id for label in added.values()))

        return self._steps.run(body)

    def _put_vectors_step(
        self, fingerprint: str, vectors: Mapping[str, NDArray[np.float32]], names: Mapping[str, str]
    ) -> Ids:
        def body(pipe: Any, revision: int) -> Step[Ids] | NoStep[Ids]:
            generations = self._generations_through(pipe)
            for vector in vectors.values():
                _check_dim(fingerprint, len(vector), generations)
            current = {label.id: label.name for label in self._get_many_through(pipe, tuple(vectors))}
            wanted = [i for i in vectors if i in current and names.get(i, current[i]) == current[i]]
            if not wanted:
                return NoStep([])

            writes = LabelWrites(self._keys)
            for label_id in wanted:
                writes.put_vector(fingerprint, label_id, encode_vector(vectors[label_id]))
            return Step(wanted, writes.queue, "vectors", tuple(wanted), fingerprint)

        return self._steps.run(body)

    def _parents_through(self, pipe: Any, label_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Those of the labels that exist, with the ids of their parents."""
        return {label.id: label.parents for label in self._get_many_through(pipe, list(dict.fromkeys(label_ids)))}

    def _owners_through(self, pipe: Any, keys: Sequence[str]) -> dict[str, str | None]:
        """Normalised names to the ids of the labels that own them."""
        if not keys:
            return {}
        owners = pipe.hmget(self._keys.names, list(keys))
        return {key: None if raw is None else raw.decode() for key, raw in zip(keys, owners, strict=True)}


def check_match(label: Label, if_match: IfMatch) -> None:
    """Raises PreconditionFailed unless the label has one of the entity tags."""
    if if_match is not None and etag_of(label) not in if_match:
        raise PreconditionFailed("The label has changed since it was read: read it again", current=etag_of(label))


def _exists(owner: str) -> LabelExists:
    return LabelExists("The name or an alias is already the name or an alias of a label", existing_id=owner)


def _check_dim(fingerprint: str, dim: int, generations: dict[str, int]) -> None:
    """Also fixes the dimension of a new generation for the rest of the step."""
    known = generations.setdefault(fingerprint, dim)
    if known != dim:
        raise ValueError(f"vectors of encoder {fingerprint} have {known} numbers, got {dim}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

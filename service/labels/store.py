"""The durable labels of one namespace, with one vector per encoder. Redis or Valkey holds them.

Names and aliases share one name space: after normalisation a text belongs to at most one label of the namespace, as
its name or as an alias, so ``find`` is never ambiguous. Whatever would break that is refused with LabelExists (409).

Every write is one atomic step of transaction.py and tells every replica of itself in the change stream.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from service.errors import EncodeFailed, LabelExists, VidlexError
from service.labels.client import store_errors
from service.labels.keys import make_label_id, random_token
from service.labels.reader import LabelReader
from service.labels.records import (
    Label,
    LabelChanges,
    NewLabel,
    apply_changes,
    clean,
    label_to_json,
    make_label,
    name_keys,
    user_part,
)
from service.labels.transaction import NoStep, Step, StepRunner
from service.labels.vectors import check_vector, encode_vector

STEP_LABELS = 500
"""Labels per atomic step of the bulk methods: bounds how long one step keeps the server to itself."""

AddResult = Label | VidlexError
AddResults = list[AddResult]
Ids = list[str]


class LabelStore(LabelReader):
    """See the module's text. Thread-safe; every method raises StoreUnavailable when the store does not answer."""

    def __init__(
        self,
        client: redis.Redis,
        namespace: str = "default",
        *,
        max_changes: int = 10_000,
        deadline_seconds: float = 10.0,
    ) -> None:
        """``max_changes``: length of the change stream; a replica that is further behind loads everything anew.
        ``deadline_seconds``: how long a write may wait for other writers."""
        super().__init__(client, namespace)
        self._steps = StepRunner(client, self._keys, max_changes=max_changes, deadline_seconds=deadline_seconds)

    def add(self, new: NewLabel, vector: NDArray[np.float32], fingerprint: str) -> Label:
        """Store a label with its [D] vector in one atomic step.

        Raises LabelExists (with the owner of the name or alias), LabelTextInvalid, InvalidParameter.
        """
        (result,) = self.add_many([(new, vector)], fingerprint)
        if isinstance(result, VidlexError):
            raise result
        return result

    def add_many(self, items: Sequence[tuple[NewLabel, NDArray[np.float32]]], fingerprint: str) -> AddResults:
        """``add`` for many: per item the label or the error that ``add`` would raise; one bad item fails alone.

        Atomic per 500 items, each label whole. Raises ValueError when a vector has another dimension than the
        fingerprint's others.
        """
        results: dict[int, AddResult] = {}
        ready: list[tuple[int, NewLabel, NDArray[np.float32]]] = []
        for position, (new, vector) in enumerate(items):
            try:
                cleaned = clean(new)
            except VidlexError as error:
                results[position] = error
                continue
            try:
                ready.append((position, cleaned, check_vector(vector)))
            except ValueError as error:
                results[position] = EncodeFailed("The encoder gave no usable vector", internal=str(error))
        for start in range(0, len(ready), STEP_LABELS):
            chunk = ready[start : start + STEP_LABELS]
            added = self._add_step([(new, vector) for _, new, vector in chunk], fingerprint)
            results.update(zip((position for position, _, _ in chunk), added, strict=True))
        return [results[position] for position in range(len(items))]

    def update(
        self,
        label_id: str,
        changes: LabelChanges,
        *,
        vector: NDArray[np.float32] | None = None,
        fingerprint: str | None = None,
    ) -> Label:
        """Replace fields in one atomic step.

        A name that reads differently needs the ``vector`` of the new name and its ``fingerprint`` (else ValueError):
        the vectors of all other encoders are dropped with the old name and count as missing.
        Raises NotFound, LabelExists, LabelTextInvalid, InvalidParameter.
        """
        if vector is not None:
            vector = check_vector(vector)
        if (vector is None) != (fingerprint is None):
            raise ValueError("vector and fingerprint go together")

        def body(pipe: Any, revision: int) -> Step[Label] | NoStep[Label]:
            old = self._get_through(pipe, label_id)
            cleaned = apply_changes(old, changes)
            renamed = cleaned.name != old.name
            if renamed and vector is None:
                raise ValueError("a renamed label needs the vector of its new name")
            if cleaned == user_part(old) and vector is None:
                return NoStep(old)
            released = set(name_keys(old)) - set(name_keys(cleaned))
            gained = [key for key in name_keys(cleaned) if key not in set(name_keys(old))]
            for owner in self._owners_through(pipe, gained).values():
                if owner is not None and owner != label_id:
                    raise _exists(owner)
            generations = self._generations_through(pipe)
            if fingerprint is not None and vector is not None:
                _check_dim(fingerprint, len(vector), generations)
            label = make_label(
                label_id, cleaned, created_at_ms=old.created_at_ms, updated_at_ms=_now_ms(), revision=revision
            )

            def write(queue: Any) -> None:
                if released:
                    queue.hdel(self._keys.names, *released)
                if gained:
                    queue.hset(self._keys.names, mapping=dict.fromkeys(gained, label_id))
                for category in set(old.categories) - set(label.categories):
                    queue.zrem(self._keys.category(category), label_id)
                for category in set(label.categories) - set(old.categories):
                    queue.zadd(self._keys.category(category), {label_id: 0})
                queue.hset(self._keys.records, label_id, label_to_json(label))
                if renamed:
                    for other in generations:
                        queue.hdel(self._keys.vectors(other), label_id)
                if fingerprint is not None and vector is not None:
                    self._queue_vectors(queue, fingerprint, {label_id: encode_vector(vector)})

            return Step(label, write, "put", (label_id,))

        return self._steps.run(body)

    def remove(self, label_id: str) -> None:
        """Remove the label, its names and its vectors of every encoder. Raises NotFound."""

        def body(pipe: Any, revision: int) -> Step[None]:
            old = self._get_through(pipe, label_id)
            generations = self._generations_through(pipe)

            def write(queue: Any) -> None:
                queue.hdel(self._keys.names, *name_keys(old))
                queue.hdel(self._keys.records, label_id)
                queue.zrem(self._keys.order, label_id)
                for category in old.categories:
                    queue.zrem(self._keys.category(category), label_id)
                for fingerprint in generations:
                    queue.hdel(self._keys.vectors(fingerprint), label_id)

            return Step(None, write, "remove", (label_id,))

        self._steps.run(body)

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

    def _add_step(self, items: Sequence[tuple[NewLabel, NDArray[np.float32]]], fingerprint: str) -> AddResults:
        """Up to STEP_LABELS cleaned labels in one step."""
        token = random_token()

        def body(pipe: Any, revision: int) -> Step[AddResults] | NoStep[AddResults]:
            keys_of = [name_keys(new) for new, _ in items]
            asked = list(dict.fromkeys(key for keys in keys_of for key in keys))
            taken = {key: owner for key, owner in self._owners_through(pipe, asked).items() if owner is not None}
            generations = self._generations_through(pipe)
            now_ms = _now_ms()
            results: AddResults = []
            added: dict[str, tuple[Label, bytes]] = {}
            for (new, vector), keys in zip(items, keys_of, strict=True):
                _check_dim(fingerprint, len(vector), generations)
                owner = next((taken[key] for key in keys if key in taken), None)
                if owner is not None:
                    results.append(_exists(owner))
                    continue
                label_id = make_label_id(revision, len(added), token)
                label = make_label(label_id, new, created_at_ms=now_ms, updated_at_ms=now_ms, revision=revision)
                taken.update(dict.fromkeys(keys, label_id))
                added[label_id] = (label, encode_vector(vector))
                results.append(label)
            if not added:
                return NoStep(results)
            labels = [label for label, _ in added.values()]

            def write(queue: Any) -> None:
                queue.hset(self._keys.names, mapping={key: label.id for label in labels for key in name_keys(label)})
                queue.hset(self._keys.records, mapping={label.id: label_to_json(label) for label in labels})
                queue.zadd(self._keys.order, {label.id: 0 for label in labels})
                for category, members in _by_category(labels).items():
                    queue.zadd(self._keys.category(category), dict.fromkeys(members, 0))
                self._queue_vectors(queue, fingerprint, {label.id: raw for label, raw in added.values()})

            return Step(results, write, "put", tuple(added))

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

            def write(queue: Any) -> None:
                self._queue_vectors(queue, fingerprint, {i: encode_vector(vectors[i]) for i in wanted})

            return Step(wanted, write, "vectors", tuple(wanted), fingerprint)

        return self._steps.run(body)

    def _queue_vectors(self, queue: Any, fingerprint: str, raw: Mapping[str, bytes]) -> None:
        dim = (len(next(iter(raw.values()))) - 4) // 4
        queue.hset(self._keys.generations, fingerprint, str(dim))
        queue.hset(self._keys.vectors(fingerprint), mapping=raw)

    def _owners_through(self, pipe: Any, keys: Sequence[str]) -> dict[str, str | None]:
        """Normalised names to the ids of the labels that own them."""
        if not keys:
            return {}
        owners = pipe.hmget(self._keys.names, list(keys))
        return {key: None if raw is None else raw.decode() for key, raw in zip(keys, owners, strict=True)}


def _exists(owner: str) -> LabelExists:
    return LabelExists("The name or an alias is already the name or an alias of a label", existing_id=owner)


def _check_dim(fingerprint: str, dim: int, generations: dict[str, int]) -> None:
    """Also fixes the dimension of a new generation for the rest of the step."""
    known = generations.setdefault(fingerprint, dim)
    if known != dim:
        raise ValueError(f"vectors of encoder {fingerprint} have {known} numbers, got {dim}")


def _by_category(labels: Sequence[Label]) -> dict[str, Ids]:
    members: dict[str, Ids] = {}
    for label in labels:
        for category in label.categories:
            members.setdefault(category, []).append(label.id)
    return members


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

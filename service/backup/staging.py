"""A namespace that a restore writes next to the real one, checks, and puts in its place.

First come records and vectors, in the order of the backup, in which a later entry of a label replaces an earlier one.
Names, categories, parents and order of texts are derived from the final records, so a backup cannot contradict itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import redis

from vidlex.service.backup.entries import LabelEntry, NamespaceEnd, RequestEntry
from vidlex.service.backup.lines import BackupError
from vidlex.service.labels.store.calibrations import calibration_to_json
from vidlex.service.labels.store.changes import Change, change_fields
from vidlex.service.labels.store.records import label_from_json, normalized_names
from vidlex.service.labels.store.redis_keys import STAGING_PREFIX, Keys, change_entry_id, random_token
from vidlex.service.labels.store.redis_types import RedisClient, RedisPipeline, typed_client
from vidlex.service.labels.store.writes import LabelWrites

_PAGE_LABELS = 200
_MAX_BATCH_BYTES = 4 * 2**20
_KEYS_PER_STEP = 1000
_SCAN_COUNT = 1000
_MAX_ATTEMPTS = 100

OnPage = Callable[[], object]


def matching(client: RedisClient, pattern: str) -> Iterator[list[bytes]]:
    """All keys that match a pattern, in lists of bounded length; some more than once."""
    found: list[bytes] = []
    for key in client.scan_iter(match=pattern, count=_SCAN_COUNT):
        found.append(key)
        if len(found) == _KEYS_PER_STEP:
            yield found
            found = []
    if found:
        yield found


def delete_matching(client: RedisClient, pattern: str) -> None:
    for keys in matching(client, pattern):
        delete_keys(client, keys)


def delete_keys(client: RedisClient, keys: Iterable[bytes]) -> None:
    # One command each: in a cluster they lie in different slots.
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.unlink(key)
        pipe.execute()


class StagedNamespace:
    """Call ``add`` and its like, ``finish``, then ``publish``. ``on_page`` runs between bounded pieces of work.

    Raises BackupError, redis.RedisError.
    """

    def __init__(self, client: redis.Redis, name: str, on_page: OnPage) -> None:
        self.name = name
        self._client = typed_client(client)
        self._staged = Keys(name, STAGING_PREFIX)
        self._final = Keys(name)
        self._on_page = on_page
        self._dims: dict[str, int] = {}
        self._batch: dict[str, LabelEntry] = {}
        self._batch_bytes = 0

    # -- content ------------------------------------------------------------------------------------------------------

    def add(self, entry: LabelEntry) -> None:
        for fingerprint, raw in entry.vectors.items():
            self._check_dim(fingerprint, len(raw) // 4 - 1)
            self._batch_bytes += len(raw)
        self._batch_bytes += 1000 + len(str(entry.label.metadata))
        self._batch[entry.label.id] = entry
        if len(self._batch) >= _PAGE_LABELS or self._batch_bytes >= _MAX_BATCH_BYTES:
            self._flush()

    def remove(self, label_ids: Iterable[str]) -> None:
        self._flush()
        writes = LabelWrites(self._staged)
        for label_id in label_ids:
            writes.remove_record(label_id, self._dims)
        self._write(writes)

    def add_request(self, entry: RequestEntry) -> None:
        key = self._staged.request(entry.digest)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.delete(key)
            pipe.hset(key, mapping=dict(entry.fields))
            pipe.pexpireat(key, entry.expires_at_ms)
            pipe.execute()

    def clear(self) -> None:
        """Forget everything so far."""
        self._batch.clear()
        self._batch_bytes = 0
        self._dims.clear()
        delete_matching(self._client, self._staged.pattern)

    # -- checks and what follows from the records ---------------------------------------------------------------------

    def finish(self, end: NamespaceEnd) -> list[str]:
        """Returns a line for each encoder that lacks vectors, which the service computes again."""
        self._flush()
        for fingerprint, dim in end.generations.items():
            self._check_dim(fingerprint, dim)
        for fingerprint in self._dims.keys() - end.generations.keys():
            self._client.unlink(self._staged.vectors(fingerprint))  # the encoder was dropped during the backup
        num_labels = 0
        low = "-"
        while members := self._client.zrange(self._staged.order, low, "+", bylex=True, offset=0, num=_PAGE_LABELS):
            num_labels += self._derive([member.decode() for member in members], end.revision)
            low = f"({members[-1].decode()}"
            self._on_page()
        if num_labels != end.num_labels:
            raise BackupError(f"the namespace {self.name} has {num_labels} labels in place of {end.num_labels}")
        if end.revision:
            self._write_head(end)
        found = {f: self._client.hlen(self._staged.vectors(f)) for f in end.generations}
        return [
            f"namespace {self.name}: {found.get(f, 0)} of {count} vectors of encoder {f}"
            for f, count in end.num_vectors.items()
            if found.get(f, 0) != count
        ]

    def _derive(self, ids: list[str], revision: int) -> int:
        labels = [label_from_json(i, raw) for i, raw in self._records(ids)]
        texts = {text: label.id for label in labels for text in normalized_names(label)}
        owners = self._client.hmget(self._staged.names, list(texts)) if texts else []
        num_texts = sum(len(normalized_names(label)) for label in labels)
        if any(owner is not None for owner in owners) or len(texts) != num_texts:
            raise BackupError(f"two labels of namespace {self.name} have the same name or alias")
        parents = list(dict.fromkeys(parent for label in labels for parent in label.parents))
        if parents and None in self._client.zmscore(self._staged.order, parents):
            raise BackupError(f"a parent of a label of namespace {self.name} is missing")
        if any(label.revision > revision for label in labels):
            raise BackupError(f"a label of namespace {self.name} is newer than the namespace")
        writes = LabelWrites(self._staged)
        for label in labels:
            writes.put_derived(label)
        self._write(writes)
        return len(labels)

    def _records(self, ids: list[str]) -> list[tuple[str, bytes]]:
        rows = self._client.hmget(self._staged.records, ids)
        return [(label_id, raw) for label_id, raw in zip(ids, rows, strict=True) if raw is not None]

    def _write_head(self, end: NamespaceEnd) -> None:
        # Unknown tokens: a replica that follows the old history reloads everything.
        change = Change(end.revision, "put", (), None, random_token(), random_token())
        keys = self._staged
        with self._client.pipeline(transaction=True) as pipe:
            pipe.delete(keys.changes, keys.generations, keys.calibrations)
            pipe.xadd(
                keys.changes, change_fields(change), id=change_entry_id(end.revision), maxlen=1, approximate=False
            )
            if end.generations:
                pipe.hset(keys.generations, mapping={f: str(dim) for f, dim in end.generations.items()})
            if end.calibrations:
                pipe.hset(keys.calibrations, mapping={f: calibration_to_json(c) for f, c in end.calibrations.items()})
            pipe.execute()

    # -- taking the place of the real namespace -----------------------------------------------------------------------

    def publish(self, *, replace: bool) -> None:
        """One transaction, before which only the filters by category and parent may be incomplete.

        Without ``replace``, raises BackupError if the namespace exists.
        """
        many = ("category", "children", "request")
        if replace:
            for kind in (*many, "lease"):
                delete_matching(self._client, self._final.pattern[:-1] + kind + ":*")
        for kind in many:
            for keys in matching(self._client, self._staged.pattern[:-1] + kind + ":*"):
                with self._client.pipeline(transaction=True) as pipe:
                    for key in keys:
                        pipe.rename(key, self._final_of(key))
                    pipe.execute()
                self._on_page()
        for _ in range(_MAX_ATTEMPTS):
            staged = [key for keys in matching(self._client, self._staged.pattern) for key in keys]
            with self._client.pipeline(transaction=True) as pipe:
                pipe.watch(self._final.changes)
                if not replace and pipe.exists(self._final.changes):
                    raise BackupError(f"the namespace {self.name} was created during the restore; stop the services")
                old = [key for keys in matching(self._client, self._final.pattern) for key in keys]
                pipe.multi()
                self._queue_swap(pipe, old, staged, many)
                try:
                    pipe.execute()
                    return
                except redis.WatchError:
                    continue
        raise BackupError(f"the namespace {self.name} changes all the time; stop the services")

    def _queue_swap(self, pipe: RedisPipeline, old: list[bytes], staged: list[bytes], moved: tuple[str, ...]) -> None:
        kept = tuple(f"{self._final.pattern[:-1]}{kind}:".encode() for kind in moved)
        for key in old:
            if not key.startswith(kept):
                pipe.unlink(key)
        for key in staged:
            pipe.rename(key, self._final_of(key))

    def _final_of(self, key: bytes) -> bytes:
        return self._final.prefix.encode() + key.removeprefix(self._staged.prefix.encode())

    # -- internals ----------------------------------------------------------------------------------------------------

    def _check_dim(self, fingerprint: str, dim: int) -> None:
        if self._dims.setdefault(fingerprint, dim) != dim:
            raise BackupError(f"vectors of encoder {fingerprint} in namespace {self.name} differ in length")

    def _flush(self) -> None:
        writes = LabelWrites(self._staged)
        for label_id, entry in self._batch.items():
            writes.put_record(entry.label)
            writes.drop_vectors(label_id, self._dims.keys() - entry.vectors.keys())
            for fingerprint, raw in entry.vectors.items():
                writes.put_vector(fingerprint, label_id, raw)
        self._batch.clear()
        self._batch_bytes = 0
        self._write(writes)
        self._on_page()

    def _write(self, writes: LabelWrites) -> None:
        with self._client.pipeline(transaction=True) as pipe:
            writes.queue(pipe)
            pipe.execute()

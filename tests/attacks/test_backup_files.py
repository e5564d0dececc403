"""Damaged and forged backup files: refused with a reason, and nothing is written."""

from __future__ import annotations

import base64
import copy
import gzip
import io
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis

from support.backups import backup_of, backup_with, lines_of
from support.stores import add, vector_of
from vidlex.service.access.access_control import create_key_record
from vidlex.service.access.key_store import KeyStore
from vidlex.service.backup.lines import MAX_LINE_BYTES, BackupError
from vidlex.service.backup.restore import check_file, restore
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.model_pointer import ModelName, ModelPointer, ModelPointerStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.vectors import encode_vector
from vidlex.service.labels.store.verify import verify_namespace

Lines = list[dict[str, Any]]
INFINITE = base64.b64encode(encode_vector(np.array([np.inf], np.float32))).decode()


@pytest.fixture
def file(client: redis.Redis) -> io.BytesIO:
    store = LabelStore(client)
    add(store, "animal", metadata={"x": 1})
    add(store, "dog", aliases=("hound",), parents=("animal",), threshold=0.5)
    store.put_vectors("encoder-2", {store.list().data[0].id: vector_of("x", 3)})
    KeyStore(client).add(create_key_record(scope="write", namespace=None, name="k")[0])
    ModelPointerStore(client).compare_and_set(None, ModelPointer("a", ModelName("a", "b", "c")))
    with store.idempotency.hold("key", {}):
        client.hset(client.keys("*request*")[0], "item:0", "x")
    found, _ = backup_of(client)
    client.flushall()
    return found


def of_kind(lines: Lines, kind: str, number: int = 0) -> dict[str, Any]:
    return [line for line in lines if line["kind"] == kind][number]


def label(lines: Lines, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(lines, "label", number)["label"]
    return found


def test_the_untouched_file_is_accepted(client: redis.Redis, file: io.BytesIO) -> None:
    assert check_file(backup_with(lines_of(file))).num_labels == 2
    assert restore(client, file).num_labels == 2


FORGERIES: dict[str, tuple[Callable[[Lines], Any], str]] = {
    "other format": (lambda x: x[0].update(kind="other"), "not a backup"),
    "newer version": (lambda x: x[0].update(version=2), "version 2"),
    "ids of stores": (lambda x: x[0].update(store_ids=[1]), "ids of the store"),
    "unknown kind": (lambda x: x.insert(2, {"kind": "script"}), "kind is unknown"),
    "no kind": (lambda x: x.insert(2, {}), "member is missing"),
    "two sections of access": (lambda x: x.insert(2, of_kind(x, "access")), "twice"),
    "key without the section": (lambda x: x.insert(1, of_kind(x, "key")), "place"),
    "key with another digest": (lambda x: of_kind(x, "key")["record"].update(digest="x"), "another type"),
    "key with a rate of text": (lambda x: of_kind(x, "key")["record"].update(requests_per_second="x"), "rate"),
    "key with a negative time": (lambda x: of_kind(x, "key")["record"].update(expires_at_ms=-1), "out of range"),
    "key of a bad namespace": (lambda x: of_kind(x, "key")["record"].update(namespace="A B"), "namespace"),
    "pointer without a model": (lambda x: of_kind(x, "model")["pointer"].update(served=None), "pointer"),
    "namespace twice": (lambda x: x.append(of_kind(x, "namespace")), "twice"),
    "name of a namespace": (lambda x: of_kind(x, "namespace").update(name="a:{b}"), "namespace"),
    "namespace in a namespace": (lambda x: x.insert(-1, {"kind": "namespace", "name": "b"}), "place"),
    "label outside": (lambda x: x.append(of_kind(x, "label")), "place"),
    "no end of the namespace": (lambda x: x.pop(), "has no end"),
    "id": (lambda x: label(x).update(id="lbl_../../x"), "id"),
    "id of another type": (lambda x: label(x).update(id=["x"]), "type"),
    "empty name": (lambda x: label(x).update(name=""), "name"),
    "NUL in a name": (lambda x: label(x).update(name="a\0b"), "name"),
    "half a character": (lambda x: label(x).update(name="\ud800"), "name"),
    "long name": (lambda x: label(x).update(name="x" * 10_000), "name"),
    "many aliases": (lambda x: label(x).update(aliases=["x"] * 100), "aliases"),
    "alias of another type": (lambda x: label(x).update(aliases=[{}]), "aliases"),
    "parent that is no id": (lambda x: label(x).update(parents=["animal"]), "parent"),
    "threshold": (lambda x: label(x).update(threshold=1.5), "threshold"),
    "metadata of another type": (lambda x: label(x).update(metadata=[]), "metadata"),
    "long metadata": (lambda x: label(x).update(metadata={"x": "x" * 300_000}), "metadata"),
    "infinite number": (lambda x: label(x).update(metadata={"x": float("inf")}), "no JSON"),
    "revision": (lambda x: label(x).update(revision=2**63), "out of range"),
    "time of text": (lambda x: label(x).update(created_at_ms="x"), "out of range"),
    "vector": (lambda x: of_kind(x, "label")["vectors"].update({"encoder-2": "AAAAAAAA"}), "vector"),
    "vector without numbers": (lambda x: of_kind(x, "label")["vectors"].update({"encoder-2": ""}), "vector"),
    "infinite vector": (lambda x: of_kind(x, "label")["vectors"].update({"encoder-2": INFINITE}), "vector"),
    "vector that is no base64": (lambda x: of_kind(x, "label")["vectors"].update({"encoder-2": "?"}), "vector"),
    "fingerprint": (lambda x: of_kind(x, "label")["vectors"].update({"a b": ""}), "type"),
    "generation": (lambda x: x[-1].update(generations={"x": -1}), "out of range"),
    "request": (lambda x: of_kind(x, "request").update(digest="*"), "digest"),
    "time of a request": (lambda x: of_kind(x, "request").update(expires_at_ms=-1), "out of range"),
    "removed of another type": (lambda x: x.insert(-1, {"kind": "removed", "ids": [1]}), "id"),
}  # fmt: skip

# What only the labels together show; the store's other prefix is cleaned up.
CONTRADICTIONS: dict[str, tuple[Callable[[Lines], Any], str]] = {
    "a label too few": (lambda x: x.remove(of_kind(x, "label", 1)), "1 labels in place of 2"),
    "wrong count": (lambda x: x[-1].update(num_labels=3), "2 labels in place of 3"),
    "two labels of one name": (lambda x: label(x).update(name="ANIMAL"), "same name"),
    "unknown parent": (lambda x: label(x).update(parents=["lbl_" + "0" * 24]), "parent"),
    "label newer than the namespace": (lambda x: label(x).update(revision=99), "newer"),
    "vectors of two lengths": (
        lambda x: of_kind(x, "label", 1)["vectors"].update(copy.deepcopy(of_kind(x, "label")["vectors"]))
        or of_kind(x, "label", 1)["vectors"].update({"encoder-1": of_kind(x, "label")["vectors"]["encoder-2"]}),
        "differ in length",
    ),
    "generation of another length": (lambda x: x[-1].update(generations={"encoder-1": 7}), "differ in length"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FORGERIES, *CONTRADICTIONS])
def test_a_forged_file_writes_nothing(client: redis.Redis, file: io.BytesIO, name: str) -> None:
    forge, reason = (FORGERIES | CONTRADICTIONS)[name]
    lines = lines_of(file)
    forge(lines)
    add(LabelStore(client), "precious")
    forged = backup_with(lines)
    if name in CONTRADICTIONS:
        check_file(forged)
    before = {key: client.dump(key) for key in client.keys("vidlex:*")}
    with pytest.raises(BackupError, match=reason):
        restore(client, forged, force=True)
    assert {key: client.dump(key) for key in client.keys("vidlex:*")} == before
    assert not [key for key in client.keys("*") if b"staged" in key or b"restore" in key]


def test_damage_of_any_kind_is_found_before_anything_is_written(client: redis.Redis, file: io.BytesIO) -> None:
    raw = file.getvalue()
    rng = random.Random(20)
    damaged = [raw[:end] for end in (0, 1, 10, 20, len(raw) // 2, len(raw) - 9, len(raw) - 8, len(raw) - 1)]
    damaged += [raw + b"x" * 40, raw + raw, raw[: len(raw) // 2] + raw]
    for _ in range(200):
        one = bytearray(raw)
        one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(one))
    for case in damaged:
        try:
            restore(client, io.BytesIO(case))
        except BackupError as error:
            assert str(error)
            assert client.dbsize() == 0
        else:
            # Bits of gzip's header, such as the operating system's number, mean nothing.
            assert gzip.decompress(case) == gzip.decompress(raw)
            client.flushall()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends in line 1"),
        (b"\x00" * 100 + b"\n", "not a backup"),
        (b"[1]\n", "no JSON object"),
        (b'{"kind":"vidlex-backup","version":1,"x":' + b"[" * 100_000 + b"\n", "not a backup"),
        (b'{"kind":"vidlex-backup","version":1,"x":' + b"9" * 5000 + b"}\n", "not a backup"),
        (b"x" * (MAX_LINE_BYTES + 1), "longer than"),
    ],
)
def test_hostile_first_lines(content: bytes, reason: str) -> None:
    with pytest.raises(BackupError, match=reason):
        check_file(io.BytesIO(gzip.compress(content)))


def test_a_file_that_unpacks_to_gigabytes_is_read_in_little_memory() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as bomb:
        for _ in range(256):
            bomb.write(b" " * 2**20)  # one line of 256 MiB
    tracemalloc.start()
    with pytest.raises(BackupError, match="longer than"):
        check_file(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(packed.getvalue()) < 2**20 and peak < 4 * MAX_LINE_BYTES


def test_a_label_that_repeats_without_end_takes_no_memory(client: redis.Redis, file: io.BytesIO) -> None:
    lines = lines_of(file)
    again = of_kind(lines, "label", 1)
    lines[-1:-1] = [again] * 5000 + [{"kind": "again"}] + [of_kind(lines, "label"), again] + [again] * 500
    assert restore(client, backup_with(lines)).num_labels == 2
    assert client.hlen("vidlex:{default}:records") == 2


def test_secrets_are_not_in_a_backup(client: redis.Redis) -> None:
    record, secret = create_key_record(scope="admin", namespace=None, name="k")
    KeyStore(client).add(record)
    text = gzip.decompress(backup_of(client)[0].getvalue())
    assert record.digest.encode() in text
    assert secret.encode() not in text and secret.rpartition("_")[2].encode() not in text
    assert base64.b64encode(secret.encode()) not in text


_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    "",
    "x",
    "\ud800",
    "\0",
    [],
    [[]],
    ["x"],
    [1],
    {},
    {"x": 1},
    {"": []},
]


def mutate(value: Any, rng: random.Random) -> Any:
    """``value`` with one change somewhere inside it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return {f"{k}?" if k == key else k: v for k, v in value.items()}
        return value | {key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], mutate(value[i], rng), *value[i + 1 :]]
    return rng.choice(_VALUES)


def test_random_forgeries_are_restored_or_refused(client: redis.Redis, file: io.BytesIO) -> None:
    """And whatever is restored can be read, listed and backed up again."""
    lines = lines_of(file)
    rng = random.Random(20)
    num_restored = 0
    for _ in range(500):
        forged = list(lines)
        i = rng.randrange(len(forged))
        if rng.random() < 0.8:
            forged[i] = mutate(forged[i], rng)
        elif rng.random() < 0.5:
            del forged[i]
        else:
            forged.insert(rng.randrange(len(forged) + 1), forged[i])
        try:
            restore(client, backup_with(forged))
        except BackupError:
            assert not client.keys("vidlex:*") and not client.keys("*restore*")
        else:
            num_restored += 1
            for namespace in list_namespaces(client):
                assert verify_namespace(client, namespace) == []
                LabelStore(client, namespace).list(10)
            KeyStore(client).list()
            again = backup_of(client)[0]
            client.flushall()
            restore(client, again)
        client.flushall()
    assert 5 < num_restored < 400

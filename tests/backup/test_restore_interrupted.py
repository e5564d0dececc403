"""Restores that are killed, and stores that are not empty, or are used by others meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from support.backups import backup_of, content_of, labels_in
from support.processes import until
from support.replicas import Replica, StoreProcess
from support.stores import FINGERPRINT, add, vector_of
from vidlex.migrations.runner import migrate
from vidlex.service.access.access_control import create_key_record
from vidlex.service.access.key_store import KeyStore
from vidlex.service.backup import restore as restore_module
from vidlex.service.backup.lines import BackupError
from vidlex.service.backup.restore import abandon, interrupted_restore, restore
from vidlex.service.backup.staging import StagedNamespace
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.store.identity import ensure_store_id
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.labels.store.verify import verify_namespace


@pytest.fixture
def process(short_folder: Path) -> Iterator[StoreProcess]:
    store = StoreProcess(short_folder / "store")
    store.start()
    yield store
    store.close()


def fill(client: redis.Redis, num: int, namespaces: tuple[str, ...] = ("default", "zoo")) -> None:
    migrate(client)
    for namespace in namespaces:
        store = LabelStore(client, namespace)
        add(store, "animal", categories=("thing",))
        items = [(NewLabel(f"label {i}", parents=("animal",)), vector_of(f"label {i}")) for i in range(num)]
        store.add_many(items, FINGERPRINT)
    KeyStore(client).add(create_key_record(scope="read", namespace=None, name="k")[0])


def command(file: Path, store: StoreProcess, *options: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    words = [sys.executable, "-m", "vidlex.service.cli", "restore", str(file), *options]
    return subprocess.Popen(
        words,
        env=environment | {"VIDLEX_REDIS_URL": store.url},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.timeout(600)
def test_kill_9_in_the_middle(client: redis.Redis, process: StoreProcess, tmp_path: Path) -> None:
    """A real server. The store says what happened, no service starts with it, and the restore can be repeated."""
    fill(client, 4000)
    file = tmp_path / "backup"
    file.write_bytes(backup_of(client)[0].getvalue())
    target = process.client()
    killed = command(file, process)
    until(lambda: bool(target.hlen("vidlex-staged:{default}:records")) or killed.poll() is not None)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert interrupted_restore(target) == "staging"
    assert list_namespaces(target) == []
    with pytest.raises(StoreUnavailable, match="being restored"):
        LabelStore(target).check_schema()
    with pytest.raises(BackupError, match="has not ended"):
        backup_of(target)
    replica = Replica(tmp_path / "replica", process.url)
    replica.start()
    try:
        process.kill()  # the server too
        process.start()
        repeated = command(file, process)
        out, errors = repeated.communicate(timeout=300)
        assert repeated.returncode == 0, errors
        assert "8002 labels in 2 namespaces, 1 API keys" in out
        replica.wait()  # it waited for the end of the restore
    finally:
        replica.kill()
    for namespace in ("default", "zoo"):
        vectors = f"vidlex:{{{namespace}}}:vectors:{FINGERPRINT}"
        assert labels_in(target, namespace) == labels_in(client, namespace)
        assert target.hgetall(vectors) == client.hgetall(vectors)  # the service adds those of its own model
        assert verify_namespace(target, namespace) == []
    assert KeyStore(target).load()[1] == KeyStore(client).load()[1]
    assert interrupted_restore(target) is None and not target.keys("vidlex-staged*")


@pytest.mark.timeout(600)
def test_kill_9_of_the_store_in_the_middle(client: redis.Redis, process: StoreProcess, tmp_path: Path) -> None:
    fill(client, 4000)
    file = tmp_path / "backup"
    file.write_bytes(backup_of(client)[0].getvalue())
    running = command(file, process)
    target = process.client()
    until(lambda: bool(target.hlen("vidlex-staged:{default}:records")) or running.poll() is not None)
    process.kill()
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1 and "store" in errors and "Traceback" not in errors
    process.start()
    assert interrupted_restore(target) == "staging"
    restore(target, file.open("rb"))
    assert content_of(target) == content_of(client)


class Killed(BaseException): ...


@pytest.mark.parametrize("at", ["first namespace", "second namespace", "end"])
def test_killed_while_it_publishes(
    client: redis.Redis, process: StoreProcess, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Then only a restore helps, which needs no --force."""
    fill(client, 300)
    file, _ = backup_of(client)
    target = process.client()
    fill(target, 10, ("default", "other"))
    real = StagedNamespace.publish

    def publish(self: StagedNamespace, **options: Any) -> None:
        if at == f"{'first' if self.name == 'default' else 'second'} namespace":
            raise Killed
        real(self, **options)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(StagedNamespace, "publish", publish)
        patch.setattr(restore_module._Restore, "_take_over_identity", lambda self: (_ for _ in ()).throw(Killed))
        restore(target, file, force=True)
    assert interrupted_restore(target) == "publishing"
    with pytest.raises(StoreUnavailable, match="being restored"):
        LabelStore(target).check_schema()
    with pytest.raises(BackupError, match="run it again"):
        abandon(target)
    restore(target, file)
    expected = content_of(client)
    assert content_of(target) == expected
    assert interrupted_restore(target) is None
    assert verify_namespace(target) == [] == verify_namespace(target, "zoo")


def test_a_store_with_anything_in_it_is_refused(client: redis.Redis, process: StoreProcess) -> None:
    fill(client, 3)
    file, _ = backup_of(client)
    target = process.client()
    for use in (
        lambda: add(LabelStore(target), "dog"),
        lambda: KeyStore(target).add(create_key_record(scope="read", namespace=None, name="k")[0]),
    ):
        target.flushall()
        use()
        before = {key: target.dump(key) for key in target.keys("*")}
        with pytest.raises(BackupError, match="not empty; --force"):
            restore(target, file)
        assert {key: target.dump(key) for key in target.keys("*")} == before


def test_force_replaces_everything(client: redis.Redis, process: StoreProcess) -> None:
    fill(client, 3)
    target = process.client()
    fill(target, 700, ("default", "other"))
    target.set("another application", 1)
    revision = KeyStore(target).revision()
    file, _ = backup_of(client)
    restore(target, file, force=True)
    assert content_of(target) == content_of(client)
    assert target.get("another application") == b"1"
    assert verify_namespace(target) == []
    assert KeyStore(target).revision() > max(revision, KeyStore(client).revision())  # so that replicas reload


def test_keys_stay_required_if_the_backup_has_none(client: redis.Redis, process: StoreProcess) -> None:
    """Without a trace of keys a service on loopback would be open to everyone."""
    fill(client, 3)
    client.delete("vidlex-access:{access}:keys", "vidlex-access:{access}:revision")
    target = process.client()
    fill(target, 3)
    restore(target, backup_of(client)[0], force=True)
    assert KeyStore(target).load()[1] == {} and KeyStore(target).revision() > 0


def test_an_abandoned_restore_leaves_the_store_as_it_was(
    client: redis.Redis, process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 300)
    file, _ = backup_of(client)
    target = process.client()
    fill(target, 5)
    before = content_of(target)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(StagedNamespace, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        restore(target, file, force=True)
    assert interrupted_restore(target) == "staging" and target.keys("vidlex-staged*")
    with pytest.raises(BackupError, match="not empty"):  # what is there is still the old content
        restore(target, file)
    abandon(target)
    assert content_of(target) == before
    LabelStore(target).check_schema()
    assert not target.keys("vidlex-staged*")
    with pytest.raises(BackupError, match="no restore"):
        abandon(target)


def test_a_namespace_that_appears_meanwhile_is_not_overwritten(
    client: redis.Redis, process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 3)
    file, _ = backup_of(client)
    target = process.client()
    real = StagedNamespace.publish

    def publish(self: StagedNamespace, **options: Any) -> None:
        if self.name == "zoo":
            add(LabelStore(target, "zoo"), "precious")
        real(self, **options)

    monkeypatch.setattr(StagedNamespace, "publish", publish)
    with pytest.raises(BackupError, match="stop the services"):
        restore(target, file)
    assert [label.name for label in labels_in(target, "zoo")] == ["precious"]


def test_one_restore_at_a_time(client: redis.Redis, process: StoreProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client, 3)
    file, _ = backup_of(client)
    target = process.client()
    monkeypatch.setattr(restore_module, "_LOCK_MS", 300)
    target.set("vidlex-schema:{schema}:restore-lock", "someone")
    with pytest.raises(BackupError, match="in progress"):
        restore(target, file)
    assert list_namespaces(target) == []
    target.pexpire("vidlex-schema:{schema}:restore-lock", 200)  # as that of a killed one
    restore(target, file)
    assert len(labels_in(target)) == 4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_own_id", [False, True])
def test_a_service_accepts_its_lost_store_once_it_is_restored(
    process: StoreProcess, tmp_path: Path, has_own_id: bool
) -> None:
    """It had latched itself closed; with an id of its own, the store is that of another service meanwhile."""
    replica = Replica(tmp_path / "replica", process.url)
    target = process.client()
    try:
        replica.start()
        replica.wait()
        posted = httpx.post(f"{replica.url}/labels", json={"name": "red"}, timeout=60, trust_env=False)
        assert posted.status_code == 201
        file, _ = backup_of(target)
        target.flushall()
        until(lambda: httpx.get(f"{replica.url}/readyz", timeout=60, trust_env=False).status_code == 503)
        if has_own_id:
            migrate(target)
            ensure_store_id(target)
        restore(target, file)
        if has_own_id:
            replica.kill()
            replica.start()
        replica.wait()
        found = httpx.get(f"{replica.url}/labels", timeout=60, trust_env=False).json()["data"]
        assert found == [posted.json()]
        again = httpx.post(f"{replica.url}/labels", json={"name": "blue"}, timeout=60, trust_env=False)
        assert again.status_code == 201
    finally:
        replica.kill()

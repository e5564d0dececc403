"""Under a running service, a store loses its data, evicts, is full, is read-only, hangs, or refuses the password."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from typer.testing import CliRunner

from support.live import live_process, live_service, refused_start
from support.processes import until
from support.redis_process import RedisProcess
from vidlex.service.cli import app

runner = CliRunner()


def vidlex(*arguments: str, **environment: str) -> Any:
    return runner.invoke(app, list(arguments), env={"COLUMNS": "200", "VIDLEX_API_KEY": "", **environment})


@contextmanager
def client_of(url: str, key: str = "") -> Iterator[httpx.Client]:
    headers = {"X-API-Key": key} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def store_check(url: str) -> dict[str, Any]:
    """Of /readyz, with its status."""
    answer = httpx.get(f"{url}/readyz", timeout=60, trust_env=False)
    body = answer.json()
    return {"status": answer.status_code, **body["checks"]["store"]}


def new_key(url: str) -> str:
    with client_of(url) as client:
        return str(client.post("/keys", json={"scope": "admin", "namespace": "*"}).json()["key"])


def test_an_emptied_store_stays_closed_and_has_a_way_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    kept = tmp_path / "kept"
    with RedisProcess(tmp_path / "redis") as store:
        with live_process(data, VIDLEX_REDIS_URL=store.url) as (url, _):
            key = new_key(url)
            with client_of(url, key) as client:
                assert client.post("/labels", json={"name": "red"}).status_code == 201
            store.kill()
            shutil.copytree(store.folder, kept)
            shutil.rmtree(store.folder / "appendonlydir")
            store.start()
            with client_of(url) as anonymous, client_of(url, key) as client:
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:  # no window in which it is open, or acknowledges
                    assert anonymous.get("/labels").status_code in (401, 503)
                    assert anonymous.post("/labels", json={"name": "anonymous"}).status_code in (401, 503)
                    assert client.post("/labels", json={"name": f"lost {time.monotonic()}"}).status_code == 503
                    time.sleep(0.05)  # below the rate limit
                refused = client.post("/labels", json={"name": "lost"}).json()
                assert refused["code"] == "store_lost"
                until(lambda: not store_check(url)["ok"])
                assert "lost its data" in store_check(url)["detail"]
                assert client.post("/keys", json={"scope": "read", "namespace": "*"}).status_code == 503
            assert store.client().dbsize() == 0  # nothing was written to it
            # Way back 1: the data returns, and nothing else needs to be done.
            store.kill()
            shutil.rmtree(store.folder / "appendonlydir")
            shutil.copytree(kept / "appendonlydir", store.folder / "appendonlydir")
            store.start()
            until(lambda: store_check(url)["status"] == 200)
            with client_of(url, key) as client:
                assert [label["name"] for label in client.get("/labels").json()["data"]] == ["red"]
                assert client.post("/labels", json={"name": "blue"}).status_code == 201
        # Way back 2: an operator accepts the empty store. Until then, it is refused.
        store.kill()
        shutil.rmtree(store.folder / "appendonlydir")
        store.start()
        assert "vidlex store accept" in refused_start(data, VIDLEX_REDIS_URL=store.url)
        assert store.client().dbsize() == 0
        checked = vidlex("store", "check", "--json", "--data-dir", str(data), VIDLEX_REDIS_URL=store.url)
        assert checked.exit_code == 1 and "lost its data" in checked.stdout
        accepted = vidlex("store", "accept", "--data-dir", str(data), VIDLEX_REDIS_URL=store.url)
        assert accepted.exit_code == 0 and "vidlex keys create" in accepted.stdout, accepted.output
        with live_service(data, VIDLEX_REDIS_URL=store.url) as url, client_of(url) as client:
            assert client.post("/labels", json={"name": "red"}).status_code == 201


def test_a_lost_schema_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with RedisProcess(tmp_path / "redis") as store:
        with live_service(data, VIDLEX_REDIS_URL=store.url) as url, client_of(url) as client:
            assert client.post("/labels", json={"name": "red"}).status_code == 201
            store.client().delete("vidlex-schema:{schema}:version")
            until(lambda: not store_check(url)["ok"])
            assert client.post("/labels", json={"name": "blue"}).json()["code"] == "store_lost"
        assert "vidlex store accept" in refused_start(data, VIDLEX_REDIS_URL=store.url)
        assert vidlex("store", "accept", "--data-dir", str(data), VIDLEX_REDIS_URL=store.url).exit_code == 0
        with live_service(data, VIDLEX_REDIS_URL=store.url) as url, client_of(url) as client:
            assert [label["name"] for label in client.get("/labels").json()["data"]] == ["red"]
        assert vidlex("labels", "verify", VIDLEX_REDIS_URL=store.url).exit_code == 0


@pytest.mark.parametrize("lost", ["store", "store/appendonlydir"])
def test_an_embedded_store_without_its_files_is_refused(tmp_path: Path, lost: str) -> None:
    data = tmp_path / "data"
    with live_service(data) as url, client_of(url) as client:
        assert client.post("/labels", json={"name": "red"}).status_code == 201
    (data / lost).rename(tmp_path / "lost")
    assert "vidlex store" in refused_start(data)
    shutil.rmtree(data / lost, ignore_errors=True)
    (tmp_path / "lost").rename(data / lost)
    with live_service(data) as url, client_of(url) as client:
        assert [label["name"] for label in client.get("/labels").json()["data"]] == ["red"]
    shutil.rmtree(data / lost)
    accepted = vidlex("store", "accept", "--start-empty", "--data-dir", str(data))
    assert accepted.exit_code == 0, accepted.output
    with live_service(data) as url, client_of(url) as client:
        assert client.get("/labels").json()["data"] == []


def test_a_restore_into_the_emptied_store_brings_running_services_back(tmp_path: Path) -> None:
    data, file = tmp_path / "data", str(tmp_path / "labels.backup")
    with RedisProcess(tmp_path / "redis") as store:
        environment = {"VIDLEX_REDIS_URL": store.url, "VIDLEX_DATA_DIR": str(data)}
        with live_service(data, VIDLEX_REDIS_URL=store.url) as url:
            key = new_key(url)
            with client_of(url, key) as client, client_of(url) as anonymous:
                assert client.post("/labels", json={"name": "red"}).status_code == 201
                assert vidlex("backup", file, **environment).exit_code == 0
                store.client().flushall()
                until(lambda: not store_check(url)["ok"])
                restored = vidlex("restore", file, **environment)
                assert restored.exit_code == 0, restored.output
                until(lambda: store_check(url)["status"] == 200)
                assert [label["name"] for label in client.get("/labels").json()["data"]] == ["red"]
                assert client.post("/labels", json={"name": "blue"}).status_code == 201
                assert anonymous.get("/labels").status_code == 401


def test_a_flushed_store_acknowledges_nothing(tmp_path: Path) -> None:
    with (
        RedisProcess(tmp_path / "redis") as store,
        live_service(tmp_path / "data", VIDLEX_REDIS_URL=store.url) as url,
        client_of(url, new_key(url)) as client,
    ):
        assert client.post("/labels", json={"name": "red"}).status_code == 201
        store.client().flushall()
        assert client.post("/labels", json={"name": "lost"}).json()["code"] == "store_lost"
        until(lambda: not store_check(url)["ok"])
        assert httpx.get(f"{url}/labels", timeout=60, trust_env=False).status_code in (401, 503)
        assert store.client().dbsize() == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "volatile-ttl"),
        ({"appendonly": "no"}, "append-only"),
    ],
)
def test_a_store_that_may_lose_labels_is_refused(tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    with RedisProcess(tmp_path / "redis", **settings) as store:
        printed = refused_start(tmp_path / "data", VIDLEX_REDIS_URL=store.url)
        assert reason in printed and "--allow-volatile-store" in printed
        found = json.loads(vidlex("doctor", "--json", VIDLEX_REDIS_URL=store.url, VIDLEX_MODEL="dummy").stdout)
        errors = [f["detail"] for f in found["findings"] if f["what"] == "label store" and f["status"] == "error"]
        assert any(reason in detail for detail in errors), found
        environment = {"VIDLEX_REDIS_URL": store.url, "VIDLEX_ALLOW_VOLATILE_STORE": "true"}
        with live_service(tmp_path / "data", **environment) as url, client_of(url) as client:
            assert client.post("/labels", json={"name": "red"}).status_code == 201


def test_a_store_that_begins_to_evict_is_not_ready(tmp_path: Path) -> None:
    with (
        RedisProcess(tmp_path / "redis") as store,
        live_service(tmp_path / "data", VIDLEX_REDIS_URL=store.url) as url,
        client_of(url) as client,
    ):
        store.client().config_set("maxmemory-policy", "allkeys-lfu")
        until(lambda: not store_check(url)["ok"])
        assert "allkeys-lfu" in store_check(url)["detail"]
        assert client.post("/labels", json={"name": "red"}).json()["code"] == "store_volatile"
        store.client().config_set("maxmemory-policy", "noeviction")
        until(lambda: store_check(url)["status"] == 200)
        assert client.post("/labels", json={"name": "red"}).status_code == 201


def test_a_user_without_config_is_checked_by_info(tmp_path: Path) -> None:
    users = tmp_path / "users.acl"
    rules = "resetchannels ~vidlex* -@all +@read +@write +@transaction +@connection -@dangerous"
    users.write_text(f"user default off\nuser vidlex on >sesame {rules} +info\nuser blind on >sesame {rules}\n")
    settings = {"aclfile": str(users)}
    with RedisProcess(tmp_path / "a", user="vidlex", password="sesame", **settings) as store:
        url = f"unix://vidlex:sesame@{store.socket}"
        with live_service(tmp_path / "data", VIDLEX_REDIS_URL=url) as service, client_of(service) as client:
            assert client.post("/labels", json={"name": "red"}).status_code == 201
        blind = refused_start(tmp_path / "other", VIDLEX_REDIS_URL=f"unix://blind:sesame@{store.socket}")
        assert "+info" in blind
    with RedisProcess(tmp_path / "b", maxmemory_policy="allkeys-random", **settings) as store:
        url = f"unix://vidlex:sesame@{store.socket}"
        assert "allkeys-random" in refused_start(tmp_path / "third", VIDLEX_REDIS_URL=url)


@pytest.mark.parametrize(
    ("harm", "heal", "expected", "detail"),
    [
        ({"maxmemory": "1"}, {"maxmemory": "0"}, (507, "store_full"), "OOM"),
        ({"replicaof": "127.0.0.1 1"}, {"replicaof": "no one"}, (503, "store_read_only"), "READONLY"),
        ({"min-replicas-to-write": "1"}, {"min-replicas-to-write": "0"}, (503, "store_read_only"), "NOREPLICAS"),
        ({"requirepass": "other"}, {}, (503, "store_access_denied"), "password"),
    ],
)
def test_refused_writes_are_named(
    tmp_path: Path, harm: dict[str, str], heal: dict[str, str], expected: tuple[int, str], detail: str
) -> None:
    with (
        RedisProcess(tmp_path / "redis") as store,
        live_service(tmp_path / "data", VIDLEX_REDIS_URL=store.url) as url,
        client_of(url) as client,
    ):
        assert client.post("/labels", json={"name": "red"}).status_code == 201
        admin = store.client()
        _configure(admin, harm)
        if "requirepass" in harm:
            admin.client_kill_filter(_type="normal", skipme=True)  # new connections need the password
        answers = [client.post("/labels", json={"name": "blue"}) for _ in range(2)]
        assert (answers[-1].status_code, answers[-1].json()["code"]) == expected, answers[-1].text
        until(lambda: not store_check(url)["ok"])
        assert store_check(url)["status"] == 503 and detail in store_check(url)["detail"], store_check(url)
        if heal:
            _configure(admin, heal)
            until(lambda: store_check(url)["status"] == 200)
            assert client.post("/labels", json={"name": "blue"}).status_code == 201


def _configure(admin: redis.Redis, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        if name == "replicaof":
            admin.execute_command("REPLICAOF", *value.split())
        else:
            admin.config_set(name, value)


def test_a_store_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with (
        RedisProcess(tmp_path / "redis") as store,
        live_service(tmp_path / "data", VIDLEX_REDIS_URL=store.url) as url,
        client_of(url) as client,
    ):
        assert client.post("/labels", json={"name": "red"}).status_code == 201
        store.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            first = client.post("/labels", json={"name": "blue"})
            assert (first.status_code, first.json()["code"]) == (503, "store_unavailable")
            assert time.monotonic() - started < 12  # it was 20 s; one timeout is 5 s
            until(lambda: not store_check(url)["ok"])
            started = time.monotonic()
            for _ in range(5):
                assert client.get("/labels").status_code == 503
            assert time.monotonic() - started < 12  # each of them waited for 20 s
        finally:
            store.signal(signal.SIGCONT)
        until(lambda: store_check(url)["status"] == 200)
        assert client.get("/labels").status_code == 200

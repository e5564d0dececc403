"""A limited key cannot make itself unlimited, somebody can always manage the keys, and no header changes an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from support.live import live_service
from support.serving import assert_problem, serving
from vidlex.service.access import access_control
from vidlex.service.access.access_control import AccessControl, AccessOptions, create_key_record
from vidlex.service.access.key_store import KeyStore
from vidlex.service.http.addresses import client_group

SETTINGS_RATE, SETTINGS_BURST = 50.0, 100


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['key']}"}


@pytest.fixture
def http(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path, rate_limit_per_second=SETTINGS_RATE, rate_limit_burst=SETTINGS_BURST) as client:
        yield client


@pytest.fixture
def root(http: TestClient) -> dict[str, Any]:
    key: dict[str, Any] = http.post("/keys", json={"scope": "admin"}).json()
    return key


def make(http: TestClient, creator: dict[str, Any], **fields: Any) -> Any:
    answer = http.post("/keys", json={"scope": "admin", **fields}, headers=bearer(creator))
    assert answer.status_code == 201, answer.text
    return answer.json()


UNLIMITED = {"requests_per_second": 0, "burst": 10**6, "max_labels": 10**8}


def test_a_limited_admin_makes_no_key_with_more(http: TestClient, root: dict[str, Any]) -> None:
    limits = {"requests_per_second": 7, "burst": 9, "max_labels": 11, "expires_in_seconds": 1000}
    limited = make(http, root, **limits)
    for asked in (UNLIMITED, {}, {"requests_per_second": 8, "burst": 10, "max_labels": 12, "expires_in_seconds": 2000}):
        made = make(http, limited, **asked)
        assert (made["requests_per_second"], made["burst"], made["max_labels"]) == (7, 9, 11)
        assert made["expires_at_ms"] == limited["expires_at_ms"]
    less = make(http, limited, requests_per_second=2, burst=3, max_labels=4, expires_in_seconds=10)
    assert (less["requests_per_second"], less["burst"], less["max_labels"]) == (2, 3, 4)
    assert less["expires_at_ms"] < limited["expires_at_ms"]
    again = make(http, make(http, limited), **UNLIMITED)
    assert (again["requests_per_second"], again["burst"], again["max_labels"]) == (7, 9, 11)


def test_an_admin_of_a_namespace_keeps_to_the_settings(http: TestClient, root: dict[str, Any]) -> None:
    bound = make(http, root, namespace="zoo")
    made = make(http, bound, namespace="zoo", **UNLIMITED)
    assert (made["requests_per_second"], made["burst"]) == (SETTINGS_RATE, SETTINGS_BURST)
    refused = http.post("/keys", json={"scope": "admin"}, headers=bearer(bound))
    assert_problem(refused, 403, "forbidden")


def test_an_unlimited_admin_may_make_any_key(http: TestClient, root: dict[str, Any]) -> None:
    made = make(http, root, **UNLIMITED)
    assert made["requests_per_second"] == 0
    assert made["burst"] == 10**6


def test_keys_of_a_limited_admin_share_its_rate(http: TestClient, root: dict[str, Any]) -> None:
    limited = make(http, root, requests_per_second=0.01, burst=20)
    made = [make(http, limited) for _ in range(5)]
    statuses = [http.get("/labels", headers=bearer(key)).status_code for _ in range(8) for key in made]
    assert statuses.count(200) == 20 - 5
    assert http.get("/labels", headers=bearer(limited)).status_code == 429
    assert http.get("/labels", headers=bearer(root)).status_code == 200


def test_a_limited_admin_makes_a_bounded_number_of_keys(
    http: TestClient, root: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_control, "_MAX_KEYS_OF_LIMITED", 3)
    limited = make(http, root, requests_per_second=1000, burst=1000)
    made = [make(http, limited) for _ in range(3)]
    refused = http.post("/keys", json={"scope": "read"}, headers=bearer(made[0]))
    assert_problem(refused, 403, "forbidden")
    assert http.delete(f"/keys/{made[1]['id']}", headers=bearer(limited)).status_code == 204
    make(http, limited)


def test_the_last_admin_stays(http: TestClient, root: dict[str, Any]) -> None:
    for lesser in ({"namespace": "zoo"}, {"expires_in_seconds": 1000}, {"scope": "write"}):
        make(http, root, **lesser)
    assert_problem(http.delete(f"/keys/{root['id']}", headers=bearer(root)), 409, "last_admin_key")
    other = make(http, root)
    assert http.delete(f"/keys/{root['id']}", headers=bearer(other)).status_code == 204
    assert_problem(http.delete(f"/keys/{other['id']}", headers=bearer(other)), 409, "last_admin_key")
    assert http.get("/keys", headers=bearer(other)).status_code == 200


def test_an_admin_of_the_key_file_counts(tmp_path: Path, client: Any) -> None:
    _, text = create_key_record(scope="admin", namespace=None)
    (tmp_path / "keys").write_text(f"{text} scope=admin\n")
    stored, _ = create_key_record(scope="admin", namespace=None)
    access = AccessControl(AccessOptions(key_file=tmp_path / "keys"))
    KeyStore(client).add(stored)
    access.attach(KeyStore(client))
    try:
        access.revoke(stored.id, namespace=None)
        assert KeyStore(client).list() == []
    finally:
        access.close()


WRONG_KEY = "vdx_0123456789ab_" + "0" * 64


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{create_key_record(scope='admin', namespace=None)[1]} scope=admin\n")
    return path


def statuses_of_wrong_keys(url: str) -> list[int]:
    statuses = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for number in range(60):
            headers = {"X-API-Key": WRONG_KEY, "X-Forwarded-For": f"10.0.{number}.1"}
            statuses.append(client.get("/labels", headers=headers).status_code)
    return statuses


def test_forwarded_addresses_do_not_evade_the_limit_of_wrong_keys(tmp_path: Path, key_file: Path) -> None:
    with live_service(tmp_path / "data", VIDLEX_API_KEYS_FILE=str(key_file)) as url:
        assert 429 in statuses_of_wrong_keys(url)


@pytest.mark.parametrize("proxies", ['["127.0.0.1"]', '["10.0.0.0/8", "127.0.0.0/8"]'])
def test_a_trusted_proxy_names_its_clients(tmp_path: Path, key_file: Path, proxies: str) -> None:
    with (
        live_service(tmp_path / "data", VIDLEX_API_KEYS_FILE=str(key_file), VIDLEX_TRUSTED_PROXIES=proxies) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        headers = {"X-API-Key": WRONG_KEY, "X-Forwarded-For": "192.0.2.1"}
        statuses = [client.get("/labels", headers=headers).status_code for _ in range(40)]
        assert 429 in statuses
        other = client.get("/labels", headers=headers | {"X-Forwarded-For": "192.0.2.1, 198.51.100.7"})
        assert other.status_code == 401, "the last address is what the proxy saw"


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    groups = {client_group(f"2001:db8:0:1::{number:x}") for number in range(50)}
    assert groups == {"2001:db8:0:1::/64"}
    assert client_group("2001:db8:0:2::1") not in groups
    assert client_group("::ffff:192.0.2.1") == client_group("192.0.2.1") == "192.0.2.1"
    assert client_group("") == ""

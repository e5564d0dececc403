"""Authentication and authorization over HTTP: every documented route, malformed credentials, scopes and limits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from support.serving import add, assert_problem, serving, wait_until
from vidlex.service.access.access_control import POLL_SECONDS, AccessControl, create_key_record
from vidlex.service.access.api_keys import new_key
from vidlex.service.http.guard import PUBLIC_PATHS, required_scope

ADMIN = new_key()[1]
HEALTH = {"/livez", "/readyz"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "keys").write_text(f"{ADMIN} scope=admin\n")
    with serving(folder, api_keys_file=folder / "keys", host="0.0.0.0", rate_limit_per_second=0) as client:
        yield client


@pytest.fixture(scope="module")
def keys(client: TestClient) -> dict[str, str]:
    made = {name: make(client, scope=name) for name in ("read", "write", "admin")}
    return {name: answer["key"] for name, answer in made.items()}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/keys", json=body, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def operations(client: TestClient) -> list[tuple[str, str]]:
    document = client.get("/openapi.json", headers=bearer(ADMIN)).json()
    found = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(found) >= 10
    return [(method, path.replace("{", "x").replace("}", "x")) for method, path in found]


def assert_refused(answer: Any) -> None:
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_route_except_health_requires_a_key(client: TestClient) -> None:
    for method, path in operations(client):
        for prefix in ("", "/v1"):
            answer = client.request(method, prefix + path)
            if path in HEALTH:
                assert answer.status_code in (200, 503)
            else:
                assert_refused(answer)


def test_pages_require_no_key(client: TestClient) -> None:
    docs = {"/docs", "/docs/init.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"}
    assert {"/", "/app.js", "/style.css", *docs, *HEALTH} == PUBLIC_PATHS
    for path in PUBLIC_PATHS:
        assert client.get(path).status_code == 200


def test_every_route_refuses_insufficient_scopes(client: TestClient, keys: dict[str, str]) -> None:
    order = ["read", "write", "admin"]
    for method, path in operations(client):
        if path in HEALTH:
            continue
        required = required_scope(method, path)
        for scope in order:
            answer = client.request(method, path, headers=bearer(keys[scope]))
            if order.index(scope) < order.index(required):
                assert_problem(answer, 403, "forbidden")
            else:
                assert answer.status_code not in (401, 403), (method, path, scope)


@pytest.mark.parametrize(
    "path",
    [
        "/labels/", "//labels", "/./labels", "/v1/v1/labels", "/v1//labels", "/v1", "/V1/labels", "/Labels", "/livez/",
        "//livez", "/livez/../labels", "/livez%2f..%2flabels", "/%6cabels", "/labels%00", "/labels;x",
        "/labels?x=/livez",
        "/readyz#", "/nothing", "/docs/", "/docs/x", "/admin", "/%2e/labels", "/metrics", "/openapi.json",
        "/v1/openapi.json",
        "/keys",
    ],
)  # fmt: skip
def test_path_variants_do_not_bypass_authentication(client: TestClient, path: str) -> None:
    raw = path.replace("#", "%23")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "NONSENSE"):
        answer = client.request(method, f"http://localhost{raw}", follow_redirects=False)
        assert answer.status_code == 401, (method, path, answer.status_code)


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", ADMIN)],
        [("Authorization", f"Basic {ADMIN}")],
        [("Authorization", f"Bearer {ADMIN} {ADMIN}")],
        [("Authorization", f"Bearer {ADMIN},{ADMIN}")],
        [("Authorization", f"Bearer {ADMIN.upper()}")],
        [("Authorization", f"Bearer {ADMIN[:-1]}")],
        [("Authorization", f"Bearer {ADMIN}0")],
        [("Authorization", f"Bearer {ADMIN}"), ("Authorization", f"Bearer {ADMIN}")],
        [("Authorization", "Bearer x"), ("Authorization", f"Bearer {ADMIN}")],
        [("Authorization", "Bearer x"), ("X-API-Key", ADMIN)],
        [("X-API-Key", "x"), ("X-API-Key", ADMIN)],
        [("X-API-Key", "")],
        [("X-API-Key", f"Bearer {ADMIN}")],
        [("Authorization", "Bearer " + "x" * 5000)],
        [("Authorization", "Bearer é".encode("latin-1"))],
        [("Cookie", f"Authorization=Bearer {ADMIN}"), ("X-Forwarded-For", "127.0.0.1"), ("X-Original-URL", "/livez")],
    ],
)
def test_malformed_credentials_are_refused(client: TestClient, headers: list[tuple[str, Any]]) -> None:
    answer = client.get("/labels", headers=headers)
    assert answer.status_code in (401, 429), answer.text
    assert ADMIN not in answer.text


def test_both_headers_are_case_insensitive(client: TestClient) -> None:
    for headers in ({"aUTHORIZATION": f"bEARER   {ADMIN}"}, {"x-api-KEY": ADMIN}):
        assert client.get("/labels", headers=headers).status_code == 200
    assert client.get("/v1/labels", headers=bearer(ADMIN)).status_code == 200


def test_key_in_the_query_is_ignored(client: TestClient) -> None:
    assert_refused(client.get("/labels", params={"api_key": ADMIN, "access_token": ADMIN}))


def test_secret_is_returned_only_on_creation(client: TestClient) -> None:
    made = make(client, scope="read", name="camera", namespace="zoo", requests_per_second=5, max_labels=7)
    listed = client.get("/keys", headers=bearer(ADMIN))
    assert made["key"] not in listed.text and made["key"].rpartition("_")[2] not in listed.text
    (listed_key,) = [key for key in listed.json()["data"] if key["id"] == made["id"]]
    assert (listed_key["name"], listed_key["namespace"], listed_key["max_labels"]) == ("camera", "zoo", 7)
    assert "key" not in listed_key and "digest" not in listed_key


def test_revoked_and_expired_keys_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(client, scope="write")
    assert client.get("/labels", headers=bearer(made["key"])).status_code == 200
    assert client.delete(f"/keys/{made['id']}", headers=bearer(ADMIN)).status_code == 204
    assert_refused(client.get("/labels", headers=bearer(made["key"])))
    assert_problem(client.delete(f"/keys/{made['id']}", headers=bearer(ADMIN)), 404, "not_found")
    short = make(client, scope="read", expires_in_seconds=3600)
    assert client.get("/labels", headers=bearer(short["key"])).status_code == 200
    monkeypatch.setattr(client.app.state.access, "_clock", lambda: time.time() + 3601)  # type: ignore[attr-defined]
    assert_refused(client.get("/labels", headers=bearer(short["key"])))


def test_bound_key_cannot_leave_its_namespace(client: TestClient) -> None:
    zoo, farm = (make(client, scope="admin", namespace=name) for name in ("zoo", "farm"))
    client.headers.clear()
    add_as(client, zoo["key"], "lion")
    for headers in (bearer(farm["key"]), bearer(ADMIN)):
        names = [label["name"] for label in client.get("/labels", headers=headers).json()["data"]]
        assert "lion" not in names
    seen = client.get("/labels", headers=bearer(ADMIN) | {"X-Vidlex-Namespace": "zoo"}).json()["data"]
    assert [label["name"] for label in seen] == ["lion"]
    answer = client.get("/labels", headers=bearer(farm["key"]) | {"X-Vidlex-Namespace": "zoo"})
    assert_problem(answer, 403, "forbidden")
    assert client.get(f"/labels/{seen[0]['id']}", headers=bearer(farm["key"])).status_code == 404
    # Models serve all namespaces.
    for method, target in (("GET", "/models"), ("POST", "/models:activate"), ("POST", "/models:rollback")):
        assert_problem(client.request(method, target, headers=bearer(zoo["key"])), 403, "forbidden")
    # A bound administrator cannot see or create keys of other namespaces.
    assert {k["namespace"] for k in client.get("/keys", headers=bearer(farm["key"])).json()["data"]} == {"farm"}
    assert client.delete(f"/keys/{zoo['id']}", headers=bearer(farm["key"])).status_code == 404
    for namespace in ("*", "zoo"):
        body = {"scope": "read", "namespace": namespace}
        assert_problem(client.post("/keys", json=body, headers=bearer(farm["key"])), 403, "forbidden")
    reader = make(client, scope="read", namespace="farm")
    assert_problem(client.get("/metrics", headers=bearer(reader["key"])), 403, "forbidden")


def add_as(client: TestClient, key: str, *names: str) -> None:
    client.headers["Authorization"] = f"Bearer {key}"
    try:
        add(client, *names)
    finally:
        del client.headers["Authorization"]


def test_rate_limit_per_key_and_its_headers(client: TestClient) -> None:
    made = make(client, scope="read", requests_per_second=0.001, burst=3)
    other = make(client, scope="read")
    answers = [client.get("/labels", headers=bearer(made["key"])) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert [a.headers["ratelimit"].split(";")[1] for a in answers] == ["r=2", "r=1", "r=0", "r=0"]
    assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=3000'
    assert_problem(answers[-1], 429, "rate_limited")
    free = client.get("/labels", headers=bearer(other["key"]))
    assert free.status_code == 200 and "ratelimit" not in free.headers
    assert client.get("/livez", headers=bearer(made["key"])).status_code == 200


def test_label_quota_of_a_key(client: TestClient) -> None:
    made = make(client, scope="write", namespace="small", max_labels=2)
    add_as(client, made["key"], "one", "two")
    answer = client.post("/labels", json={"name": "three"}, headers=bearer(made["key"]))
    assert_problem(answer, 403, "quota_exceeded")
    batch = client.post("/labels", json={"labels": [{"name": "three"}]}, headers=bearer(made["key"])).json()
    assert batch["data"][0]["error"]["code"] == "quota_exceeded"
    larger = {**bearer(ADMIN), "X-Vidlex-Namespace": "small"}
    assert client.post("/labels", json={"name": "three"}, headers=larger).status_code == 201


def test_created_key_inherits_the_label_quota_as_maximum(client: TestClient) -> None:
    owner = bearer(make(client, scope="admin", namespace="small", max_labels=2)["key"])
    for requested, expected in (({}, 2), ({"max_labels": 100}, 2), ({"max_labels": 1}, 1)):
        body = {"scope": "write", "namespace": "small", **requested}
        assert client.post("/keys", json=body, headers=owner).json()["max_labels"] == expected


def test_create_key_refuses_invalid_bodies(client: TestClient) -> None:
    for body in (
        {},
        {"scope": "god"},
        {"scope": "read", "namespace": "A"},
        {"scope": "read", "x": 1},
        {"scope": ["read"]},
        {"scope": "read", "name": "a\x1b[2Jb"},
        {"scope": "read", "name": "a\u202eb"},
    ):
        answer = client.post("/keys", json=body, headers=bearer(ADMIN))
        assert_problem(answer, 422, "invalid_parameter")


def test_body_is_not_read_before_authentication(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1 << 16
            yield b"x" * (1 << 16)

    uploaded = uploaded_bytes(client)
    assert_refused(client.post("/classify", content=endless(), headers={"Content-Type": "multipart/form-data"}))
    assert uploaded_bytes(client) == uploaded


def uploaded_bytes(client: TestClient) -> str:
    (line,) = re.findall("^vidlex_upload_bytes_total .*$", client.get("/metrics", headers=bearer(ADMIN)).text, re.M)
    return str(line)


def test_public_service_without_keys_does_not_start(tmp_path: Path) -> None:
    with serving(tmp_path, host="0.0.0.0", wait=False) as client:
        wait_until(lambda: "start" in client.get("/readyz").json()["checks"], "the failed start is not reported")
        assert_refused(client.get("/labels"))


def test_a_first_key_of_the_store_is_valid_at_once(tmp_path: Path) -> None:
    """As `vidlex keys create --direct` writes it. Without a key the service stays open for up to POLL_SECONDS more."""
    with serving(tmp_path) as client:
        access: AccessControl = client.app.state.access  # type: ignore[attr-defined]
        record, key = create_key_record(scope="admin", namespace=None)
        access.store.add(record)
        made = client.post("/keys", json={"scope": "write", "namespace": "zoo"}, headers=bearer(key))
        assert made.status_code == 201, made.text
        assert_refused(client.get("/labels"))


def test_loopback_is_open_until_the_first_key(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert client.get("/labels").status_code == 200
        assert_problem(client.delete("/keys/nothing"), 404, "not_found")
        assert_problem(client.post("/keys", json={"scope": "everything"}), 422, "invalid_parameter")
        for lesser in ({}, {"scope": "write"}, {"namespace": "zoo"}, {"expires_in_seconds": 60}):
            refused = client.post("/keys", json={"scope": "admin", **lesser} if lesser else {})
            assert_problem(refused, 422, "invalid_parameter")
        time.sleep(2 * POLL_SECONDS)
        assert client.get("/labels").status_code == 200, "a refused request must not enable access control"
        made = client.post("/keys", json={"scope": "admin"}).json()
        assert_refused(client.get("/labels"))
        assert client.get("/labels", headers=bearer(made["key"])).status_code == 200
        last = client.delete(f"/keys/{made['id']}", headers=bearer(made["key"]))
        assert_problem(last, 409, "last_admin_key")
        assert client.get("/labels", headers=bearer(made["key"])).status_code == 200
    with serving(tmp_path, insecure=True) as client:
        assert client.get("/labels").status_code == 200

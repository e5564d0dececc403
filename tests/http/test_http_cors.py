"""Cross-origin requests of web pages, with and without VIDLEX_CORS_ORIGINS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from support.serving import assert_problem, serving, settings_for
from vidlex.model.dummy import DummyClassifier
from vidlex.service.access.api_keys import new_key
from vidlex.service.app import create_app
from vidlex.service.http.cors import OPTIONS
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.openapi.headers import PARAMETERS, RESPONSE_HEADERS

ADMIN = new_key()[1]
KEY = {"Authorization": f"Bearer {ADMIN}"}
ORIGIN = "https://app.example"
ALLOWED = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("cors")
    (folder / "keys").write_text(f"{ADMIN} scope=admin\n")
    with serving(folder / "data", api_keys_file=folder / "keys", cors_origins=(ORIGIN,)) as client:
        yield client


def preflight(client: TestClient, method: str = "POST", **headers: str) -> Any:
    requested = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options("/labels", headers=requested | headers)


def test_preflight_needs_no_key(client: TestClient) -> None:
    for method in ("GET", "POST", "PATCH", "DELETE"):
        answer = preflight(client, method, **ALLOWED)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert method in answer.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["x-request-id"] and answer.headers["x-content-type-options"] == "nosniff"


def test_preflight_of_other_origins_methods_and_hosts_is_refused(client: TestClient) -> None:
    refused = preflight(client, **FOREIGN)
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    assert preflight(client, "TRACE", **ALLOWED).status_code == 400
    assert_problem(preflight(client, **ALLOWED, Host="evil.example"), 403, "forbidden")


def test_all_request_headers_of_the_interface_are_allowed(client: TestClient) -> None:
    document = client.get("/openapi.json", headers=KEY).json()
    names = set(PARAMETERS) | {"Authorization", "X-API-Key", "X-Request-Id", "Content-Type"}
    for operations in document["paths"].values():
        for operation in operations.values():
            names |= {p["name"] for p in operation.get("parameters", ()) if p.get("in") == "header"}
    assert names == set(OPTIONS["allow_headers"])
    requested = {"Access-Control-Request-Headers": ", ".join(names).lower()}
    assert preflight(client, **ALLOWED, **requested).status_code == 200


def test_allowed_origin_reads_responses_and_their_headers(client: TestClient) -> None:
    made = client.post("/labels", json={"name": "red"}, headers=KEY | ALLOWED)
    assert made.status_code == 201
    errors = [
        client.post("/labels", json={"name": "red"}, headers=KEY | ALLOWED),
        client.get("/labels", headers=ALLOWED),
        client.put("/labels", headers=KEY | ALLOWED),
        client.get("/nothing", headers=KEY | ALLOWED),
    ]
    assert [answer.status_code for answer in errors] == [409, 401, 405, 404]
    for answer in (made, *errors):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in answer.headers["vary"]
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed == {*RESPONSE_HEADERS, "Allow"}


def test_unexpected_errors_are_readable(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("native text")

    parts = client.app.state.context.parts  # type: ignore[attr-defined]
    monkeypatch.setattr(parts.models.served.try_acquire("default").store, "list", fail)
    answer = client.get("/labels", headers=KEY | ALLOWED)
    assert_problem(answer, 500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_refusals_of_a_stopping_service_are_readable(tmp_path: Path) -> None:
    shutdown = GracefulShutdown()
    app = create_app(settings_for(tmp_path, cors_origins=(ORIGIN,)), classifier=DummyClassifier(), shutdown=shutdown)
    with TestClient(app, base_url="http://localhost") as client:
        shutdown.refuse()
        answer = client.get("/labels", headers=ALLOWED)
    assert_problem(answer, 503, "stopping")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["connection"] == "close"


def test_other_origins_are_refused(client: TestClient) -> None:
    assert_problem(client.post("/labels", json={"name": "blue"}, headers=KEY | FOREIGN), 403, "forbidden")
    read = client.get("/labels", headers=KEY | FOREIGN)
    assert_problem(read, 403, "forbidden")
    assert "access-control-allow-origin" not in read.headers


def test_any_origin_is_allowed_without_credentials(tmp_path: Path) -> None:
    with serving(tmp_path, cors_origins=("*",)) as client:
        for answer in (preflight(client, **FOREIGN), client.post("/labels", json={"name": "red"}, headers=FOREIGN)):
            assert answer.status_code in (200, 201)
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


def test_no_origin_is_allowed_by_default(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        answer = preflight(client, **ALLOWED)
        assert answer.status_code == 204 and answer.headers["allow"]
        assert_problem(client.post("/labels", json={"name": "red"}, headers=ALLOWED), 403, "forbidden")
        for response in (answer, client.get("/labels", headers=ALLOWED)):
            assert not [name for name in response.headers if name.startswith("access-control-")]

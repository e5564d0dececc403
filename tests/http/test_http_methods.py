"""HEAD, OPTIONS and Allow, on every path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from support.live import live_service
from support.serving import add, assert_problem, serving
from vidlex.service.access.api_keys import new_key

ADMIN = new_key()[1]
PAGES = ("/", "/app.js", "/style.css", "/docs", "/docs/init.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
UNPREDICTABLE = ("x-request-id", "date")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("methods")) as client:
        yield client


@pytest.fixture(scope="module")
def methods(client: TestClient) -> dict[str, set[str]]:
    """The methods of every path, with the id of a label in place of parameters."""
    (label,) = add(client, "red")
    found = {path: {"GET"} for path in (*PAGES, "/openapi.json", "/v1/openapi.json")}
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for prefix in ("", "/v1"):
            concrete = prefix + path.replace("{label_id}", label["id"]).replace("{key_id}", "0123456789ab")
            found[concrete] = {method.upper() for method in operations}
    assert len(found) > 40
    return found


def allowed(methods: set[str]) -> str:
    return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))


def test_head_sends_the_headers_of_get_without_the_body(client: TestClient, methods: dict[str, set[str]]) -> None:
    for path, known in methods.items():
        head = client.head(path)
        assert head.content == b"", path
        if "GET" not in known:
            assert head.status_code == 405, path
            continue
        get = client.get(path)
        assert head.status_code == get.status_code, path
        assert int(head.headers["content-length"]) > 0
        changing = (*UNPREDICTABLE, "content-length") if path.endswith("/metrics") else UNPREDICTABLE
        sent, expected = (
            {name: value for name, value in answer.headers.items() if name not in changing} for answer in (head, get)
        )
        assert sent == expected, path


def test_head_supports_conditions_and_errors(client: TestClient) -> None:
    (label,) = add(client, "conditional")
    tag = {"If-None-Match": f'"{label["etag"]}"'}
    assert client.head(f"/labels/{label['id']}", headers=tag).status_code == 304
    for path, status in (("/labels/none", 404), ("/nothing", 404), ("/labels?limit=0", 422)):
        head = client.head(path)
        assert (head.status_code, head.content) == (status, b""), path
        assert head.headers["content-type"] == "application/problem+json"


def test_options_lists_the_methods(client: TestClient, methods: dict[str, set[str]]) -> None:
    for path, known in methods.items():
        answer = client.options(path)
        assert (answer.status_code, answer.content) == (204, b""), path
        assert answer.headers["allow"] == allowed(known), path
    assert_problem(client.options("/nothing"), 404, "not_found")


def test_405_lists_the_methods(client: TestClient, methods: dict[str, set[str]]) -> None:
    for path, known in methods.items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "NONSENSE"):
            if method not in known:
                answer = client.request(method, path)
                assert_problem(answer, 405, "method_not_allowed")
                assert answer.headers["allow"] == allowed(known), (method, path)


def test_head_and_options_require_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{ADMIN} scope=read\n")
    with serving(tmp_path / "data", api_keys_file=tmp_path / "keys") as client:
        for method in ("HEAD", "OPTIONS"):
            answer = client.request(method, "/labels")
            assert answer.status_code == 401 and answer.headers["www-authenticate"]
            assert bool(answer.content) == (method == "OPTIONS")
            assert client.request(method, "/labels", headers={"X-API-Key": ADMIN}).status_code in (200, 204)
            assert client.request(method, "/livez").status_code in (200, 204)


def test_connection_stays_usable_after_head(tmp_path: Path) -> None:
    with (
        live_service(tmp_path / "data") as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=1)) as client,
    ):
        for path in ("/openapi.json", "/labels", "/nothing", "/classify"):
            head = client.head(path)
            assert head.content == b"" and int(head.headers["content-length"]) > 0
            assert client.get("/livez").json() == {"status": "alive"}

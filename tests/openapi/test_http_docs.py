"""The page at /docs, and who may read the document that it shows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from support.paths import ROOT
from support.serving import assert_problem, serving
from vidlex.service.access.api_keys import new_key

KEYS = {name: new_key()[1] for name in ("read", "bound", "write", "admin")}
VENDORED = ROOT / "service/web/vendor/swagger-ui"
ASSETS = {
    "docs/swagger-ui.css": "text/css",
    "docs/swagger-ui-bundle.js": "text/javascript",
    "docs/init.js": "text/javascript",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("docs")
    lines = [f"{key} scope={name.replace('bound', 'read')}" for name, key in KEYS.items()]
    lines[1] += " namespace=zoo"
    (folder / "keys").write_text("\n".join(lines) + "\n")
    with serving(folder / "data", api_keys_file=folder / "keys") as client:
        yield client


def test_page_and_assets_require_no_key(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(loaded) == {*ASSETS, "data:,"}, "relative URLs, for proxies that serve it below a path"
    for path, media_type in ASSETS.items():
        answer = client.get(f"/{path}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(media_type)


def test_page_keeps_the_strict_policy(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-security-policy"] == client.get("/").headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page.text) == []
    for text in (page.text, client.get("/docs/init.js").text):
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text


def test_vendored_files_are_those_of_the_readme() -> None:
    sums = dict(re.findall(r"^\| `(\w{64})` \| `([^`]+)` \|$", (VENDORED / "README.md").read_text(), re.MULTILINE))
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in VENDORED.iterdir()}
    assert sums == {digest: name for digest, name in files.items() if name != "README.md"}
    assert {"LICENSE", "NOTICE", "swagger-ui.css", "swagger-ui-bundle.js"} <= set(sums.values())


def test_unchanged_assets_are_not_sent_twice(client: TestClient) -> None:
    first = client.get("/docs/swagger-ui-bundle.js")
    again = client.get("/docs/swagger-ui-bundle.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


def test_document_is_readable_with_any_key(client: TestClient) -> None:
    for path in ("/openapi.json", "/v1/openapi.json"):
        assert_problem(client.get(path), 401, "unauthorized")
        for key in KEYS.values():
            assert client.get(path, headers={"X-API-Key": key}).json()["info"]["title"] == "Vidlex"


def test_document_is_public_while_the_service_is_open(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert client.get("/openapi.json").status_code == client.get("/docs").status_code == 200

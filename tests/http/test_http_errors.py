"""Responses to invalid, cross-site, malformed and oversized requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from support.serving import add, assert_problem, classify, colour_video, serving, wait_until

BOUNDARY = "b0undary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MAX_UPLOAD = 300_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("errors")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder, max_upload_bytes=MAX_UPLOAD, max_json_bytes=50_000, max_spool_bytes=400_000) as client:
        add(client, "red")
        yield client


@pytest.fixture(scope="module")
def red(folder: Path) -> Path:
    return colour_video(folder / "red.mp4", "red")


@pytest.fixture(autouse=True)
def _no_upload_remains(client: TestClient, folder: Path) -> Iterator[None]:
    yield
    assert not list((folder / "uploads").glob("*/*"))
    assert client.get("/readyz").status_code == 200


def part(name: str, data: bytes, *more: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"; filename="x"', *more])
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def send(client: TestClient, body: Any) -> Any:
    return client.post("/classify", content=body, headers=HEADERS)


# Routes and requests


def test_unknown_paths_and_methods(client: TestClient) -> None:
    assert_problem(client.get("/nothing"), 404, "not_found")
    assert_problem(client.get("/labels/"), 404, "not_found")
    assert_problem(client.get("/docs/"), 404, "not_found")
    answer = client.put("/labels")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


def test_unknown_query_parameters_are_refused_on_every_path(client: TestClient, red: Path) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            for prefix in ("", "/v1"):
                answer = client.request(method, prefix + path.replace("{", "").replace("}", ""), params={"limt": 5})
                if path in ("/livez", "/readyz", "/metrics"):
                    assert answer.status_code == 200
                else:
                    body = assert_problem(answer, 400, "malformed")
                    assert "'limt'" in body["detail"] and body["errors"][0]["pointer"] == "/limt", (method, path)
    body = assert_problem(client.get("/labels", params={"limit": 5, "Category": "x", "": "y"}), 400, "malformed")
    assert [error["pointer"] for error in body["errors"]] == ["/Category", "/"]
    assert "after, category, limit, min_revision, parent, prefix, q" in body["detail"]
    assert_problem(client.post("/classify?top_k=1", files={"file": red.read_bytes()}), 400, "malformed")
    assert len(client.get("/labels", params={"x" * 10_000: "y"}).text) < 1000
    assert client.post("/labels", params={"if_exists": "return"}, json={"name": "red"}).status_code == 200


def test_valid_request_id_is_returned_and_invalid_one_replaced(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "my-id.1:2"}).headers["x-request-id"] == "my-id.1:2"
    seen = set()
    for bad in ("", "a b", "x" * 200, '{"a":1}', "é".encode()):
        generated = client.get("/livez", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert generated.isalnum() and len(generated) == 32
        seen.add(generated)
    assert len(seen) == 5
    answer = client.get("/labels/none", headers={"X-Request-Id": "abc"})
    assert answer.json()["request_id"] == "abc"


def test_unexpected_error_exposes_only_its_request_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, red: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("native text at /home/secret with 0xdeadbeef")

    parts = client.app.state.context.parts  # type: ignore[attr-defined]
    monkeypatch.setattr(parts.models.served.try_acquire("default").store, "list", fail)
    monkeypatch.setattr(parts.videos, "classify", fail)
    for answer in (client.get("/labels"), classify(client, red)):
        assert_problem(answer, 500, "internal_error")
        assert "native" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_security_headers_and_no_cors(client: TestClient) -> None:
    for path in ("/", "/labels", "/nothing", "/metrics"):
        headers = client.get(path, headers={"Origin": "https://evil.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control-")]
    preflight = client.options(
        "/labels", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


def test_cross_site_requests_are_refused(client: TestClient, red: Path) -> None:
    other_host = client.get("/labels", headers={"Host": "evil.example:8000"})
    assert_problem(other_host, 403, "forbidden")
    for host in ("127.0.0.1:1234", "localhost", "[::1]:80"):
        assert client.get("/labels", headers={"Host": host}).status_code == 200
    foreign = client.post("/classify", files={"file": red.read_bytes()}, headers={"Sec-Fetch-Site": "cross-site"})
    assert_problem(foreign, 403, "forbidden")
    own = client.post("/classify", files={"file": red.read_bytes()}, headers={"Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        # Browsers send no Sec-Fetch-Site to an http:// address that is not loopback.
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Referer": "http://localhost:3000/page"},
        # A browser adds what the user information of a URL says.
        {"Origin": "http://localhost:3000", "Authorization": "Basic YTpi"},
    ],
)
def test_changes_by_other_origins_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert_problem(client.post("/models:rollback", headers=headers), 403, "forbidden")
    assert_problem(client.get("/models:diff", headers=headers), 403, "forbidden")
    assert client.get("/", headers=headers).status_code == 200


def test_links_of_other_sites_can_be_followed(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/labels", headers=headers).status_code == 200
    assert_problem(client.post("/models:rollback", headers=headers), 403, "forbidden")


def test_changes_by_the_page_and_by_programs_are_accepted(client: TestClient) -> None:
    own = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    with_key = {"Origin": "http://app.example", "X-API-Key": "a proxy may have changed Host"}
    for headers in ({}, own, {"Sec-Fetch-Site": "none"}, with_key):
        assert_problem(client.post("/models:rollback", headers=headers), 409, "model_conflict")


def test_preparing_the_served_model_is_no_error_of_the_service(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.post("/models:prepare", json={"model": "dummy"}).status_code == 202
    wait_until(lambda: client.get("/models").json()["problem"] is not None, "it is still loading")
    assert client.get("/models").json()["problem"] == "This model is already loaded"
    log = capsys.readouterr().out
    assert "model_load_failed" in log and "Traceback" not in log


def test_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for path, kind in (("/app.js", "text/javascript"), ("/style.css", "text/css")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert path in page.text
        for text in (page.text, answer.text):
            assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert "innerHTML" not in client.get("/app.js").text


def test_openapi_lists_all_paths_and_schemas(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document == client.get("/v1/openapi.json").json()
    health = {"/livez", "/readyz", "/metrics"}
    labels = {
        "/labels",
        "/labels/{label_id}",
        "/labels/{label_id}/card",
        "/labels:preview",
        "/labels/{label_id}/videos",
    }
    job = "/jobs/{job_id}"
    jobs = {"/jobs", job, f"{job}:retry"} | {f"{job}/{n}" for n in ("result", "output", "errors", "events", "export")}
    video = "/videos/{video_id}"
    videos = {"/videos", video, f"{video}/features", f"{video}/thumbnails/{{number}}"}
    videos |= {f"/videos:{verb}" for verb in ("backfill", "generations", "reencode", "search")}
    fits = "/feedback/fits/{label_id}"
    feedback = {"/feedback", "/feedback/{judgement_id}", "/feedback:labels", fits, f"{fits}/versions"}
    feedback |= {f"{fits}:apply", f"{fits}:revert"}
    delivery, secret = "/webhooks/deliveries/{delivery_id}", "/webhooks/secrets/{secret_id}"
    webhooks = {"/webhooks/deliveries", delivery, f"{delivery}:replay", "/webhooks/deliveries:replay", "/webhooks:test"}
    webhooks |= {"/webhooks/endpoints", "/webhooks/endpoints:enable", "/webhooks/secrets", secret}
    models = {"/models"} | {f"/models:{verb}" for verb in ("prepare", "diff", "activate", "rollback", "drop")}
    others = {"/classify", "/calibration", "/keys", "/keys/{key_id}"}
    assert set(document["paths"]) == health | labels | models | jobs | videos | feedback | webhooks | others
    text = json.dumps(document)
    assert "HTTPValidationError" not in text and "application/problem+json" in text
    body = document["paths"]["/classify"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["properties"]["params"]["$ref"] == "#/components/schemas/ClassifyParams"
    params = document["components"]["schemas"]["ClassifyParams"]
    assert {"top_k", "candidate_labels", "segment_ms"} <= set(params["properties"])
    for name in {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


# Bodies


def test_json_body_size_is_limited(client: TestClient) -> None:
    body = json.dumps({"name": "a", "metadata": {"x": "y" * 60_000}}).encode()
    headers = {"Content-Type": "application/json"}
    assert_problem(client.post("/labels", content=body, headers=headers), 413, "upload_too_large")
    chunks = (body[i : i + 1000] for i in range(0, len(body), 1000))
    assert_problem(client.post("/labels", content=chunks, headers=headers), 413, "upload_too_large")


def test_video_must_be_the_multipart_field_file(client: TestClient, red: Path) -> None:
    data = red.read_bytes()
    assert_problem(client.post("/classify", content=data), 415, "unsupported_media")
    for kind in ("video/mp4", "multipart/mixed; boundary=x"):
        answer = client.post("/classify", content=data, headers={"Content-Type": kind})
        assert_problem(answer, 415, "unsupported_media")
    for kind in ("multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"):
        assert_problem(client.post("/classify", content=data, headers={"Content-Type": kind}), 400, "malformed")
    assert_problem(send(client, END), 400, "malformed")
    assert_problem(send(client, part("params", b"{}") + END), 400, "malformed")
    problem = assert_problem(send(client, part("video", data) + END), 422, "invalid_parameter")
    assert problem["errors"][0]["pointer"] == "/video"
    assert send(client, part("file", data) + END).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        part("file", b"abc"),
        part("file", b"abc") + part("file", b"abc") + END,
        part("file", b"abc")[:-20] + END,
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n'.encode(),
        part("file", b"abc", *[f"X-{i}: 1" for i in range(50)]) + END,
        part("file", b"abc", "X-Long: " + "x" * 20_000) + END,
        f"--{BOUNDARY}\r\nbad header\r\n\r\nabc\r\n".encode() + END,
    ],
)
def test_broken_multipart_is_malformed(client: TestClient, body: bytes) -> None:
    assert_problem(send(client, body), 400, "malformed")
    assert_problem(send(client, (body[i : i + 3] for i in range(0, len(body), 3))), 400, "malformed")


def test_too_many_parts_are_refused(client: TestClient) -> None:
    answer = send(client, b"".join(part("params", b"{}") for _ in range(10_000)) + END)
    assert_problem(answer, 400, "malformed")


def test_upload_size_is_limited_regardless_of_content_length(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    big = rng.bytes(MAX_UPLOAD + 1)
    body = part("file", big) + END
    problem = assert_problem(send(client, body), 413, "upload_too_large")
    assert problem["max_bytes"] == MAX_UPLOAD
    chunked = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    assert_problem(send(client, chunked), 413, "upload_too_large")
    declared = {**HEADERS, "Content-Length": str(10**12)}
    assert_problem(
        client.post("/classify", content=part("file", b"a") + END, headers=declared), 413, "upload_too_large"
    )


def test_upload_is_intact_for_any_chunk_size(client: TestClient, red: Path) -> None:
    decoy = f"\r\n--{BOUNDARY[:-1]}x\r\n--\r\r\n".encode()
    data = red.read_bytes() + decoy * 50  # resembles a boundary
    body = part("file", data) + END
    digest = hashlib.sha256(data).hexdigest()
    for size in (1, 7, len(BOUNDARY) + 3, 4096, len(body)):
        answer = send(client, (body[i : i + size] for i in range(0, len(body), size)))
        assert answer.status_code == 200, answer.text
        assert (answer.json()["video"]["sha256"], answer.json()["video"]["bytes"]) == (digest, len(data))


def test_empty_file_is_undecodable(client: TestClient) -> None:
    answer = send(client, part("file", b"") + END)
    assert_problem(answer, 422, "undecodable_video")


def test_full_spool_is_overloaded_and_recovers(folder: Path, red: Path, tmp_path: Path) -> None:
    with serving(tmp_path, max_spool_bytes=1000) as small:
        assert_problem(send(small, part("file", b"x" * 2000) + END), 429, "overloaded")
        assert_problem(send(small, part("file", b"x" * 900) + END), 415, "unsupported_media")
        assert_problem(send(small, part("file", b"x" * 900) + END), 415, "unsupported_media")

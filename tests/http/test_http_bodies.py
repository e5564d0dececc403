"""Bodies over a real connection: byte order marks, integers written as 1.0, content codings."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from support.live import live_service
from support.serving import assert_problem, colour_video
from vidlex.service.errors import InvalidParameter
from vidlex.service.http.openapi.document import _BODIES
from vidlex.service.schemas.base import Strict, validate

BOM = b"\xef\xbb\xbf"
JSON = {"Content-Type": "application/json"}
NOT_STORED = "lbl_0000000000000000000000000"
JSON_REQUESTS = (
    ("POST", "/labels"),
    ("PATCH", f"/labels/{NOT_STORED}"),
    ("POST", "/labels:preview"),
    ("PUT", "/calibration"),
    ("POST", "/keys"),
    ("POST", "/models:prepare"),
    ("POST", "/models:drop"),
)


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red", frames_each=20)
    return path.read_bytes()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("bodies") / "data"
    with live_service(folder) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        client.post("/labels", json={"name": "red"}).raise_for_status()
        yield client


def classify(client: httpx.Client, video: bytes, params: bytes) -> httpx.Response:
    return client.post("/classify", files={"file": ("red.mp4", video), "params": (None, params)})


# Byte order marks


@pytest.mark.parametrize(("method", "path"), JSON_REQUESTS)
def test_a_byte_order_mark_changes_no_answer(client: httpx.Client, method: str, path: str) -> None:
    for body in (b"{}", b'{"nonsense": 1}', b'{"model": "no such model", "fingerprint": "x"}'):
        plain, marked = (client.request(method, path, content=mark + body, headers=JSON) for mark in (b"", BOM))
        assert 400 < plain.status_code < 500
        assert marked.status_code == plain.status_code
        assert marked.json()["detail"] == plain.json()["detail"]


def test_bodies_with_a_byte_order_mark_are_read(client: httpx.Client, red: bytes) -> None:
    created = client.post("/labels", content=BOM + '{"name": "h\u00e4rvest"}'.encode(), headers=JSON)
    assert (created.status_code, created.json()["name"]) == (201, "h\u00e4rvest")
    changes = BOM + b'{"threshold": 0.25}'
    changed = client.patch(f"/labels/{created.json()['id']}", content=changes, headers=JSON)
    assert changed.json()["threshold"] == 0.25
    assert len(classify(client, red, BOM + b'{"top_k": 1}').json()["labels"]) == 1


@pytest.mark.parametrize("body", [BOM, BOM + BOM + b"{}", b"{}" + BOM, "{}".encode("utf-16"), "{}".encode("utf-16-le")])
def test_other_marks_and_encodings_are_malformed(client: httpx.Client, red: bytes, body: bytes) -> None:
    assert_problem(client.post("/labels", content=body, headers=JSON), 400, "malformed")
    assert_problem(classify(client, red, body), 400, "malformed")


# Integers


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"start_ms": 0.0, "end_ms": 1e3}', {"start_ms": 0, "end_ms": 1000}),
        ('{"start_ms": -0.0, "end_ms": 1.0E+3}', {"start_ms": 0, "end_ms": 1000}),
        ('{"top_k": 2.0, "num_frames": 5.0}', {"top_k": 2, "num_frames": 5}),
        ('{"aggregate_by": "segments", "segment_ms": 5e2}', {"aggregate_by": "segments", "segment_ms": 500}),
        ('{"deadline_ms": 6e4, "min_revision": 1.0}', {"deadline_ms": 60_000, "min_revision": 1}),
    ],
)
def test_integral_floats_are_integers(client: httpx.Client, red: bytes, written: str, read: dict[str, Any]) -> None:
    as_float, as_integer = (classify(client, red, text.encode()).json() for text in (written, json.dumps(read)))
    assert as_float["labels"] == as_integer["labels"] and as_integer["labels"]
    assert as_float["coverage"] == as_integer["coverage"]


@pytest.mark.parametrize(
    "value", ["0.5", "1e-3", "1000000000000000.5", "1e400", "-1e400", "1e20", "1" * 30, '"1"', "true"]
)
@pytest.mark.parametrize("member", ["start_ms", "num_frames", "top_k", "segment_ms", "min_revision"])
def test_other_numbers_are_refused_by_name(client: httpx.Client, red: bytes, member: str, value: str) -> None:
    problem = assert_problem(classify(client, red, f'{{"{member}": {value}}}'.encode()), 422, "invalid_parameter")
    (error,) = problem["errors"]
    assert error["pointer"] == f"/{member}"
    assert any(text in error["detail"] for text in ("valid integer", "less than", "greater than")), error


def test_integral_floats_in_other_bodies_and_in_queries(client: httpx.Client) -> None:
    key = client.post("/keys", content=b'{"scope": "read", "max_labels": 3.5}', headers=JSON)
    assert assert_problem(key, 422, "invalid_parameter")["errors"][0]["pointer"] == "/max_labels"
    statistics = {"model": "dummy-1", "num_videos": 7.0, "mean": "", "basis": "", "residual": 0}
    calibration = client.put("/calibration", json={"source": "statistics", "statistics": statistics})
    assert "/statistics/num_videos" not in calibration.text and calibration.status_code == 422
    assert len(client.get("/labels", params={"limit": "1.0", "min_revision": "1.0"}).json()["data"]) == 1
    assert_problem(client.get("/labels", params={"limit": "1.5"}), 422, "invalid_parameter")


def integers_of(model: type[Strict]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, member in model.model_json_schema()["properties"].items():
        for option in (member, *member.get("anyOf", ())):
            if option.get("type") == "integer":
                yield name, option


def models_below(model: type[Strict]) -> Iterator[type[Strict]]:
    for kind in model.__subclasses__():
        yield kind
        yield from models_below(kind)


MODELS = list(dict.fromkeys(models_below(Strict)))
INTEGERS = [(model, name, schema) for model in MODELS for name, schema in integers_of(model)]


def test_the_bodies_have_these_integers() -> None:
    assert set(_BODIES) <= set(MODELS)
    assert {name for _, name, _ in INTEGERS} == {
        *("top_k", "num_frames", "segment_ms", "start_ms", "end_ms", "deadline_ms", "min_revision"),
        *("expires_in_seconds", "burst", "max_labels", "num_videos"),
        *("created_from_ms", "created_to_ms", "since_ms", "since_revision", "limit"),
    }


@pytest.mark.parametrize(("model", "name", "schema"), INTEGERS, ids=[f"{m.__name__}-{n}" for m, n, _ in INTEGERS])
def test_every_integer_may_be_an_integral_float(model: type[Strict], name: str, schema: dict[str, Any]) -> None:
    def problems_of(value: object) -> list[str]:
        try:
            validate(model, {name: value})
        except InvalidParameter as error:
            return [item["detail"] for item in error.extra["errors"] if item["pointer"] == f"/{name}"]
        return []

    lowest = schema["minimum"]
    assert problems_of(float(lowest)) == problems_of(lowest) == []
    for refused in (lowest - 1, float(lowest) - 1, lowest + 0.5, 1e30, 10**30, float("inf"), float("nan"), True, "1"):
        assert problems_of(refused), refused


# Content codings


@pytest.mark.parametrize(("method", "path"), JSON_REQUESTS)
@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "br", "deflate", "zstd", "GZIP", "identity, gzip", "something"])
def test_json_with_a_content_coding_is_refused(client: httpx.Client, method: str, path: str, coding: str) -> None:
    body = gzip.compress(b'{"name": "compressed"}')
    answer = client.request(method, path, content=body, headers=JSON | {"Content-Encoding": coding})
    problem = assert_problem(answer, 415, "unsupported_media")
    assert f"Content-Encoding {coding.lower().removeprefix('identity, ')} is not supported" in problem["detail"]
    assert answer.headers["accept-encoding"] == "identity"
    assert not client.get("/labels", params={"prefix": "compressed"}).json()["data"]


def multipart(video: bytes, *headers: str, params: bytes = b'{"top_k": 1}', of_params: str = "") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers).encode()
    more = f"{of_params}\r\n".encode() if of_params else b""
    return (
        b'--b\r\nContent-Disposition: form-data; name="params"\r\n' + more + b"\r\n" + params + b"\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="v.mp4"\r\n' + lines + b"\r\n" + video
        + b"\r\n--b--\r\n"
    )  # fmt: skip


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "br"])
def test_a_compressed_upload_is_refused(client: httpx.Client, red: bytes, coding: str) -> None:
    plain = multipart(red)
    body = {"gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}.get(coding, plain)
    answer = client.post("/classify", content=body, headers=MULTIPART | {"Content-Encoding": coding})
    assert coding in assert_problem(answer, 415, "unsupported_media")["detail"]
    assert answer.headers["accept-encoding"] == "identity"
    assert client.post("/classify", content=plain, headers=MULTIPART).status_code == 200


def test_the_coding_identity_is_none(client: httpx.Client, red: bytes) -> None:
    for coding in ("identity", "Identity", "", "identity, identity"):
        answer = client.post("/classify", content=multipart(red), headers=MULTIPART | {"Content-Encoding": coding})
        assert answer.status_code == 200, answer.text
        label = client.post(
            "/labels?if_exists=return", content=b'{"name": "red"}', headers=JSON | {"Content-Encoding": coding}
        )
        assert label.status_code == 200


def test_several_headers_are_one_list(client: httpx.Client, red: bytes) -> None:
    codings = (b"identity", b"gzip\x80, br")
    headers = [(b"Content-Type", b"multipart/form-data; boundary=b"), *((b"Content-Encoding", x) for x in codings)]
    answer = client.post("/classify", content=multipart(red), headers=headers)
    assert "Content-Encoding gzip?, br is not supported" in assert_problem(answer, 415, "unsupported_media")["detail"]


def test_the_answer_to_a_large_compressed_upload_is_received(client: httpx.Client) -> None:
    body = bytes(4 << 20)
    chunks = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    for content in (body, chunks):
        answer = client.post("/classify", content=content, headers=MULTIPART | {"Content-Encoding": "gzip"})
        assert_problem(answer, 415, "unsupported_media")


def test_a_client_that_waits_to_be_asked_is_refused_at_once(client: httpx.Client) -> None:
    connection = http.client.HTTPConnection(urlsplit(str(client.base_url)).netloc, timeout=60)
    try:
        connection.putrequest("POST", "/classify")
        for name, value in {**MULTIPART, "Content-Encoding": "gzip", "Expect": "100-continue"}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()  # and no body
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (415, "unsupported_media")
    finally:
        connection.close()


def test_compressed_files_are_no_videos(client: httpx.Client, red: bytes) -> None:
    """A file that is compressed itself, in a body that is not: another matter than a content coding."""
    answer = client.post("/classify", files={"file": ("red.mp4.gz", gzip.compress(red), "application/gzip")})
    assert_problem(answer, 415, "unsupported_media")
    assert "accept-encoding" not in answer.headers


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable", "x-uuencode"])
def test_encoded_parts_are_refused(client: httpx.Client, red: bytes, encoding: str) -> None:
    header = f"Content-Transfer-Encoding: {encoding}"
    for body in (multipart(red, header), multipart(red, of_params=header)):
        problem = assert_problem(client.post("/classify", content=body, headers=MULTIPART), 415, "unsupported_media")
        assert f"Content-Transfer-Encoding {encoding.lower()} is not supported" in problem["detail"]


def test_parts_may_declare_plain_bytes(client: httpx.Client, red: bytes) -> None:
    for encoding in ("binary", "8bit", "7BIT"):
        body = multipart(red, f"Content-Transfer-Encoding: {encoding}", "Content-Type: video/mp4")
        assert client.post("/classify", content=body, headers=MULTIPART).status_code == 200

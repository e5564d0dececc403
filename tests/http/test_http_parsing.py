"""Arbitrary bodies and content types never cause a server error."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.serving import colour_video, serving

MULTIPART = "multipart/form-data; boundary=b"
JSON = "application/json"
few_examples = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("parsing")) as client:
        yield client


@pytest.fixture(scope="module")
def valid_body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A valid request: a video and its parameters."""
    video = colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red").read_bytes()
    return (
        b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"top_k": 3, "candidate_labels": ["red"]}\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
        + video
        + b"\r\n--b--\r\n"
    )


def send(client: TestClient, path: str, body: bytes, content_type: str, method: str = "POST") -> int:
    """The status of the response, which must be a success or a 4xx problem."""
    answer = client.request(method, path, content=body, headers={"Content-Type": content_type.encode("latin-1")})
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    return answer.status_code


def test_unmodified_body_is_accepted(client: TestClient, valid_body: bytes) -> None:
    assert send(client, "/classify", valid_body, MULTIPART) == 200


@few_examples
@given(st.binary(max_size=400))
@example(b"--b")
@example(b"--b\r\n\r\n\r\n--b--")
@example(b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n--b--\r\n')
@example(b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-9''%ff\r\n\r\nx\r\n--b--\r\n")
@example(b"--b\r\nContent-Disposition: \xff\xfe;;;=\r\n\r\nx\r\n--b--\r\n")
def test_arbitrary_multipart_bodies(client: TestClient, body: bytes) -> None:
    for prefix in (b"", b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n'):
        assert 400 <= send(client, "/classify", prefix + body, MULTIPART) < 500


@few_examples
@given(st.data())
def test_recombined_multipart_bodies(client: TestClient, valid_body: bytes, data: st.DataObject) -> None:
    """Slices of a valid body, mostly around the headers, joined with random bytes."""
    offset = st.integers(0, 300) | st.integers(len(valid_body) - 40, len(valid_body)) | st.integers(0, len(valid_body))
    pieces = data.draw(st.lists(st.tuples(offset, offset, st.binary(max_size=8)), min_size=1, max_size=4))
    body = b"".join(valid_body[min(a, b) : max(a, b)] + between for a, b, between in pieces)
    send(client, "/classify", body, MULTIPART)


@few_examples
@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=120))
@example("multipart/form-data; boundary=" + "b" * 71)
@example('multipart/form-data; boundary="')
@example("multipart/form-data; boundary*=utf-8''b")
@example("multipart/form-data; boundary*0=b; boundary*x=b")
def test_arbitrary_content_types(client: TestClient, valid_body: bytes, content_type: str) -> None:
    for text in (content_type, f"multipart/form-data; {content_type}", f"multipart/form-data; boundary={content_type}"):
        send(client, "/classify", valid_body[:600], text.strip())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("name", "names", "labels", "threshold", "category", "parent", "parents", "metadata", "scope", "namespace")
BODIES = (
    st.binary(max_size=200)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5).map(lambda value: json.dumps(value).encode())
)
OPERATIONS = (
    ("POST", "/labels"),
    ("PATCH", "/labels/none"),
    ("POST", "/labels:preview"),
    ("POST", "/models:prepare"),
    ("POST", "/models:drop"),
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@settings(few_examples, max_examples=40)
@given(body=BODIES)
@example(body=b'{"name": "\\ud800"}')
@example(body=b'{"name": "\xed\xa0\x80"}')
@example(body=b'{"name": "\\u0000"}')
@example(body=b"[" * 100_000)
@example(body=b'{"threshold": ' + b"9" * 10_000 + b"}")
@example(body=b'{"name": "x", "threshold": 1e999}')
@example(body=b'{"name": "a", "name": "b"}')
@example(body=b"\xef\xbb\xbf{}")
def test_arbitrary_json_bodies(client: TestClient, method: str, path: str, body: bytes) -> None:
    send(client, path, body, JSON, method)


@settings(few_examples, max_examples=40)
@given(cut=st.integers(0, 80), rest=st.binary(max_size=10), again=st.booleans())
def test_truncated_and_extended_json_bodies(client: TestClient, cut: int, rest: bytes, again: bool) -> None:
    valid = json.dumps({"name": "red", "threshold": 0.5, "metadata": {"a": "\u00e9"}}, ensure_ascii=False).encode()
    send(client, "/labels?if_exists=return", valid[:cut] + rest + (valid if again else b""), JSON)


@few_examples
@given(body=VALUES)
def test_arbitrary_params(client: TestClient, valid_body: bytes, body: object) -> None:
    valid = b'{"top_k": 3, "candidate_labels": ["red"]}'
    assert valid_body.count(valid) == 1
    send(client, "/classify", valid_body.replace(valid, json.dumps(body).encode()), MULTIPART)

"""/labels over HTTP, with a real store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from support.serving import add, assert_problem, clear, serving
from vidlex.model.dummy import DummyClassifier
from vidlex.service.bounds import MAX_JSON_LEVELS, MAX_METADATA_LEVELS


class Counting(DummyClassifier):
    """Records the encoded names, and fails on "bomb"."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        if "bomb" in names:
            raise RuntimeError("native error at /tmp/secret.py")
        self.encoded += names
        return super().encode_labels(names)


CLASSIFIER = Counting()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("labels"), classifier=CLASSIFIER) as client:
        yield client


@pytest.fixture
def client(shared: TestClient) -> TestClient:
    clear(shared)
    CLASSIFIER.encoded.clear()
    return shared


def test_register_returns_the_label_and_its_location(client: TestClient) -> None:
    body = {
        "name": "  Golden   Retriever ",
        "aliases": ["retriever"],
        "categories": ["Animal"],
        "threshold": 0.7,
        "metadata": {"a": [1, {"b": None}]},
    }
    answer = client.post("/labels", json=body)
    assert answer.status_code == 201
    label = answer.json()
    assert label["object"] == "label" and label["id"].startswith("lbl_")
    assert label["name"] == "Golden Retriever"
    assert (label["aliases"], label["categories"], label["threshold"]) == (["retriever"], ["animal"], 0.7)
    assert label["metadata"] == body["metadata"]
    assert isinstance(label["created_at_ms"], int) and label["created_at_ms"] == label["updated_at_ms"]
    assert answer.headers["location"] == f"/labels/{label['id']}"
    assert client.get(answer.headers["location"]).json() == label
    assert CLASSIFIER.encoded == ["Golden Retriever"]


def test_labels_are_served_under_v1(client: TestClient) -> None:
    answer = client.post("/v1/labels", json={"name": "red"})
    assert answer.status_code == 201 and answer.headers["location"].startswith("/v1/labels/lbl_")
    assert client.get(answer.headers["location"]).json()["name"] == "red"
    assert [x["name"] for x in client.get("/v1/labels").json()["data"]] == ["red"]


def test_existing_name_is_a_conflict_with_its_id(client: TestClient) -> None:
    (label,) = add(client, "Straße")
    CLASSIFIER.encoded.clear()
    problem = assert_problem(client.post("/labels", json={"name": "STRASSE "}), 409, "label_exists")
    assert problem["existing_id"] == label["id"]
    again = client.post("/labels?if_exists=return", json={"name": "strasse", "threshold": 0.1})
    assert (again.status_code, again.json()) == (200, label)
    assert CLASSIFIER.encoded == []


def test_existing_alias_is_a_conflict_with_if_exists_return(client: TestClient) -> None:
    (label,) = add(client, "car")
    answer = client.post("/labels?if_exists=return", json={"name": "automobile", "aliases": ["Car"]})
    assert assert_problem(answer, 409, "label_exists")["existing_id"] == label["id"]


@pytest.mark.parametrize(
    "name", ["", "   ", "\ud800", "x" * 129, "a\u202eb", "a\x00b", "\u0378", "two\nlines", "e" + "\u0301" * 2000]
)
def test_invalid_names_are_refused(client: TestClient, name: str) -> None:
    content = json.dumps({"name": name})
    answer = client.post("/labels", content=content, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "label_text_invalid")
    assert client.get("/labels").json()["data"] == []


def test_name_too_long_for_the_encoder_is_refused(client: TestClient) -> None:
    assert_problem(client.post("/labels", json={"name": "a " * 20}), 422, "label_text_invalid")


def test_encoder_failure_gives_503_and_stores_nothing(client: TestClient) -> None:
    assert_problem(client.post("/labels", json={"name": "bomb"}), 503, "encode_failed")
    assert client.get("/labels").json()["data"] == []
    add(client, "red")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": 7}, "/name"),
        ({"name": "a", "threshold": 1.5}, "/threshold"),
        ({"name": "a", "threshold": "0.5"}, "/threshold"),
        ({"name": "a", "aliases": "b"}, "/aliases"),
        ({"name": "a", "aliases": ["b", 1]}, "/aliases/1"),
        ({"name": "a", "thresold": 0.5}, "/thresold"),
        ({"name": "a", "metadata": []}, "/metadata"),
        ([], ""),
        ("red", ""),
        (None, ""),
        ({"labels": []}, "/labels"),
        ({"labels": [{"name": "a"}], "name": "b"}, "/name"),
    ],
)
def test_invalid_values_are_named_in_the_error(client: TestClient, body: Any, pointer: str) -> None:
    answer = client.post("/labels", content=json.dumps(body), headers={"Content-Type": "application/json"})
    problem = assert_problem(answer, 422, "invalid_parameter")
    assert pointer in [error["pointer"] for error in problem["errors"]]


@pytest.mark.parametrize("metadata", [{"a": "\ud800"}, {"a": "x" * 20_000}])
def test_metadata_size_and_values_are_limited(client: TestClient, metadata: dict[str, Any]) -> None:
    content = json.dumps({"name": "a", "metadata": metadata})
    answer = client.post("/labels", content=content, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid_parameter")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"name": NaN}', b"\xff\xfe", b"[" * 60, b'{"name": 1' + b"0" * 5000 + b"}"]
)
def test_invalid_json_is_malformed(client: TestClient, content: bytes) -> None:
    answer = client.post("/labels", content=content, headers={"Content-Type": "application/json"})
    assert_problem(answer, 400, "malformed")


def test_metadata_is_nested_as_deeply_as_a_response_can_be(client: TestClient) -> None:
    def nested(num_levels: int) -> str:
        return '{"a":' * num_levels + "1" + "}" * num_levels

    for num_levels in (MAX_METADATA_LEVELS, MAX_METADATA_LEVELS + 1, 300, 900):
        content = f'{{"name": "deep", "metadata": {nested(num_levels)}}}'
        answer = client.post("/labels", content=content, headers={"Content-Type": "application/json"})
        if num_levels >= MAX_JSON_LEVELS:
            assert_problem(answer, 413, "json_too_complex")
        elif num_levels > MAX_METADATA_LEVELS:
            assert_problem(answer, 422, "invalid_parameter")
        else:
            assert answer.status_code == 201
            client.delete(f"/labels/{answer.json()['id']}").raise_for_status()
    assert client.get("/labels").status_code == 200


def test_json_content_type_is_required(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/labels", content=b'{"name": "a"}', headers={"Content-Type": kind})
        assert_problem(answer, 415, "unsupported_media")
    answer = client.post(
        "/labels", content=b'{"name": "a"}', headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert answer.status_code == 201


def test_batch_items_are_independent(client: TestClient) -> None:
    (red,) = add(client, "red")
    items = [{"name": "blue"}, {"name": "RED"}, {"name": ""}, {"nome": "x"}, 5, {"name": "bomb"}, {"name": "Blue"}]
    answer = client.post("/labels", json={"labels": items})
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(items)))
    assert [item["status"] for item in data] == [201, 409, 422, 422, 422, 503, 409]
    codes = [item["error"]["code"] if item["error"] else None for item in data]
    assert codes == [
        None,
        "label_exists",
        "label_text_invalid",
        "invalid_parameter",
        "invalid_parameter",
        "encode_failed",
        "label_exists",
    ]
    assert data[1]["error"]["existing_id"] == red["id"]
    assert data[6]["error"]["existing_id"] == data[0]["label"]["id"]
    assert {x["name"] for x in client.get("/labels").json()["data"]} == {"red", "blue"}
    again = client.post("/labels?if_exists=return", json={"labels": [{"name": "blue"}, {"name": "green"}]})
    assert [item["status"] for item in again.json()["data"]] == [200, 201]


def test_batch_size_is_limited(client: TestClient, tmp_path: Path) -> None:
    many = [{"name": f"label {i}"} for i in range(1001)]
    assert_problem(client.post("/labels", json={"labels": many}), 422, "invalid_parameter")
    with serving(tmp_path) as other:  # separate: removing a thousand labels takes long
        answer = other.post("/labels", json={"labels": many[:1000]})
        assert {item["status"] for item in answer.json()["data"]} == {201}
        assert len(other.get("/labels?limit=1000").json()["data"]) == 1000


def test_pages_contain_every_label_once(client: TestClient) -> None:
    names = [f"label {i}" for i in range(7)]
    client.post("/labels", json={"labels": [{"name": name} for name in names]})
    seen: list[str] = []
    after = None
    while True:
        page = client.get("/labels", params={"limit": 3} | ({"after": after} if after else {})).json()
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [label["name"] for label in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == names
    empty = client.get("/labels", params={"after": after}).json()
    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


def test_listing_filters(client: TestClient) -> None:
    add(client, "red car", categories=["vehicle"])
    add(client, "blue car", categories=["vehicle"], aliases=["sky auto"])
    add(client, "red apple", categories=["fruit"])

    def names(**params: str) -> list[str]:
        return [label["name"] for label in client.get("/labels", params=params).json()["data"]]

    assert names(category="Vehicle") == ["red car", "blue car"]
    assert names(q="RED") == ["red car", "red apple"]
    assert names(q="auto") == ["blue car"]
    assert names(q="red", category="fruit") == ["red apple"]
    assert names(q="nothing") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=nonsense", "after=" + "x" * 200])
def test_invalid_queries_are_refused(client: TestClient, query: str) -> None:
    assert_problem(client.get(f"/labels?{query}"), 422, "invalid_parameter")


def test_repeated_query_parameter_is_refused(client: TestClient) -> None:
    problem = assert_problem(client.get("/labels?q=a&limit=5&q=b"), 400, "malformed")
    assert problem["errors"][0]["pointer"] == "/q"


def test_only_a_new_name_is_encoded(client: TestClient) -> None:
    (label,) = add(client, "red", categories=["colour"])
    CLASSIFIER.encoded.clear()
    path = f"/labels/{label['id']}"
    changed = client.patch(path, json={"threshold": 0.9, "aliases": ["rot"], "metadata": {"x": 1}}).json()
    assert (changed["threshold"], changed["aliases"], changed["metadata"]) == (0.9, ["rot"], {"x": 1})
    assert (changed["categories"], changed["name"]) == (["colour"], "red")
    assert changed["revision"] > label["revision"]
    assert client.patch(path, json={"threshold": None}).json()["threshold"] is None
    assert client.patch(path, json={"name": "red"}).status_code == 200
    assert CLASSIFIER.encoded == []
    assert client.patch(path, json={"name": "blue"}).json()["name"] == "blue"
    assert CLASSIFIER.encoded == ["blue"]
    assert client.get(path).json()["name"] == "blue"
    add(client, "red")  # the old name is free


def test_change_validates_like_register(client: TestClient) -> None:
    red, _ = add(client, "red", "blue")
    path = f"/labels/{red['id']}"
    assert_problem(client.patch(path, json={"name": "Blue"}), 409, "label_exists")
    assert_problem(client.patch(path, json={"name": "\u202e"}), 422, "label_text_invalid")
    assert_problem(client.patch(path, json={"name": None}), 422, "invalid_parameter")
    assert_problem(client.patch(path, json={}), 422, "invalid_parameter")
    assert_problem(client.patch(path, json={"id": "lbl_1"}), 422, "invalid_parameter")
    assert client.get(path).json() == red


def test_remove_label(client: TestClient) -> None:
    (label,) = add(client, "red")
    path = f"/labels/{label['id']}"
    answer = client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(client.get(path), 404, "not_found")
    assert_problem(client.delete(path), 404, "not_found")
    assert_problem(client.patch(path, json={"threshold": 0.5}), 404, "not_found")


def test_invalid_id_is_not_found(client: TestClient) -> None:
    for label_id in ("lbl_nothing", "x", "%00", "a" * 1000, "..%2f..%2fetc"):
        assert_problem(client.get(f"/labels/{label_id}"), 404, "not_found")

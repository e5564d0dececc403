"""Every label that is accepted can be read, whatever wrote it; what the store has already hides no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.serving import assert_problem, clear, serving
from support.stores import DIM, FINGERPRINT
from vidlex.service.bounds import MAX_METADATA_BYTES, MAX_METADATA_KEYS, MAX_METADATA_LEVELS
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import LabelChanges, NewLabel, label_to_json, make_label

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("service")) as http:
        yield http


def nested(num_levels: int, inner: Any = 1, *, of_lists: bool = False) -> dict[str, Any]:
    value = inner
    for _ in range(num_levels - 1):
        value = [value] if of_lists else {"a": value}
    return {"a": value}


def keys(number: int) -> dict[str, int]:
    return {f"{i:x}": 1 for i in range(number)}


BAD = {
    "levels": nested(MAX_METADATA_LEVELS + 1),
    "levels of lists": nested(MAX_METADATA_LEVELS + 1, of_lists=True),
    "keys": keys(MAX_METADATA_KEYS + 1),
    "keys of many objects": {"a": [keys(100)] * (MAX_METADATA_KEYS // 100)},
    "bytes": {"a": "x" * MAX_METADATA_BYTES},
    "not a number": {"a": float("nan")},
    "half a character": {"a": "\ud800"},
}


@pytest.mark.parametrize("name", BAD)
def test_metadata_out_of_bounds_is_never_written(http: TestClient, name: str) -> None:
    clear(http)
    made = http.post("/labels", json={"name": "old", "metadata": {"kept": True}}).json()

    def send(method: str, path: str, body: Any) -> Any:
        return http.request(method, path, content=json.dumps(body), headers=JSON)

    codes = {"invalid_parameter", "malformed"}
    single = send("POST", "/labels", {"name": "new", "metadata": BAD[name]})
    assert single.status_code in (400, 422)
    assert single.json()["code"] in codes
    assert send("PATCH", f"/labels/{made['id']}", {"metadata": BAD[name]}).json()["code"] in codes
    bulk = send("POST", "/labels", {"labels": [{"name": "good"}, {"name": "new", "metadata": BAD[name]}]})
    if bulk.status_code == 200:
        assert [item["status"] for item in bulk.json()["data"]] == [201, 422]
    page = http.get("/labels").json()["data"]
    assert {label["name"] for label in page} <= {"old", "good"}
    assert page[0]["metadata"] == {"kept": True}


@pytest.mark.parametrize("name", BAD)
def test_the_store_refuses_it_too(store: LabelStore, name: str) -> None:
    vector = _vector()
    (made,) = store.add_many([(NewLabel("old"), vector)], FINGERPRINT)
    (refused,) = store.add_many([(NewLabel("new", metadata=BAD[name]), vector)], FINGERPRINT)
    assert isinstance(refused, InvalidParameter)
    assert not isinstance(made, Exception)
    with pytest.raises(InvalidParameter):
        store.update(made.id, LabelChanges(metadata=BAD[name]))
    assert [label.metadata for label in store.list().data] == [{}]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats()
    | st.text(st.characters(), max_size=12)
)
METADATA = st.dictionaries(
    st.text(st.characters(), max_size=8),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)
DEPTHS = st.integers(1, 2 * MAX_METADATA_LEVELS)
DEEP = st.builds(nested, DEPTHS, SCALARS, of_lists=st.booleans())


@settings(max_examples=150)
@given(metadata=METADATA | DEEP)
@example(metadata=nested(MAX_METADATA_LEVELS))
@example(metadata=nested(MAX_METADATA_LEVELS, of_lists=True))
@example(metadata=keys(MAX_METADATA_KEYS))
@example(metadata={"a": "x" * (MAX_METADATA_BYTES - 8)})
@example(metadata={"": 10**400, "__proto__": -0.0, "\u0000": 5e-324})
@example(metadata={"a": float("inf")})
def test_every_stored_label_can_be_read(http: TestClient, metadata: dict[str, Any]) -> None:
    clear(http)
    single = http.post("/labels", content=json.dumps({"name": "one", "metadata": metadata}), headers=JSON)
    batch = json.dumps({"labels": [{"name": "two", "metadata": metadata}, {"name": "three"}]})
    bulk = http.post("/labels", content=batch, headers=JSON)
    third = http.get("/labels", params={"prefix": "three"}).json()["data"]
    stored = {"one"} if single.status_code == 201 else set()
    if bulk.status_code == 200:
        stored |= {item["label"]["name"] for item in bulk.json()["data"] if item["status"] == 201}
    if third:
        path = f"/labels/{third[0]['id']}"
        patched = http.patch(path, content=json.dumps({"metadata": metadata}), headers=JSON)
        assert (patched.status_code == 200) == (single.status_code == 201)
        if patched.status_code == 200:
            again = http.get(path)
            assert again.status_code == 200
            assert again.json()["metadata"] == metadata
            assert http.patch(path, json={"name": "third"}).json()["metadata"] == metadata
    page = http.get("/labels")
    assert page.status_code == 200
    read = {label["name"]: label["metadata"] for label in page.json()["data"]}
    stored -= {"three"}  # which has another name by now
    assert stored <= set(read)
    assert all(read[name] == metadata for name in stored)


@pytest.mark.parametrize("of_lists", [False, True])
@pytest.mark.parametrize("num_levels", [40, 250, 256, 600, 900])
def test_labels_that_are_too_deep_already_hide_no_others(http: TestClient, num_levels: int, of_lists: bool) -> None:
    clear(http)
    made = http.post("/labels", json={"name": "poisoned", "categories": ["animal"]}).json()
    http.post("/labels", json={"name": "other", "categories": ["animal"]}).raise_for_status()
    store: LabelStore = http.app.state.context.parts.models.acquire("default", "").store  # type: ignore[attr-defined]
    label = store.get(made["id"])
    poisoned = make_label(
        label.id,
        NewLabel("poisoned", categories=("animal",), metadata=nested(num_levels, of_lists=of_lists)),
        created_at_ms=label.created_at_ms,
        updated_at_ms=label.updated_at_ms,
        revision=label.revision,
    )
    store._client.hset(store._keys.records, label.id, label_to_json(poisoned))
    for params in ({}, {"category": "animal"}, {"prefix": "p"}, {"q": "o"}, {"limit": 1}):
        answer = http.get("/labels", params=params)
        assert answer.status_code == 200, (params, answer.text[:200])
    names = [label["name"] for label in http.get("/labels").json()["data"]]
    assert names == ["poisoned", "other"]
    shown = http.get(f"/labels/{label.id}")
    assert shown.status_code == 200
    if num_levels > 200:
        assert shown.json()["metadata"] == {}
        assert [warning["code"] for warning in shown.json()["warnings"]] == ["metadata_not_shown"]
    renamed = http.patch(f"/labels/{label.id}", json={"name": "renamed"})
    assert renamed.status_code == 200, renamed.text[:200]
    assert store.get(label.id).metadata == poisoned.metadata, "what was not sent is kept"
    assert_problem(http.patch(f"/labels/{label.id}", json={"metadata": keys(1001)}), 422, "invalid_parameter")
    assert http.patch(f"/labels/{label.id}", json={"metadata": {"a": 1}}).json()["metadata"] == {"a": 1}


def test_a_label_file_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vidlex.service.cli import app

    path = tmp_path / "labels.jsonl"
    path.write_text('{"name": "x", "metadata": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}\n")
    result = CliRunner().invoke(app, ["labels", "import", str(path), "--url", "http://127.0.0.1:9"])
    assert result.exit_code != 0
    assert not isinstance(result.exception, RecursionError)


def _vector() -> Any:
    import numpy as np

    return np.eye(1, DIM, dtype=np.float32)[0]

"""Label cards and previews over HTTP, with a real store."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from fastapi.testclient import TestClient

from support.serving import add, assert_problem, clear, serving
from support.stores import label_id, label_of
from vidlex.model.dummy import DummyClassifier
from vidlex.service.classification.cards import COLLISION_DISTANCE, MAX_NEIGHBOURS, nearest
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.models.served_model import Vocabulary


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("cards")) as client:
        yield client


@pytest.fixture
def client(shared: TestClient) -> TestClient:
    clear(shared)
    return shared


def test_card_contains_prompts_neighbours_and_model(client: TestClient) -> None:
    red, yellow, green = add(client, "red", "yellow", "green")
    card = client.get(f"/labels/{red['id']}/card").json()
    assert (card["object"], card["id"], card["name"]) == ("label.card", red["id"], "red")
    assert (card["prompts"], card["attributes"]) == (["red"], [])
    assert [near["id"] for near in card["neighbours"]] == [yellow["id"], green["id"]]
    assert card["neighbours"][0]["similarity"] == pytest.approx(0.5**0.5, abs=1e-6)
    assert card["warnings"] == []
    assert card["model"] == {"id": "dummy", "fingerprint": "dummy-1"}
    assert card["vocabulary_revision"] == green["revision"]


def test_near_duplicates_give_a_warning(client: TestClient) -> None:
    (first,) = add(client, "abc")  # the dummy model maps words of equal length modulo 3 to one axis
    (second,) = add(client, "xyz")
    card = client.get(f"/v1/labels/{first['id']}/card").json()
    assert [warning["code"] for warning in card["warnings"]] == ["near_duplicate"]
    assert second["id"] in card["warnings"][0]["detail"]
    assert card["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("num_labels", "is_duplicate"), [(2, True), (60, False)])
def test_distance_is_relative_to_the_vocabulary(num_labels: int, is_duplicate: bool) -> None:
    """If all labels have a cosine of 0.9 to each other, 0.95 is no duplicate; with two labels it is."""
    axes = np.eye(num_labels + 1, dtype=np.float32)
    vectors = axes[:1] * 3 + axes[1:]  # cosine 0.9 to each other
    index = LabelIndex(num_labels + 1, "f")
    index.apply([label_of(i) for i in range(num_labels)], vectors)
    probe = vectors[0] + 0.45 * vectors[1]
    found = nearest(cast(Vocabulary, SimpleNamespace(index=index)), probe)
    assert len(found) == min(num_labels, MAX_NEIGHBOURS)
    assert found[0].label.id == label_id(0) and 0.95 < found[0].similarity < 0.995
    assert (found[0].distance <= COLLISION_DISTANCE) is is_duplicate
    assert label_id(0) not in [
        n.label.id for n in nearest(cast(Vocabulary, SimpleNamespace(index=index)), probe, label_id(0))
    ]


def test_preview_stores_nothing(client: TestClient) -> None:
    (red,) = add(client, "red", aliases=["rot"])
    card = client.post("/v1/labels:preview", json={"name": " Rot ", "categories": ["colour"]}).json()
    assert (card["id"], card["name"]) == (None, "Rot")
    assert "label_exists" in [warning["code"] for warning in card["warnings"]]
    assert [label["id"] for label in client.get("/labels").json()["data"]] == [red["id"]]
    fresh = client.post("/labels:preview", json={"name": "green"}).json()
    assert fresh["warnings"] == [] and fresh["neighbours"][0]["name"] == "red"


def test_preview_batch_items_are_independent(client: TestClient) -> None:
    items = [{"name": "red"}, {"name": ""}, {"nome": "x"}, {"name": "a " * 20}, {"name": "blue"}]
    answer = client.post("/labels:preview", json={"labels": items})
    data = answer.json()["data"]
    assert [item["status"] for item in data] == [200, 422, 422, 422, 200]
    assert [item["error"] and item["error"]["code"] for item in data] == [
        None, "label_text_invalid", "invalid_parameter", "label_text_invalid", None,
    ]  # fmt: skip
    assert [item["card"]["name"] for item in (data[0], data[4])] == ["red", "blue"]
    too_many = client.post("/labels:preview", json={"labels": [{"name": f"n{i}"} for i in range(33)]})
    assert_problem(too_many, 422, "invalid_parameter")


def test_preview_validates_like_registration(client: TestClient) -> None:
    assert_problem(client.get("/labels/lbl_none/card"), 404, "not_found")
    assert_problem(client.post("/labels:preview", json={"name": "\u202e"}), 422, "label_text_invalid")
    assert_problem(client.post("/labels:preview", json={"name": "a", "thresold": 1}), 422, "invalid_parameter")


def test_failing_description_gives_encode_failed(tmp_path_factory: pytest.TempPathFactory) -> None:
    class FailingDescriptions(DummyClassifier):
        def describe_labels(self, names: object) -> list[object]:  # type: ignore[override]
            raise RuntimeError("native error at /tmp/secret.py")

    with serving(tmp_path_factory.mktemp("failing"), classifier=FailingDescriptions()) as client:
        (red,) = add(client, "red")
        assert_problem(client.get(f"/labels/{red['id']}/card"), 503, "encode_failed")
        assert client.get("/readyz").status_code == 200

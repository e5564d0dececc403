"""VIDLEX_FEEDBACK_APPLY=auto: with enough judgements, beyond the uncertainty, never over a person's choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from support.judgements import judgement, thirty
from support.serving import add, clear, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("auto"), feedback_apply="auto") as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> TestClient:
    clear(service)
    return service


def post(client: TestClient, judgements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = client.post("/feedback", json={"judgements": judgements})
    assert answer.status_code == 201, answer.text
    applied: list[dict[str, Any]] = answer.json()["applied"]
    return applied


def threshold_of(client: TestClient, label: dict[str, Any]) -> Any:
    return client.get(f"/labels/{label['id']}").json()["threshold"]


def test_it_needs_enough_judgements(client: TestClient) -> None:
    (label,) = add(client, "red")
    for item in thirty("red")[:-1]:
        assert post(client, [item]) == []
        assert threshold_of(client, label) is None
    (version,) = post(client, thirty("red")[-1:])
    assert version["client"] == "auto"
    assert threshold_of(client, label) == version["threshold"]
    assert post(client, thirty("red")) == []  # nothing new


def test_it_needs_a_move_beyond_its_uncertainty(client: TestClient) -> None:
    (label,) = add(client, "red")
    # As the model says: right and wrong in equal parts at 0.5, so that the fitted threshold is about the one in use.
    scores = [0.05 + 0.9 * i / 39 for i in range(40)]
    assert post(client, [judgement(i, "red", i * 7 % 40 < 40 * s, s) for i, s in enumerate(scores)]) == []
    fit = client.get(f"/feedback/fits/{label['id']}").json()
    assert (fit["status"], fit["beyond_uncertainty"]) == ("ready", False)
    assert fit["low"] < 0.5 < fit["high"] and fit["threshold"] != 0.5
    assert threshold_of(client, label) is None


def test_it_changes_no_threshold_that_was_set_by_hand(client: TestClient) -> None:
    (label,) = add(client, "red", threshold=0.4)
    assert post(client, thirty("red")) == []
    assert threshold_of(client, label) == 0.4
    assert client.post(f"/feedback/fits/{label['id']}:apply").status_code == 200  # a person may


def test_it_moves_its_own_threshold_again(client: TestClient) -> None:
    (label,) = add(client, "red")
    (first,) = post(client, thirty("red"))
    more = [judgement(f"more {i}", "red", False, 0.75 + i / 300) for i in range(40)]
    (second,) = post(client, more)
    assert second["threshold_before"] == first["threshold"] < second["threshold"]
    assert [v["id"] for v in client.get(f"/feedback/fits/{label['id']}/versions").json()["data"]] == [
        second["id"],
        first["id"],
    ]


def test_several_labels_of_one_request(client: TestClient) -> None:
    add(client, "red", "green", "blue")
    applied = post(client, [*thirty("red"), *thirty("green"), *thirty("blue")[:10]])
    assert {version["label"] for version in applied} == {"red", "green"}

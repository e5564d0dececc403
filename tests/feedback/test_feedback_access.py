"""Who may judge and apply, and what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from support.judgements import judgement, thirty
from support.serving import assert_problem, serving
from vidlex.service.access.api_keys import new_key

READER, WRITER, OTHER = (new_key()[1] for _ in range(3))


def key(secret: str) -> dict[str, Any]:
    return {"headers": {"X-API-Key": secret}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    keys = [f"{READER} scope=read namespace=zoo", f"{WRITER} scope=write namespace=zoo"]
    (folder / "keys").write_text("\n".join([*keys, f"{OTHER} scope=write namespace=park"]) + "\n")
    with serving(folder / "data", api_keys_file=folder / "keys", rate_limit_per_second=0) as client:
        yield client


def test_keys_reach_what_they_may_and_changes_are_recorded(client: TestClient, folder: Path) -> None:
    label = client.post("/labels", json={"name": "red"}, **key(WRITER)).json()
    path = f"/feedback/fits/{label['id']}"
    body = {"judgements": thirty("red")}
    assert_problem(client.post("/feedback", json=body), 401, "unauthorized")
    assert_problem(client.post("/feedback", json=body, **key(READER)), 403, "forbidden")
    stored = client.post("/feedback", json=body, **key(WRITER)).json()["judgements"]
    # Another client's namespace, whether it names it or not.
    assert_problem(client.post("/feedback", json=judgement("a", "red", True), **key(OTHER)), 422, "invalid_parameter")
    assert_problem(client.get(path, **key(OTHER)), 404, "not_found")
    foreign: Any = {"headers": {"X-API-Key": OTHER, "X-Vidlex-Namespace": "zoo"}}
    assert_problem(client.get(path, **foreign), 403, "forbidden")

    assert client.get(path, **key(READER)).json()["status"] == "ready"
    for action in ("apply", "revert"):
        assert_problem(client.post(f"{path}:{action}", **key(READER)), 403, "forbidden")
    assert_problem(client.delete(f"/feedback/{stored[0]['id']}", **key(READER)), 403, "forbidden")
    version = client.post(f"{path}:apply", **key(WRITER)).json()
    key_id = WRITER.split("_")[1]
    assert version["client"] == key_id
    assert client.get(f"{path}/versions", **key(READER)).json()["data"] == [version]
    assert client.delete(f"/feedback/{stored[0]['id']}", **key(WRITER)).status_code == 204

    entries = [json.loads(line) for line in (folder / "data" / "audit.jsonl").read_text().splitlines()]
    (update,) = [entry for entry in entries if entry["action"] == "label.update"]
    assert (update["key_id"], update["object"]) == (key_id, label["id"])
    assert (update["before"]["threshold"], update["after"]["threshold"]) == (None, version["threshold"])
    (removal,) = [entry for entry in entries if entry["action"] == "feedback.remove"]
    assert (removal["object"], removal["before"]) == (stored[0]["id"], {"label_id": label["id"]})

"""The audit log and the log line of a request: who did what, with which outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from support.serving import add, classify, colour_video
from vidlex.model.dummy import DummyClassifier
from vidlex.service import audit
from vidlex.service.app import create_app
from vidlex.service.settings import load_settings


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TestClient]:
    chosen = load_settings(data_dir=folder / "data", decode_workers=1, **settings)
    with TestClient(create_app(chosen, classifier=DummyClassifier()), base_url="http://127.0.0.1") as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / audit.FILE_NAME).read_text().splitlines()]


def actions(folder: Path) -> list[str]:
    return [entry["action"] for entry in entries(folder)]


def test_changes_of_labels_are_recorded_with_both_states(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        (dog,) = add(client, "dog", metadata={"owner": "zoo"})
        (puppy,) = add(client, "puppy", parents=[dog["id"]])
        headers = {"X-Request-Id": "rename-1"}
        assert client.patch(f"/labels/{dog['id']}", json={"name": "hound"}, headers=headers).status_code == 200
        assert client.patch(f"/labels/{dog['id']}", json={"name": "hound"}).status_code == 200  # changes nothing
        assert client.post("/labels", json={"name": "Hound"}).status_code == 409
        assert client.delete(f"/labels/{dog['id']}").status_code == 204
        found = entries(tmp_path)
    created, child, renamed, failed, *removed = found
    assert (created["action"], created["object"], created["namespace"]) == ("label.create", dog["id"], "default")
    assert "before" not in created
    assert created["after"]["name"] == "dog" and created["after"]["metadata"] == {"owner": "zoo"}
    assert child["object"] == puppy["id"]
    assert (renamed["action"], renamed["request_id"], renamed["status"]) == ("label.update", "rename-1", 200)
    assert (renamed["method"], renamed["route"]) == ("PATCH", "/labels/{label_id}")
    assert (renamed["before"]["name"], renamed["after"]["name"]) == ("dog", "hound")
    assert (failed["action"], failed["code"], failed["status"]) == ("request.failed", "label_exists", 409)
    # The child lost its parent in the same step
    assert {(entry["action"], entry["object"]) for entry in removed} == {
        ("label.remove", dog["id"]),
        ("label.update", puppy["id"]),
    }
    assert all(entry["address"] == "testclient" and "key_id" not in entry for entry in found)


def test_reading_is_not_recorded(tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red")
    with serving(tmp_path) as client:
        add(client, "red")
        assert client.get("/labels").status_code == 200
        assert classify(client, video).status_code == 200
        assert classify(client, b"no video").status_code == 415
        assert actions(tmp_path) == ["label.create"]


def test_keys_are_recorded_when_made_used_refused_and_revoked(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        made = client.post("/keys", json={"scope": "admin", "name": "first"}).json()
        admin = {"Authorization": f"Bearer {made['key']}"}
        reader = client.post("/keys", json={"scope": "read", "namespace": "zoo"}, headers=admin).json()
        reading = {"Authorization": f"Bearer {reader['key']}"}
        assert client.get("/labels", headers=reading).status_code == 200
        assert client.get("/labels", headers=reading).status_code == 200
        assert client.post("/labels", json={"name": "cat"}, headers=reading).status_code == 403
        assert client.get("/labels").status_code == 401
        assert client.delete(f"/keys/{reader['id']}", headers=admin).status_code == 204
        found = entries(tmp_path)
    text = json.dumps(found)
    assert made["key"] not in text and reader["key"] not in text and "digest" not in text
    assert [entry["action"] for entry in found] == [
        "key.create", "key.use", "key.create", "key.use", "access.refused", "access.refused", "key.revoke"
    ]  # fmt: skip
    first, admin_use, second, use, forbidden, unauthorized, revoked = found
    assert first["after"] == {"id": made["id"], "scope": "admin", "name": "first"} | {
        name: first["after"][name] for name in ("created_at_ms",)
    }
    assert admin_use["key_id"] == second["key_id"] == revoked["key_id"] == made["id"]
    assert (second["object"], second["after"]["namespace"], second["scope"]) == (reader["id"], "zoo", "admin")
    assert (use["key_id"], use["namespace"]) == (reader["id"], "zoo")
    assert (forbidden["code"], forbidden["key_id"]) == ("forbidden", reader["id"])
    assert (unauthorized["code"], "key_id" in unauthorized) == ("unauthorized", False)
    assert revoked["before"]["scope"] == "read"


def test_a_batch_is_recorded_label_by_label(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        body = {"labels": [{"name": "one"}, {"name": "two"}, {"name": "\0"}]}
        assert client.post("/labels", json=body).status_code == 200
        assert [entry["after"]["name"] for entry in entries(tmp_path)] == ["one", "two"]


def test_models_and_calibrations_are_recorded(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_models=("dummy:2",)) as client:
        assert client.post("/models:rollback").status_code == 409
        assert client.post("/models:drop", json={"fingerprint": "none"}).status_code == 404
        assert actions(tmp_path) == ["request.failed", "request.failed"]


def test_the_line_of_a_request_tells_key_namespace_bytes_and_stages(tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red")
    with serving(tmp_path) as client:
        key = client.post("/keys", json={"scope": "admin"}).json()
        client.headers["Authorization"] = f"Bearer {key['key']}"
        add(client, "red")
        with capture_logs() as logs:
            assert classify(client, video).status_code == 200
    (line,) = [entry for entry in logs if entry["event"] == "request"]
    assert (line["key_id"], line["namespace"]) == (key["id"], "default")
    assert line["bytes"] > video.stat().st_size
    assert {"upload", "decode", "queue", "encode", "match"} <= set(line["stage_ms"])
    assert all(isinstance(ms, int) and ms >= 0 for ms in line["stage_ms"].values())


def test_the_file_is_private_and_changes_survive_a_log_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as client:
        add(client, "one")
        path = tmp_path / "data" / audit.FILE_NAME
        assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()
    with serving(tmp_path) as client, caplog.at_level(logging.ERROR):
        add(client, "two")
        assert "vidlex_audit_failures_total 1.0" in client.get("/metrics").text
    assert "audit_line_lost" in caplog.text


def test_it_can_be_turned_off_and_sent_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, audit_log="off") as client:
        add(client, "one")
    assert not (tmp_path / "data" / audit.FILE_NAME).exists()
    with serving(tmp_path, audit_log="stdout") as client:
        add(client, "two")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "label.create" in line]
    assert json.loads(line)["after"]["name"] == "two"


def test_old_files_are_kept_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 1000)
    log = audit.AuditLog("file", tmp_path)
    for number in range(400):
        log.write("label.create", {"object": f"label {number}"})
    log.close()
    files = sorted(tmp_path.glob(f"{audit.FILE_NAME}*"))
    assert len(files) == audit.NUM_OLD_FILES + 1
    assert all(path.stat().st_size <= 1000 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert json.loads((tmp_path / audit.FILE_NAME).read_text().splitlines()[-1])["object"] == "label 399"


def test_use_of_a_key_is_recorded_once_an_hour_and_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])
    log = audit.AuditLog("off", tmp_path)
    assert [log.is_first_use("a", "1"), log.is_first_use("a", "1"), log.is_first_use("a", "2")] == [True, False, True]
    now[0] = 3599.0
    assert not log.is_first_use("a", "1")
    now[0] = 3601.0
    assert log.is_first_use("a", "1")
    for number in range(5000):
        log.is_first_use("b", str(number))
    assert len(log._key_uses) <= 4096

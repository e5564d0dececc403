"""`vidlex keys` with a running service: through the store and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner, Result

from support.live import live_service
from support.processes import until
from vidlex.service.cli import app

runner = CliRunner()


def vidlex(*arguments: str, **environment: str) -> Result:
    return runner.invoke(app, list(arguments), env={"COLUMNS": "200", "VIDLEX_API_KEY": "", **environment})


def first(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[0])
    return found


def test_keys_are_created_listed_and_revoked(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    created = first(vidlex("keys", "create", "--direct", "--scope", "admin", "--json", VIDLEX_DATA_DIR=data))
    with live_service(tmp_path / "data") as url:
        refused = vidlex("labels", "list", VIDLEX_URL=url)
        assert refused.exit_code == 1 and "VIDLEX_API_KEY" in refused.stderr and "(unauthorized)" in refused.stderr
        admin = {"VIDLEX_URL": url, "VIDLEX_API_KEY": created["key"]}
        assert vidlex("labels", "add", "red", **admin).exit_code == 0
        plain = vidlex("keys", "create", "--name", "camera", "--expires-in-days", "1", **admin)
        key = plain.stdout.strip()
        assert key.startswith("vdx_") and key not in plain.stderr and "The secret is shown only once" in plain.stderr
        reader = {"VIDLEX_URL": url, "VIDLEX_API_KEY": key}
        assert "red" in vidlex("labels", "list", **reader).stdout
        assert "(forbidden)" in vidlex("labels", "add", "blue", **reader).stderr
        listed = vidlex("keys", "list", **admin).stdout
        assert "camera" in listed and key not in listed
        # --direct shares the store of the running service.
        second = first(vidlex("keys", "create", "--direct", "--scope", "admin", "--json", VIDLEX_DATA_DIR=data))
        rows = vidlex("keys", "list", "--direct", "--json", VIDLEX_DATA_DIR=data).stdout.splitlines()
        assert [json.loads(row)["scope"] for row in rows] == ["admin", "read", "admin"]
        assert "digest" not in rows[0]
        headers = {"X-API-Key": second["key"]}
        until(lambda: httpx.get(f"{url}/labels", headers=headers, timeout=60, trust_env=False).status_code == 200)
        revoked = vidlex("keys", "revoke", created["id"], VIDLEX_URL=url, VIDLEX_API_KEY=second["key"])
        assert revoked.exit_code == 0, revoked.output
        headers = {"X-API-Key": created["key"]}
        assert httpx.get(f"{url}/labels", headers=headers, timeout=60, trust_env=False).status_code == 401
    entries = [json.loads(line) for line in (tmp_path / "data" / "audit.jsonl").read_text().splitlines()]
    direct = [entry for entry in entries if entry.get("command") == "vidlex keys"]
    assert [(entry["action"], entry["object"]) for entry in direct] == [
        ("key.create", created["id"]),
        ("key.create", second["id"]),
    ]
    assert all(entry["user"] and created["key"] not in json.dumps(entry) for entry in direct)


def test_a_direct_key_names_its_store_and_warns_of_another_one(tmp_path: Path) -> None:
    default = {"XDG_DATA_HOME": str(tmp_path / "home")}
    with live_service(tmp_path / "data") as url:
        # Without --data-dir it is written to the default folder, which this service does not use.
        wrong = vidlex("keys", "create", "--direct", "--url", url, **default)
        assert wrong.exit_code == 0, wrong.output
        assert str(tmp_path / "home" / "vidlex") in wrong.stderr and "uses another store" in wrong.stderr
        assert httpx.get(f"{url}/labels", timeout=60, trust_env=False).status_code == 200  # still open
        folder = ("--data-dir", str(tmp_path / "data"))
        right = vidlex("keys", "create", "--direct", "--scope", "admin", *folder, "--url", url, **default)
        assert str(tmp_path / "data") in right.stderr and "another store" not in right.stderr, right.output
        headers = {"X-API-Key": right.stdout.strip()}
        until(lambda: httpx.get(f"{url}/labels", timeout=60, trust_env=False).status_code == 401)
        assert httpx.get(f"{url}/labels", headers=headers, timeout=60, trust_env=False).status_code == 200
        listed = vidlex("keys", "list", "--direct", "--json", *folder, **default)
        assert len(listed.stdout.splitlines()) == 1
    assert vidlex("keys", "list", *folder, **default).exit_code == 2  # it would be ignored


def test_doctor_reports_risky_settings(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("sesame\n")
    base = {"VIDLEX_DATA_DIR": str(tmp_path), "VIDLEX_MODEL": "dummy"}

    def access(**environment: str) -> str:
        found = json.loads(vidlex("doctor", "--json", **base, **environment).stdout)["findings"]
        return "\n".join(f"{f['status']}: {f['detail']}" for f in found if f["what"] == "access")

    assert access().startswith("ok: open on 127.0.0.1")
    assert "note: 0.0.0.0 (VIDLEX_HOST) is public" in access(VIDLEX_HOST="0.0.0.0")
    risky = access(VIDLEX_HOST="0.0.0.0", VIDLEX_INSECURE="true", VIDLEX_REDIS_URL="redis://127.0.0.1:1")
    assert "anyone on the network" in risky and "no password" in risky

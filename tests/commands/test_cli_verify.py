"""`vidlex labels verify` while a service runs, and on a damaged store."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from support.live import live_service
from vidlex.service.cli import app
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.redis_keys import Keys

runner = CliRunner()


def test_verify_accepts_a_consistent_store_and_rejects_a_damaged_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = ["labels", "verify", "--data-dir", str(data), "--json"]
    empty = runner.invoke(app, command)
    assert (empty.exit_code, json.loads(empty.stdout)) == (0, {"namespaces": {}, "consistent": True})
    with live_service(data) as url:
        assert runner.invoke(app, ["labels", "add", "red", "blue", "--url", url]).exit_code == 0
        running = runner.invoke(app, command)
        assert (running.exit_code, json.loads(running.stdout)) == (
            0,
            {"namespaces": {"default": []}, "consistent": True},
        )
    with EmbeddedStore(data) as embedded:
        embedded.client().hdel(Keys("default").names, "red")
    damaged = runner.invoke(app, command)
    assert damaged.exit_code == 1
    assert "red" in json.loads(damaged.stdout.splitlines()[0])["namespaces"]["default"][0]

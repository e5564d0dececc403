"""`vidlex labels verify`: beside a running service, and on a store that somebody has damaged."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from support.live import live_service
from vidlex.service.cli import app
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.redis_keys import Keys

runner = CliRunner()


def test_a_whole_store_and_a_damaged_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = ["labels", "verify", "--data-dir", str(data), "--json"]
    empty = runner.invoke(app, command)
    assert (empty.exit_code, json.loads(empty.stdout)) == (0, {"namespaces": {}, "whole": True})
    with live_service(data) as url:
        assert runner.invoke(app, ["labels", "add", "red", "blue", "--url", url]).exit_code == 0
        beside = runner.invoke(app, command)
        assert (beside.exit_code, json.loads(beside.stdout)) == (0, {"namespaces": {"default": []}, "whole": True})
    with EmbeddedStore(data) as embedded:
        embedded.client().hdel(Keys("default").names, "red")
    damaged = runner.invoke(app, command)
    assert damaged.exit_code == 1
    assert "red" in json.loads(damaged.stdout.splitlines()[0])["namespaces"]["default"][0]

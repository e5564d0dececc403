"""The systemd unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.topology import ROOT
from vidlex.service.settings import unknown_variables

UNIT = ROOT / "docker" / "systemd" / "vidlex.service"


def entries() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))


def test_the_unit_runs_the_service_as_its_own_user_in_its_own_folders() -> None:
    found = entries()
    assert found["ExecStart"] == "/opt/vidlex/bin/vidlex serve" and found["User"] == "vidlex"
    variables = dict(word.split("=", 1) for word in found["Environment"].split())
    assert unknown_variables(variables) == []
    assert variables["VIDLEX_DATA_DIR"] == f"/var/lib/{found['StateDirectory']}"
    assert variables["VIDLEX_CACHE_DIR"] == f"/var/cache/{found['CacheDirectory']}"


def test_the_unit_is_locked_down_and_leaves_decoders_their_namespaces() -> None:
    found = entries()
    assert found["ProtectSystem"] == "strict" and found["NoNewPrivileges"] == "yes"
    assert found["CapabilityBoundingSet"] == "" and found["MemoryMax"] and found["TasksMax"]
    assert "RestrictNamespaces" not in found and "MemoryDenyWriteExecute" not in found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/vidlex/bin/vidlex", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False
    )
    assert not re.search(r"Unknown|Failed to parse|invalid", done.stderr), done.stderr

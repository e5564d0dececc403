"""docker/upgrade.sh with a stand-in for docker, which records what it is asked."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.topology import ROOT

UP_TO_DATE = '{"pending":{},"schema":3}'
_DOCKER = """#!/bin/sh
echo "$*" >>"$RECORD"
case "$*" in
    *"printenv PROXY_UPSTREAMS"*) echo "$UPSTREAMS" ;;
    *"migrate --dry-run"*) echo "$PLAN" ;;
    *"--wait --wait-timeout"*"$FAILING") exit 1 ;;
esac
"""


def upgrade(
    folder: Path, *arguments: str, plan: str = UP_TO_DATE, upstreams: str = "service-a:8000 service-b:8000",
    failing: str = "none",
) -> tuple[int, str, list[str]]:  # fmt: skip
    """Status, output, and what was asked of docker, shortened."""
    program = folder / "docker"
    program.write_text(_DOCKER.replace("sleep", ":"))
    program.chmod(0o755)
    (folder / "sleep").write_text("#!/bin/sh\n")
    (folder / "sleep").chmod(0o755)
    record = folder / "record"
    record.write_text("")
    environment = dict(os.environ) | {
        "PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(record), "PLAN": plan, "UPSTREAMS": upstreams,
        "FAILING": failing,
    }  # fmt: skip
    done = subprocess.run(
        ["sh", str(ROOT / "docker/upgrade.sh"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    asked = []
    for line in record.read_text().splitlines():
        started = re.search(r" up -d.* (\S+)$", line)
        if started:
            asked.append(f"up {line.rpartition('600 ')[2]}")
        elif " stop " in line or "-T migrate" in line or "-T fetch" in line:
            asked.append(line.partition("compose ")[2])
    return done.returncode, done.stdout + done.stderr, asked


def test_replicas_are_replaced_one_after_the_other(tmp_path: Path) -> None:
    status, output, asked = upgrade(tmp_path)
    assert status == 0, output
    assert asked == [
        "run --rm --no-deps -T migrate migrate --dry-run --json",
        "run --rm --no-deps -T fetch",
        "up service-a",
        "up service-b",
    ]


def test_a_change_of_the_schema_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    status, output, asked = upgrade(tmp_path, plan='{"pending":{"m003_x":{"records":7}},"schema":2}')
    assert status == 3 and "--stop" in output and "m003_x" in output
    assert not [line for line in asked if line.startswith(("up", "stop"))]


def test_with_stop_all_replicas_end_before_the_store_is_migrated(tmp_path: Path) -> None:
    status, output, asked = upgrade(tmp_path, "--stop", plan='{"pending":{"m003_x":{}},"schema":2}')
    assert status == 0, output
    assert asked[2:] == ["stop service-a service-b", "run --rm --no-deps -T migrate", "up service-a service-b"]


def test_a_replica_that_does_not_become_ready_ends_the_upgrade(tmp_path: Path) -> None:
    status, output, asked = upgrade(tmp_path, failing="service-a")
    assert status == 1 and "service-a did not become ready" in output
    assert asked[-1] == "up service-a", "the other one serves on"


@pytest.mark.parametrize(
    ("plan", "upstreams", "status"),
    [("error: the store is newer", "service-a:8000 service-b:8000", 1), (UP_TO_DATE, "service-gpu:8000", 3)],
)
def test_what_is_not_understood_or_cannot_be_done_is_refused(
    tmp_path: Path, plan: str, upstreams: str, status: int
) -> None:
    found, output, asked = upgrade(tmp_path, plan=plan, upstreams=upstreams)
    assert found == status, output
    assert not [line for line in asked if line.startswith(("up", "stop"))]


def test_an_unknown_option_shows_the_use(tmp_path: Path) -> None:
    status, output, asked = upgrade(tmp_path, "--hurry")
    assert status == 2 and "docker/upgrade.sh --stop" in output and not asked

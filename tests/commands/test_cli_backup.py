"""`vidlex backup` and `vidlex restore` on the embedded store of a running service, and with restricted users."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from typer.testing import CliRunner

from support.backups import content_of
from support.live import live_service
from support.paths import ROOT
from support.processes import until
from support.stores import FINGERPRINT, running_store, url_of, vector_of
from vidlex.migrations.runner import migrate
from vidlex.service.cli import app
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import NewLabel

runner = CliRunner()


def run(*words: str, code: int = 0) -> dict[str, Any]:
    done = runner.invoke(app, [*words, "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads((done.stdout or done.stderr).splitlines()[-1])
    return found


def labels_of(url: str, **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = httpx.get(f"{url}/labels", params={"limit": 1000, **after}, headers=headers, trust_env=False).json()
        found += page["data"]
        if not page["has_more"]:
            return found


@pytest.mark.timeout(600)
def test_backup_of_a_running_service_and_restore_into_another(tmp_path: Path) -> None:
    data, other, file = tmp_path / "data", tmp_path / "other", tmp_path / "backup.vidlex"
    stop = threading.Event()
    acknowledged: list[str] = []

    def write(url: str, auth: dict[str, str]) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            answer = httpx.post(f"{url}/labels", json={"name": f"label {number}"}, headers=auth, trust_env=False)
            assert answer.status_code == 201
            acknowledged.append(answer.json()["id"])

    with live_service(data) as url:
        secret = run("keys", "create", "--scope", "admin", "--url", url)["key"]
        auth = {"Authorization": f"Bearer {secret}"}
        writer = threading.Thread(target=write, args=(url, auth))
        writer.start()
        until(lambda: len(acknowledged) > 5)
        before = list(acknowledged)
        written = run("backup", str(file), "--data-dir", str(data))
        stop.set()
        writer.join()
        final = labels_of(url, **auth)
    stopped = run("backup", str(tmp_path / "stopped"), "--data-dir", str(data))
    assert stopped["namespaces"]["default"]["labels"] == len(final)
    assert written["keys"] == 1 and written["damaged"] == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("restore", str(file), "--check")["namespaces"]["default"] == {
        "labels": written["namespaces"]["default"]["labels"]
    }
    assert run("restore", str(file), "--data-dir", str(other))["keys"] == 1
    with live_service(other) as url:
        assert httpx.get(f"{url}/labels", trust_env=False).status_code == 401
        restored = labels_of(url, **auth)
        assert restored == final[: len(restored)] and set(before) <= {label["id"] for label in restored}
        # A store in use is refused, and keeps what it has.
        refused = run("restore", str(file), "--data-dir", str(other), code=1)
        assert "not empty" in refused["error"]["detail"]
        assert labels_of(url, **auth) == restored
        # It follows a forced restore without a restart.
        httpx.post(f"{url}/labels", json={"name": "later"}, headers=auth, trust_env=False).raise_for_status()
        run("restore", str(file), "--data-dir", str(other), "--force")
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200)
        until(lambda: labels_of(url, **auth) == restored)


@pytest.fixture
def two_stores(tmp_path: Path) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    with running_store(tmp_path / "from") as source, running_store(tmp_path / "to") as target:
        migrate(source)
        store = LabelStore(source)
        items = [(NewLabel(f"label {i}"), vector_of(f"label {i}", 200)) for i in range(3000)]
        store.add_many(items, FINGERPRINT)
        yield source, target


def environment_of(client: redis.Redis, user: str = "") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    return kept | {"VIDLEX_REDIS_URL": url_of(client).replace("unix://", f"unix://{user}")}


def vidlex(*words: str, env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vidlex.service.cli", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.timeout(300)
def test_a_backup_that_is_killed_leaves_the_last_one(
    two_stores: tuple[redis.Redis, redis.Redis], tmp_path: Path
) -> None:
    source, _ = two_stores
    file = tmp_path / "backup.vidlex"
    file.write_bytes(b"the last one")
    part = tmp_path / ".backup.vidlex.part"
    killed = vidlex("backup", str(file), env=environment_of(source))
    until(lambda: part.exists() and part.stat().st_size > 0)
    killed.send_signal(signal.SIGSTOP)
    second = vidlex("backup", str(file), env=environment_of(source))
    assert second.wait(120) == 1 and b"another backup is writing" in (second.stderr.read() if second.stderr else b"")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert file.read_bytes() == b"the last one"
    repeated = vidlex("backup", str(file), env=environment_of(source))
    assert repeated.wait(120) == 0
    assert not part.exists()
    assert run("restore", str(file), "--check")["namespaces"] == {"default": {"labels": 3000}}


def test_standard_input_and_output(two_stores: tuple[redis.Redis, redis.Redis]) -> None:
    source, target = two_stores
    out, _ = vidlex("backup", "-", env=environment_of(source)).communicate(timeout=120)
    restoring = vidlex("restore", "-", "--json", env=environment_of(target), stdin=subprocess.PIPE)
    answer, errors = restoring.communicate(out, timeout=120)
    assert restoring.returncode == 0, errors
    assert json.loads(answer)["namespaces"] == {"default": {"labels": 3000}}
    assert content_of(target) == content_of(source)


def documented_rules() -> str:
    """Of the user of the store that may only write backups."""
    text = (ROOT / "service" / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER backup ")]
    return line


def test_a_user_that_may_only_read_writes_backups(two_stores: tuple[redis.Redis, redis.Redis], tmp_path: Path) -> None:
    source, target = two_stores
    source.execute_command(*documented_rules().replace("PASSWORD", "secret").split())
    limited = redis.Redis(unix_socket_path=url_of(source).removeprefix("unix://"), username="backup", password="secret")
    for refused in (
        lambda: limited.set("vidlex:{default}:records", 1),
        lambda: limited.get("another application"),
        lambda: limited.execute_command("CONFIG", "GET", "*"),
        limited.flushall,
        lambda: limited.eval("return 1", 0),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()  # type: ignore[no-untyped-call]
    file = tmp_path / "backup.vidlex"
    user = environment_of(source, "backup:secret@")
    written = vidlex("backup", str(file), "--json", env=user)
    out, errors = written.communicate(timeout=120)
    assert written.returncode == 0, errors
    assert "secret" not in out.decode()
    denied = vidlex("restore", str(file), "--force", env=user)
    _, errors = denied.communicate(timeout=120)
    assert (denied.returncode == 1 and b"NOPERM" in errors.upper()) or b"NoPermission" in errors
    # A restore needs the rights of the service's own user, as of docker/valkey-start.sh.
    rules = (ROOT / "docker" / "valkey-start.sh").read_text().split("user vidlex on ")[1].splitlines()[0]
    words = [word for word in rules.split() if not word.startswith("#") and word != "sanitize-payload"]
    target.execute_command("ACL", "SETUSER", "vidlex", "on", ">secret", *words)
    restored = vidlex("restore", str(file), "--json", env=environment_of(target, "vidlex:secret@"))
    out, errors = restored.communicate(timeout=120)
    assert restored.returncode == 0, errors
    assert content_of(target) == content_of(source)


def test_mistakes_are_reported(tmp_path: Path, two_stores: tuple[redis.Redis, redis.Redis]) -> None:
    nothing = run("backup", str(tmp_path / "x"), "--data-dir", str(tmp_path / "nothing"), code=1)
    assert "no label store" in nothing["error"]["detail"] and not (tmp_path / "nothing").exists()
    missing = run("restore", str(tmp_path / "x"), code=1)
    assert "No such file" in missing["error"]["detail"]
    assert run("restore", code=2)["error"]["detail"] == "give a FILE, or --abandon"
    (tmp_path / "text").write_text("hello")
    assert "not a backup" in run("restore", str(tmp_path / "text"), "--check", code=1)["error"]["detail"]
    source, _ = two_stores
    done = vidlex("backup", str(tmp_path / "missing folder" / "x"), env=environment_of(source))
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 1 and b"No such file" in errors and b"Traceback" not in errors

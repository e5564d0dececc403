"""A decode process that a file has taken over: what it reaches, and that the service tells the truth about it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import videos
from support.decode_all import decode_all
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS, num_descriptors, until, wait_for_end, worker_pids
from support.serving import add, serving
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.isolation.report import TARGETS, Isolation, isolation_of, least
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.decode.process_watch import max_threads
from vidlex.service.errors import Overloaded, UndecodableVideo, VidlexError
from vidlex.service.sharing.requester import Requester

ORDINARY_USER = 65533
JOB = DecodeJob(FrameGeometry(32), 1)
LACKS = {
    "nothing": {},
    "namespaces": {"unshare": "EPERM"},
    "landlock": {"landlock_create_ruleset": "ENOSYS"},
    "namespaces and landlock": {"unshare": "EPERM", "landlock_create_ruleset": "ENOSYS"},
    "seccomp": {"seccomp": "EINVAL"},
    "namespaces and seccomp": {"unshare": "EPERM", "seccomp": "EINVAL"},
    "everything": {"unshare": "EPERM", "landlock_create_ruleset": "ENOSYS", "seccomp": "EINVAL"},
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def trial(folder: Path, lacks: dict[str, str], *, user: int | None = None, required: str = "none") -> dict[str, Any]:
    """`support.sandbox_trial`, as another user if one is given."""
    python, paths = sys.executable, [str(TESTS)]
    if user is not None:
        folder.chmod(0o777)
        python = interpreter_for(user)
        paths += [path for path in sys.path if path]
    done = subprocess.run(
        [python, "-P", "-m", "support.sandbox_trial", str(folder), json.dumps(lacks), required],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        **({} if user is None else {"user": user, "group": user, "extra_groups": []}),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def interpreter_for(user: int) -> str:
    """One of this version that the user may run: root's own may lie in root's home folder."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    code = "import numpy, av, structlog, vidlex.service.decode.pool"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            subprocess.run(
                [python, "-P", "-c", code],
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                user=user,
                group=user,
                extra_groups=[],
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no interpreter that another user may run")


@pytest.mark.parametrize("user", [None, ORDINARY_USER], ids=["this user", "ordinary user"])
@pytest.mark.parametrize("lack", LACKS)
def test_what_is_reported_is_what_can_be_done(lack: str, user: int | None) -> None:
    with tempfile.TemporaryDirectory() as name:  # which another user can reach, unlike pytest's
        found = trial(Path(name), LACKS[lack], user=user)
    assert set(found["done"]) == set(found["reachable"]), found
    missing = " ".join(found["missing"])
    for name, word in (("unshare", "namespaces"), ("landlock_create_ruleset", "Landlock"), ("seccomp", "seccomp")):
        assert (name in LACKS[lack]) == (word in missing), found
    if "seccomp" not in LACKS[lack]:
        assert found["level"] == "full" and not found["done"]
    else:
        assert found["level"] != "full" and {"processes", "system_calls"} <= set(found["reachable"])
        assert "memory" not in found["done"]  # of a service that no process of its user can trace


def test_less_isolation_than_required_refuses_to_start(tmp_path: Path) -> None:
    found = trial(tmp_path, {"seccomp": "EINVAL"}, required="full")
    assert "must be isolated (full), but are partial: " in found["refused"]
    assert "without seccomp (Invalid argument)" in found["refused"]
    (other := tmp_path / "other").mkdir()
    assert "done" in trial(other, {"seccomp": "EINVAL"}, required="partial")


# --- in a whole service


@pytest.fixture
def evil_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setattr(
            "vidlex.service.runtime.runtime.DecodePool", partial(DecodePool, entry="support.evil_decoder:decode")
        )
        with serving(folder) as client:
            add(client, "red")
            yield client, folder


def test_a_file_that_takes_a_process_over_reaches_nothing_of_the_service(evil_client: tuple[Any, Path]) -> None:
    client, folder = evil_client
    (store,) = (path for path in folder.rglob("*") if path.is_socket())
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(store))  # the service's user can
    (folder / "secret").write_text("secret")
    facts = {
        "folder": str(folder),
        "pid": os.getpid(),
        "port": 9,
        "answers_udp": False,
        "store": str(store),
        "abstract": "vidlex-none",
        "secret_address": id(folder),
    }
    done = client.post("/classify", files={"file": ("v.mp4", json.dumps(facts).encode(), "video/mp4")})
    assert done.status_code == 422 and done.json()["detail"] == "{}", done.text
    check = client.get("/readyz").json()["checks"]["isolation"]
    assert check["ok"] and check["detail"].startswith("full")
    metrics = client.get("/metrics").text.splitlines()
    assert 'vidlex_decode_isolated{level="full"} 1.0' in metrics
    assert {f'vidlex_decode_reachable{{target="{target}"}} 0.0' for target in TARGETS} <= set(metrics)


# --- what a process takes


@pytest.fixture
def exhausting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return partial(DecodePool, entry="support.evil_decoder:exhaust")


def written(folder: Path, text: str) -> Path:
    path = folder / f"{text}.mp4"
    path.write_text(text)
    return path


def test_memory_of_all_processes_together_is_bounded(exhausting: Any, tmp_path: Path) -> None:
    """Each alone is within every limit; both hold what they have until they are ended."""
    path = written(tmp_path, "memory 200")
    stop, outcomes = threading.Event(), []

    def decode(pool: DecodePool) -> None:
        try:
            with pool.decode_chunks(path, JOB, requester=Requester(cancelled=stop)) as stream:
                list(stream)
        except VidlexError as error:
            outcomes.append(error)

    with exhausting(2, PoolLimits(total_memory_bytes=300 * 2**20)) as pool:
        pids = set(worker_pids(pool))
        threads = [threading.Thread(target=decode, args=(pool,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(outcomes) == 1)
        assert isinstance(outcomes[0], Overloaded) and outcomes[0].extra["limit"] == "decode_memory"
        until(lambda: len(pids & set(worker_pids(pool))) == 1)  # the other goes on
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def test_one_file_takes_no_more_than_all_may(exhausting: Any, tmp_path: Path) -> None:
    with exhausting(1, PoolLimits(total_memory_bytes=100 * 2**20)) as pool:
        (pid,) = worker_pids(pool)
        with pytest.raises(UndecodableVideo, match="more memory than is allowed"):
            decode_all(pool, written(tmp_path, "memory 200"), JOB)
        wait_for_end(pid)


def test_threads_of_a_process_are_bounded(exhausting: Any, tmp_path: Path) -> None:
    with exhausting(1) as pool:
        (pid,) = worker_pids(pool)
        with pytest.raises(UndecodableVideo) as caught:
            decode_all(pool, written(tmp_path, "threads"), JOB)
        number, _, word = str(caught.value).partition(" ")
        if word == "threads":  # by the kernel, in a user namespace of its own
            assert int(number) <= max_threads()
        else:
            assert "made the decoder fail" in str(caught.value)
            wait_for_end(pid)


def test_descriptors_that_a_process_sends_are_not_taken(exhausting: Any, tmp_path: Path) -> None:
    with exhausting(1) as pool:
        before = num_descriptors()
        with pytest.raises(UndecodableVideo, match="given away"):
            decode_all(pool, written(tmp_path, "descriptors"), JOB)
        assert num_descriptors() <= before + 1  # the memory of the file's frames; the process has sent about 50


# --- reports


def test_levels_and_reports() -> None:
    whole, some = Isolation((), ("Landlock (x)",)), Isolation(("network",), ("seccomp (y)",))
    assert (whole.level, some.level, Isolation(TARGETS, ()).level) == ("full", "partial", "none")
    assert str(whole) == "full; without Landlock (x)"
    assert str(some) == "partial: code in a decode process could reach the network; without seccomp (y)"
    assert least([whole, some]) == Isolation(("network",), ("Landlock (x)", "seccomp (y)"))
    assert least([]) is None
    assert some.is_at_least("partial") and not some.is_at_least("full") and whole.is_at_least("full")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"reachable": [], "missing": "x"},
        {"reachable": ["moon"], "missing": []},
        {"reachable": [], "missing": ["x"] * 1000},
        {"reachable": [[]], "missing": []},
    ],
)
def test_a_forged_report_is_refused(value: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        isolation_of(value)


def test_a_decoded_file_needs_nothing_that_was_not_loaded(tmp_path: Path) -> None:
    """Modules that a library imports with the first file would be missing behind the lock."""
    code = """
import sys
from pathlib import Path
from vidlex.model.decode.decoder import decode_chunks
from vidlex.model.decode.limits import DecodeError
from vidlex.model.decode.preload import preload
from vidlex.model.types import FrameGeometry
preload()
before = set(sys.modules)
for path in Path(sys.argv[1]).iterdir():
    for policy in ("uniform", "shots", "keyframes"):
        try:
            list(decode_chunks(path, max_chunk_frames=4, geometry=FrameGeometry(32), num_frames=8, policy=policy))
        except DecodeError:
            pass
print(sorted(set(sys.modules) - before))
"""
    from fuzz.format_files import valid_formats, write_webp

    files, made = tmp_path / "files", tmp_path / "made"
    files.mkdir()
    made.mkdir()
    for number, data in enumerate(valid_formats(made).values()):
        (files / f"{number}").write_bytes(data)
        (files / f"{number} cut").write_bytes(data[: len(data) // 2])
    write_webp(files / "moving.webp", [100] * 5)
    videos.flip_bits(videos.write_video(made / "v.mp4"), files / "flipped.mp4", seed=1)
    done = subprocess.run(
        [sys.executable, "-c", code, str(files)], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.strip() == "[]"


def test_the_service_refuses_to_start_with_less_isolation_than_required(tmp_path: Path) -> None:
    code = """
import errno, os, sys
from vidlex.service.decode.isolation.seccomp import refuse
from vidlex.service.decode.isolation.syscalls import prctl
prctl(38, 1)  # no_new_privs
refuse(["seccomp"], errno.EINVAL)
os.execv(sys.executable, [sys.executable, "-m", "vidlex", "serve"])
"""
    settings = {"DATA_DIR": str(tmp_path), "MODEL": "dummy", "PORT": "0", "REQUIRE_ISOLATION": "full"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {f"VIDLEX_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "decode processes must be isolated (full), but are partial: " in done.stderr.splitlines()[-1]

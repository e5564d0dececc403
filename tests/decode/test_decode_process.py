"""What a decode process is given, what it keeps to itself, and when it ends."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.decode_all import decode_all
from support.decode_hooks import Signals, write_hook
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.decode.process import shared_memory
from vidlex.service.decode.usage import default_budget_bytes
from vidlex.service.errors import UndecodableVideo

HOOKS = "support.decode_hooks:decode"
JOB = DecodeJob(FrameGeometry(32), 5)


@pytest.fixture(autouse=True)
def hooks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("VIDLEX_REDIS_URL", "redis://:secret@example.org")


@pytest.fixture
def signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signals]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = Signals(tmp_path)
    yield made
    made.close()


def test_decode_process_is_restricted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, DecodePool(1, entry=HOOKS) as pool:
        path = write_hook(tmp_path / "v.mp4", "report", server.getsockname()[1])
        with pytest.raises(UndecodableVideo) as caught:
            decode_all(pool, path, JOB)
    facts = json.loads(str(caught.value))
    assert facts == {
        "network": False,
        "torch": False,
        "secrets": [],
        "core": 0,
        "file_size": 0,
        "memory": PoolLimits().memory_bytes,
        "streams": ["/dev/null"] * 3,
    }


def test_pool_imports_no_decoder() -> None:
    code = (
        "import sys, vidlex.service.decode.pool; "
        "print([m for m in ('av', 'decord', 'torch', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.strip() == "[]"


def test_shared_memory_cannot_shrink() -> None:
    descriptor, memory = shared_memory(8192)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 4096)
        assert len(memory) == 8192
    finally:
        os.close(descriptor)


def test_sigkill_of_the_service_leaves_no_process(tmp_path: Path, signals: Signals) -> None:
    """One process is idle, the other hangs and blocks SIGTERM and SIGINT."""
    code = f"""
import sys, threading; from pathlib import Path
from support.decode_all import decode_all
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool
pool = DecodePool(2, entry="{HOOKS}")
pool.start()
job = Path({str(write_hook(tmp_path / "v.mp4", "hang"))!r}), DecodeJob(FrameGeometry(8), 1)
threading.Thread(target=decode_all, args=(pool, *job)).start()
input()
print(*(process.pid for process in pool._processes), file=sys.stderr)
threading.Event().wait()
"""
    service = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stderr is not None and service.stdin is not None
        signals.num_reports(1)  # it hangs
        print(file=service.stdin, flush=True)
        pids = [int(pid) for pid in service.stderr.readline().split()]
        assert len(pids) == 2
        handles = [os.pidfd_open(pid) for pid in pids]
    finally:
        service.kill()
        service.wait()
    for handle in handles:
        assert select.select([handle], [], [], PATIENCE_SECONDS)[0]
        os.close(handle)


def test_the_default_budget_is_half_of_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("vidlex.service.decode.usage._GROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    for text, expected in (("max\n", physical // 2), (f"{2**30}\n", 2**29), (f"{2**62}\n", physical // 2)):
        limit.write_text(text)
        assert default_budget_bytes() == expected

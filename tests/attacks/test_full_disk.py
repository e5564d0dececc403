"""A full disk under a running service: refused with 507 or 503, nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.live import live_service, refused_start
from support.processes import until
from support.redis_process import RedisProcess
from support.serving import classify, colour_video

SIZE_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "vidlex-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no rights to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)
    return path


def test_a_full_disk_of_the_embedded_store_and_the_uploads(small_disk: Path, tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    video += b"\0" * (3 << 20)  # behind the end of the file; more than fits
    with (
        live_service(small_disk / "data") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        acknowledged = set()
        assert client.post("/labels", json={"name": "first"}).status_code == 201
        acknowledged.add("first")
        filler = fill(small_disk)
        refused = classify(client, video)
        assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
        num_refused = 0
        for i in range(40):
            answer = client.post("/labels", json={"name": f"label {i}", "metadata": {"text": "x" * 4000}})
            assert answer.status_code in (201, 503, 507), answer.text
            if answer.status_code == 201:
                acknowledged.add(f"label {i}")
            num_refused += answer.status_code != 201
        assert num_refused
        until(lambda: "disk" in client.get("/readyz").json()["checks"]["store"]["detail"])
        filler.unlink()
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/labels", json={"name": "last"}).status_code == 201
        assert classify(client, video).status_code == 200
        stored = {label["name"] for label in client.get("/labels", params={"limit": 1000}).json()["data"]}
        assert acknowledged | {"last"} <= stored
    filler = fill(small_disk)
    printed = refused_start(small_disk / "data")
    assert "No space left" in printed or "disk is full" in printed, printed
    filler.unlink()
    with live_service(small_disk / "data") as url:
        page = httpx.get(f"{url}/labels", params={"limit": 1000}, trust_env=False, timeout=60).json()
        assert {label["name"] for label in page["data"]} == stored


def test_a_full_disk_of_a_server(small_disk: Path, tmp_path: Path) -> None:
    with (
        RedisProcess(small_disk / "redis", appendfsync="everysec") as store,
        live_service(tmp_path / "data", VIDLEX_REDIS_URL=store.url) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        assert client.post("/labels", json={"name": "first"}).status_code == 201
        filler = fill(small_disk)
        numbers = itertools.count()

        def is_named() -> bool:
            body = {"name": f"label {next(numbers)}", "metadata": {"text": "x" * 16000}}
            answer = client.post("/labels", json=body)
            assert answer.status_code in (201, 507), answer.text
            return answer.status_code == 507 and bool(answer.json()["code"] == "store_full")

        until(is_named)
        until(lambda: not client.get("/readyz").json()["checks"]["store"]["ok"])
        assert "append-only file" in client.get("/readyz").json()["checks"]["store"]["detail"]
        filler.unlink()
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/labels", json={"name": "last"}).status_code == 201

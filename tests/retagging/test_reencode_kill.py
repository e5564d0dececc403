"""Re-encoding when the job is cancelled, and when the service is killed in the middle of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from support.held_files import ENVIRONMENT, held_files
from support.processes import until
from support.replicas import Replica, StoreProcess
from support.serving import colour_video

NAMES = ("red", "green", "blue")


def test_cancel_and_kill(tmp_path: Path) -> None:
    """The oldest video is the last one: its source answers when the test lets it."""
    for name in NAMES:
        colour_video(tmp_path / f"{name}.mp4", name)
    store = StoreProcess(tmp_path / "store")
    environment = {
        **ENVIRONMENT,
        "VIDLEX_ALLOWED_MODELS": '["dummy:2"]',
        "VIDLEX_JOB_LEASE_SECONDS": "1",
        "VIDLEX_JOB_WORKERS": "1",
    }
    replica = Replica(tmp_path / "data", store.url, **environment)
    with held_files(tmp_path) as files:
        try:
            store.start()
            replica.start()
            replica.wait()
            held = files.hold("red.mp4")
            uris = {"red": held, "green": f"{files.url}/green.mp4", "blue": f"{files.url}/blue.mp4"}
            with httpx.Client(base_url=replica.url, timeout=60, trust_env=False) as client:
                ids = {name: _keep(client, tmp_path / f"{name}.mp4", uris[name]) for name in NAMES}
                _activate(client, "dummy:2")
                job = client.post("/videos:reencode", json={}).json()
                until(lambda: files.url + files.asked[-1] == held if files.asked else False)
                cancelled = client.delete(f"/jobs/{job['id']}").json()
                assert cancelled["state"] in ("running", "cancelled")
                done = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=30"}).json()
                assert done["state"] == "cancelled"
                # What was done until then is done.
                assert client.get("/videos:generations").json()["sample_missing_ids"] == [ids["red"]]
                num_asked = len(files.asked)
                job = client.post("/videos:reencode", json={}).json()
                until(lambda: len(files.asked) > num_asked)
                assert files.asked[num_asked:] == [held.removeprefix(files.url)]
            replica.kill()
            files.let(held)
            replica.start()
            replica.wait()
            with httpx.Client(base_url=replica.url, timeout=60, trust_env=False) as client:
                done = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
                assert (done["state"], done["attempts"]) == ("succeeded", 2)
                result = client.get(f"/jobs/{job['id']}/result").json()
                assert (result["num_reencoded"], result["num_failed"]) == (1, 0)
                state = client.get("/videos:generations").json()
                assert (state["num_videos"], state["num_missing"]) == (3, 0)
                assert {video["id"] for video in client.get("/videos").json()["data"]} == set(ids.values())
        finally:
            replica.kill()
            store.close()


def _keep(client: httpx.Client, video: Path, uri: str) -> str:
    params = {"keep": True, "uri": uri}
    answer = client.post("/classify", files={"file": video.read_bytes()}, data={"params": json.dumps(params)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["video_id"])


def _activate(client: httpx.Client, model: str) -> None:
    def prepared() -> bool:
        found: dict[str, Any] | None = client.get("/models").json()["prepared"]
        return found is not None and bool(found["complete"])

    assert client.post("/models:prepare", json={"model": model}).status_code == 202
    until(prepared)
    assert client.post("/models:activate").status_code == 200
    until(lambda: bool(client.get("/models").json()["served"]["model"] == model))

"""`vidlex tag --engine service --keep`, as a process, against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from support.live import live_service
from support.serving import colour_video
from vidlex.service.bulk.options import TagOptions


def tag(source: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", str(source), "--out", str(out), "--label", "red"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    return subprocess.run([*words, *arguments, "--json"], capture_output=True, text=True, env=environment, check=False)


def test_tagged_videos_are_kept_under_their_own_ids(tmp_path: Path) -> None:
    for colour in ("red", "green"):
        colour_video(tmp_path / f"{colour}.mp4", colour)
    listed = tmp_path / "list.jsonl"
    lines = [
        {"uri": str(tmp_path / f"{colour}.mp4"), "id": f"id-{colour}", "shelf": "7"} for colour in ("red", "green")
    ]
    listed.write_text("\n".join(map(json.dumps, lines)))
    with live_service(tmp_path / "data") as url, httpx.Client(base_url=url, trust_env=False) as client:
        service = ["--engine", "service", "--url", url]
        plain = tag(listed, tmp_path / "out.jsonl", *service)
        assert plain.returncode == 0, plain.stderr
        assert client.get("/videos").json()["data"] == []

        done = tag(listed, tmp_path / "out.jsonl", *service, "--keep", "--segments", "--overwrite")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = client.get("/videos").json()["data"]
        assert {video["client_id"]: video["metadata"] for video in found} == {
            "id-red": {"shelf": "7"},
            "id-green": {"shelf": "7"},
        }
        assert all(video["uri"] is None for video in found)  # no service reads a path of this machine
        again = tag(listed, tmp_path / "out.jsonl", *service, "--keep", "--segments", "--resume")
        assert json.loads(again.stdout)["num_reused"] == 2
        assert len(client.get("/videos").json()["data"]) == 2


def test_only_a_service_keeps(tmp_path: Path) -> None:
    colour_video(tmp_path / "red.mp4", "red")
    done = tag(tmp_path / "red.mp4", tmp_path / "out.jsonl", "--model", "dummy", "--keep")
    assert done.returncode == 2
    assert "--keep needs --engine service" in done.stderr


def test_results_from_before_the_option_are_still_known() -> None:
    """Their ids are made of this text."""
    assert TagOptions().digest_text == (
        '{"end_ms":null,"features":false,"frame_policy":null,"min_score":0.0,"num_frames":null,"segment_ms":4000,'
        '"segments":false,"start_ms":null,"top_k":20}'
    )
    assert TagOptions(keep=True).digest_text != TagOptions().digest_text

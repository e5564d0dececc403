"""`vidlex videos` with a running service: list, show, remove, search, backfill, re-encode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from support.client_kinds import KINDS, opened
from support.held_files import ENVIRONMENT, held_files
from support.live import live_service
from support.serving import colour_video
from vidlex import errors
from vidlex.service.cli import app

runner = CliRunner()
COLOURS = ("red", "green")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("videos")
    with held_files(folder) as files, live_service(folder / "data", **ENVIRONMENT) as address:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as http:
            for name in COLOURS:
                http.post("/labels", json={"name": name}).raise_for_status()
                colour_video(folder / f"{name}.mp4", name)
                params = {"keep": True, "client_id": name, "uri": f"{files.url}/{name}.mp4"}
                content = Path(folder / f"{name}.mp4").read_bytes()
                sent = {"files": {"file": content}, "data": {"params": json.dumps(params)}}
                http.post("/classify", **sent).raise_for_status()  # type: ignore[arg-type]
        yield address


def vidlex(url: str, *arguments: str) -> Result:
    return runner.invoke(app, ["videos", *arguments], env={"VIDLEX_URL": url, "COLUMNS": "160"})


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_list_show_search(url: str) -> None:
    found = lines(vidlex(url, "list", "--json"))
    assert [video["client_id"] for video in found] == ["green", "red"]
    assert [video["client_id"] for video in lines(vidlex(url, "list", "--client-id", "red", "--json"))] == ["red"]
    assert found[0]["id"] in vidlex(url, "list").stdout
    (shown,) = lines(vidlex(url, "show", found[0]["id"], "--json"))
    assert shown["segments"] == [{"start_ms": 0, "end_ms": 1000}]
    assert "segments: 1" in vidlex(url, "show", found[0]["id"]).stdout
    (result,) = lines(vidlex(url, "search", "green", "--json"))
    assert [hit["client_id"] for hit in result["data"]] == ["green", "red"]
    assert "2 videos searched by probability" in vidlex(url, "search", "green").stdout
    (result,) = lines(vidlex(url, "search", "--like", found[0]["id"], "--json"))
    assert [hit["client_id"] for hit in result["data"]] == ["red"]
    (result,) = lines(vidlex(url, "search", "--label", "red", "--limit", "1", "--json"))
    assert [hit["client_id"] for hit in result["data"]] == ["red"]
    (result,) = lines(vidlex(url, "search", "red", "--client-id", "green", "--json"))
    assert [hit["client_id"] for hit in result["data"]] == ["green"]
    assert vidlex(url, "search").exit_code == vidlex(url, "search", "a", "--label", "b").exit_code == 2
    assert vidlex(url, "show", "vid_000000000000000000000000").exit_code == 1


def test_backfill_and_reencode(url: str) -> None:
    first = vidlex(url, "backfill", "red", "--wait")
    assert first.exit_code == 0, first.output
    assert "2 videos in" in first.stdout
    (result,) = lines(vidlex(url, "backfill", "--since-revision", "0", "--wait", "--json"))
    assert [(x["name"], x["num_matched"], x["num_gained"]) for x in result["labels"]] == [
        ("red", 1, 0),
        ("green", 1, 1),
    ]
    (matched,) = lines(vidlex(url, "list", "--label", "green", "--json"))
    assert matched["change"] == "gained" and matched["score"] > 0.9
    assert matched["video_id"] in vidlex(url, "list", "--label", "green").stdout
    assert vidlex(url, "backfill", "red").stdout.startswith("job_")
    assert vidlex(url, "backfill").exit_code == 2
    (result,) = lines(vidlex(url, "reencode", "--wait", "--json"))
    assert (result["num_reencoded"], result["num_failed"]) == (0, 0)  # nothing needs it
    assert "0 re-encoded" in vidlex(url, "reencode", "--wait").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_client(url: str, kind: str) -> None:
    with opened(kind, url) as client:
        videos = {video.client_id: video for video in client.videos.list(page_size=1)}
        assert set(videos) == set(COLOURS)
        red = client.find_label("red")
        job = client.videos.backfill(label_ids=[red.id], metadata={"run": 1})
        with pytest.raises(errors.NotFound):
            client.videos.backfill_result("job_000000000000000000000000")
        job.wait(60)
        result = client.videos.backfill_result(job.id)
        assert (result.num_videos, result.labels[0].num_matched) == (2, 1)
        assert [video.video_id for video in client.videos.of_label(red.id, page_size=1)] == [videos["red"].id]
        found = client.videos.search(text="red", limit=1, segments=True)
        assert found.data[0].video_id == videos["red"].id and len(found.data[0].segments) == 1
        generations = client.videos.generations()
        assert (generations.num_missing, generations.data[0].served) == (0, True)
        job = client.videos.reencode(video_ids=[videos["red"].id])
        job.wait(60)
        assert client.videos.reencode_result(job.id).num_reencoded == 0
        with pytest.raises(errors.NotFound):
            client.videos.remove("vid_000000000000000000000000")


def test_remove(url: str) -> None:
    """The last test."""
    (video,) = lines(vidlex(url, "list", "--client-id", "red", "--json"))
    done = vidlex(url, "remove", "vid_000000000000000000000000", video["id"])
    assert done.exit_code == 1 and f"removed {video['id']}" in done.stdout
    assert [x["client_id"] for x in lines(vidlex(url, "list", "--json"))] == ["green"]

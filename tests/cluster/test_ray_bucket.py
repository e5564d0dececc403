"""The tutorial of `service/cluster/README.md` as it is written: a bucket in a real S3 server, a real cluster."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

import pyarrow.parquet as pq
import s3fs
from moto.server import ThreadedMotoServer

from house.test_documents import run_blocks
from support.paths import ROOT
from support.ray_cluster import ray_cluster
from support.serving import colour_video

README = ROOT / "service/cluster/README.md"
RUNNABLE = re.compile(r"^<!-- run on a cluster -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
NUM_VIDEOS = 6


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "NO_PROXY": "*"}.items():
            patch.setenv(name, value)
        patch.setenv("VIDLEX_MODEL", "dummy")
        store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        store.mkdir("videos")
        store.mkdir("results")
        for number in range(NUM_VIDEOS):
            colours = ("red", "blue") if number % 2 else ("blue", "red")
            path = colour_video(tmp_path / f"{number}.mp4", *colours, frames_each=5 + number)
            store.put_file(str(path), f"videos/{number}.mp4")
        yield store
    server.stop()


def test_the_blocks_run_in_order(bucket: s3fs.S3FileSystem, tmp_path: Path) -> None:
    blocks = list(RUNNABLE.finditer(README.read_text(encoding="utf-8")))
    assert [block["language"] for block in blocks] == ["bash", "bash", "python", "python"]
    with ray_cluster(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", cluster.address)
            tagged, again, parts, read = run_blocks(blocks, "", tmp_path)
    uris = [f"s3://videos/{number}.mp4" for number in range(NUM_VIDEOS)]
    assert "6 tagged" in tagged
    summary = json.loads(again.splitlines()[-1])
    assert (summary["num_videos"], summary["num_reused"], summary["num_failed"]) == (NUM_VIDEOS, NUM_VIDEOS, 0)
    table = pq.read_table(io.BytesIO(bucket.cat("results/tags.parquet")))
    assert table["uri"].to_pylist() == uris
    assert f"{NUM_VIDEOS} rows" in parts and f"{NUM_VIDEOS} videos, 0 failed, 0 done before" in parts
    matched = dict(zip(uris, table["matched"].to_pylist(), strict=True))
    assert sorted(read.split("\n")[1:-1]) == [f"{uri} {matched[uri]} None" for uri in uris]
    assert not os.environ.get("RAY_ADDRESS")

"""`Tagger` as the class of Ray's ``map_batches``: one per actor, which opens its own engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from support.paths import ROOT
from support.serving import colour_video

# In a process of its own: a process that was connected to one Ray cluster cannot use Ray Data on another one.
JOB = """
import sys
from pathlib import Path

import ray
from vidlex import Tagger

folder = Path(sys.argv[1])
ray.init(
    num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="error", log_to_driver=False
)
rows = ray.data.from_items([{"uri": str(folder / name)} for name in sys.argv[2:]]).map_batches(
    Tagger,
    fn_constructor_args=["dummy"],
    fn_constructor_kwargs={
        "labels": ["red", "green", "blue"], "decode_workers": 1, "data_dir": folder / "data", "top_k": 2
    },
    batch_format="pyarrow",
    batch_size=2,
    compute=ray.data.ActorPoolStrategy(size=1),
)
rows.write_parquet(str(folder / "out"))
"""


def test_map_batches_tags_each_row_once(tmp_path: Path) -> None:
    names = ["red.mp4", "text.mp4", "mixed.mp4", "blue.mp4", "gone.mp4"]
    colour_video(tmp_path / "red.mp4", "red")
    colour_video(tmp_path / "mixed.mp4", "red", "green")
    colour_video(tmp_path / "blue.mp4", "blue")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / ".package"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(tmp_path), *names], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {Path(row["uri"]).name: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert sorted(found) == sorted(names)
    assert {name: row["error_code"] for name, row in found.items() if row["error_code"]} == {
        "text.mp4": "unsupported_media",
        "gone.mp4": "file_not_readable",
    }
    assert found["red.mp4"]["matched"] == ["red"] and found["blue.mp4"]["matched"] == ["blue"]
    assert set(found["mixed.mp4"]["matched"]) == {"red", "green"}

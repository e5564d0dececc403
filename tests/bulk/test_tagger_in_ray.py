"""`Tagger` as the class of Ray's ``map_batches``: one per actor, which opens its own engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from support.serving import colour_video
from vidlex import Tagger


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="error", log_to_driver=False
    )
    yield
    ray.shutdown()


def test_map_batches_tags_each_row_once(cluster: None, tmp_path: Path) -> None:
    names = ["red.mp4", "text.mp4", "mixed.mp4", "blue.mp4", "gone.mp4"]
    colour_video(tmp_path / "red.mp4", "red")
    colour_video(tmp_path / "mixed.mp4", "red", "green")
    colour_video(tmp_path / "blue.mp4", "blue")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    rows = ray.data.from_items([{"uri": str(tmp_path / name)} for name in names]).map_batches(
        Tagger,
        fn_constructor_args=["dummy"],
        fn_constructor_kwargs={
            "labels": ["red", "green", "blue"],
            "decode_workers": 1,
            "data_dir": tmp_path / "data",
            "top_k": 2,
        },
        batch_format="pyarrow",
        batch_size=2,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows.write_parquet(str(tmp_path / "out"))
    found = {Path(row["uri"]).name: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert sorted(found) == sorted(names)
    assert {name: row["error_code"] for name, row in found.items() if row["error_code"]} == {
        "text.mp4": "unsupported_media",
        "gone.mp4": "file_not_readable",
    }
    assert found["red.mp4"]["matched"] == ["red"] and found["blue.mp4"]["matched"] == ["blue"]
    assert set(found["mixed.mp4"]["matched"]) == {"red", "green"}

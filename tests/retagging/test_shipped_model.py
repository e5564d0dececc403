"""Backfill and search agree with the classification of a shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support.clips import write_clips
from support.live import live_service

NAMES = ("red square", "green square", "blue square", "yellow square", "dark scene", "bright scene")


def test_scores_equal_those_of_classification(tmp_path: Path) -> None:
    """Up to the rounding of kept features to float16."""
    entries = write_clips(tmp_path / "clips", 6)
    with (
        live_service(tmp_path / "data", "emoji-small", VIDLEX_DECODE_WORKERS="1") as url,
        httpx.Client(base_url=url, timeout=300, trust_env=False) as client,
    ):
        body = {"labels": [{"name": name, "threshold": 0.3} for name in NAMES]}
        labels = {x["label"]["name"]: x["label"]["id"] for x in client.post("/labels", json=body).json()["data"]}
        answers: dict[str, dict[str, Any]] = {}
        for entry in entries:
            params = {"keep": True, "top_k": 0, "aggregate_by": "segments", "segment_ms": 300, "num_frames": 3}
            content = (tmp_path / "clips" / entry.video).read_bytes()
            sent = client.post("/classify", files={"file": content}, data={"params": json.dumps(params)}).json()
            answers[sent["video_id"]] = {label["id"]: label for label in sent["labels"]}
        assert len(answers) == len(entries)
        job = client.post("/videos:backfill", json={"since_revision": 0, "min_score": 0.0}).json()
        done = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
        assert done["state"] == "succeeded", done
        spread = []
        for name, label_id in labels.items():
            page = client.get(f"/labels/{label_id}/videos", params={"limit": 100}).json()
            assert {video["video_id"] for video in page["data"]} == set(answers)
            for video in page["data"]:
                assert video["score"] == pytest.approx(answers[video["video_id"]][label_id]["score"], rel=0.05)
            hits = client.post("/videos:search", json={"text": name, "limit": 100, "segments": True}).json()["data"]
            by_label = client.post("/videos:search", json={"label_id": label_id, "limit": 100}).json()["data"]
            assert [hit["score"] for hit in hits] == [hit["score"] for hit in by_label]
            for hit in hits:
                scored = answers[hit["video_id"]][label_id]
                assert hit["similarity"] == pytest.approx(scored["similarity"], abs=1e-3)
                spread.append(hit["similarity"])
                found = {segment["start_ms"]: segment["score"] for segment in hit["segments"]}
                for segment in scored["segments"]:
                    assert found[segment["start_ms"]] == pytest.approx(segment["score"], rel=0.05)
        assert np.ptp(spread) > 0.05  # they differ, so that equal ones say something

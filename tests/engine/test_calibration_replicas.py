"""Two replicas apply one calibration, to the bit, also after one of them is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np

from support.processes import PATIENCE_SECONDS
from support.replicas import two_replicas
from support.serving import add, classify, colour_video, wait_until
from vidlex.model.calibration.statistics import DomainStatistics

FIELDS = ("name", "score", "similarity")


def statistics() -> dict[str, Any]:
    rows = np.array([0.7, 0.2, 0.1]) + 0.3 * np.random.default_rng(0).random((40, 3))
    features = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return {"source": "statistics", "statistics": {"model": "dummy-1", **DomainStatistics.of(features).to_dict()}}


def answer(client: httpx.Client, video: Path) -> tuple[str | None, list[tuple[object, ...]]]:
    body = classify(client, video, top_k=0).raise_for_status().json()
    return body["calibration"], [tuple(label[field] for field in FIELDS) for label in body["labels"]]


def test_two_replicas_and_a_restarted_one_agree(tmp_path: Path) -> None:
    video = colour_video(tmp_path / "mixed.mp4", "red", "green", "blue")
    with two_replicas(tmp_path / "r") as (_, processes):
        a, b = (httpx.Client(base_url=p.url, timeout=PATIENCE_SECONDS, trust_env=False) for p in processes)
        with a, b:
            add(a, "red", "green", "blue", "cyan")
            fingerprint = a.put("/calibration", json=statistics()).raise_for_status().json()["fingerprint"]
            wait_until(lambda: answer(b, video)[0] == fingerprint, "the other replica does not calibrate")
            calibrated = answer(a, video)
            assert calibrated == answer(b, video)
            processes[1].kill()
            add(a, "magenta")
            processes[1].start()
            processes[1].wait()
            restarted = answer(b, video)
            assert restarted == answer(a, video) and restarted[0] == fingerprint
            assert [row for row in restarted[1] if row[0] != "magenta"] == calibrated[1]
            b.delete("/calibration").raise_for_status()
            wait_until(lambda: answer(a, video)[0] is None, "the other replica keeps the calibration")
            assert answer(a, video) == answer(b, video) != restarted

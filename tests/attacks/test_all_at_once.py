"""Hostile clients all at once: a client with another key is served, and probes are answered.

`vidlex bench hostile` measures it at full size; here the numbers are small and the bounds are those of the promise.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from support.processes import until
from vidlex.service.bench import attacks
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import with_unique_bytes, write_videos

MAX_LIVEZ_SECONDS = 1.0
NUM_OBEYING = 6


def test_an_obeying_client_is_served_while_others_attack(tmp_path: Path) -> None:
    (video,) = write_videos(tmp_path / "videos", count=1, seconds=1.0)
    reader, writer, obeying = attacks.key_file(tmp_path / "keys", "read", "write", "write")
    headers = {"Authorization": f"Bearer {obeying}"}
    with live_service(tmp_path / "data", api_keys_file=tmp_path / "keys", decode_workers=2) as service:
        with service.client() as client:
            client.headers.update(headers)
            client.post("/labels", json={"name": "red"}).raise_for_status()
            alive: list[float] = []
            attack = attacks.Attack(
                service.url, reader, writer, num_silent=300, num_slow=24, num_keys=200_000, slow_seconds=3.0,
                slow_width=3840, slow_height=2160,
            )  # fmt: skip
            with attacks.attacking(attack):
                time.sleep(3)
                for number in range(NUM_OBEYING):
                    files = {"file": ("video.mp4", with_unique_bytes(video), "video/mp4")}
                    answer = client.post("/classify", files=files)
                    assert answer.status_code == 200, answer.text
                    assert client.post("/labels", json={"name": f"label {number}"}).status_code == 201
                    began = time.monotonic()
                    with service.client() as probe:  # a new connection, as of a probe
                        assert probe.get("/livez").status_code == 200
                    alive.append(time.monotonic() - began)
            assert min(alive) < MAX_LIVEZ_SECONDS, alive  # the machine is busy with the attackers, too

        def metric(name: str) -> float:
            text = httpx.get(f"{service.url}/metrics", headers=headers, timeout=60, trust_env=False).text
            return float(text.split(f"\n{name} ")[1].split("\n")[0])

        # What the clients who left had asked for is gone.
        until(lambda: metric("vidlex_queued_labels") == 0 and metric("vidlex_videos_at_work") == 0, seconds=60)
        assert service.is_ready()

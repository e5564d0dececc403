"""The end of a job reaches its webhook, whichever end it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import standardwebhooks

from support.live import live_service
from support.processes import until
from support.serving import colour_video
from support.webhook_receiver import Receiver, receiving
from vidlex import Client


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    allowed = {"VIDLEX_WEBHOOK_HOSTS": '["127.0.0.1"]', "VIDLEX_PRIVATE_NETWORKS": '["127.0.0.1/32"]'}
    with live_service(tmp_path_factory.mktemp("data"), **allowed) as url, Client(url) as client:
        client.create_label("red")
        yield client


def test_jobs_report_their_end(client: Client, receiver: Receiver, tmp_path: Path) -> None:
    secret = client.webhooks.create_secret().secret
    video, broken = colour_video(tmp_path / "red.mp4", "red"), tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    good = client.jobs.submit(video, webhook=f"{receiver.url}/hook")
    bad = client.jobs.submit(broken, webhook={"url": f"{receiver.url}/hook", "events": ["job.failed"]})
    quiet = client.jobs.submit(video, webhook={"url": f"{receiver.url}/hook", "events": ["job.failed"]})
    for job in (good, bad, quiet):
        job.wait(timeout_seconds=120)
    until(lambda: len(receiver.received) == 2)
    contents = [standardwebhooks.Webhook(secret).verify(item.body, item.headers) for item in receiver.received]
    ended = {content["data"]["id"]: content["type"] for content in contents}
    assert ended == {good.id: "job.succeeded", bad.id: "job.failed"}
    assert all(len(item.body) < 2000 for item in receiver.received)  # thin: the result is asked for
    assert {item.type for item in client.webhooks.deliveries()} == {"job.succeeded", "job.failed"}

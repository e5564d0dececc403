"""`Client.webhooks`, `AsyncClient.webhooks` and `vidlex webhooks` with a running service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from support.live import live_service
from support.processes import until
from support.webhook_receiver import Receiver, receiving
from vidlex import AsyncClient, Client, errors, verify_webhook
from vidlex.service.cli import app

runner = CliRunner()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    allowed = {"VIDLEX_WEBHOOK_HOSTS": '["127.0.0.1"]', "VIDLEX_PRIVATE_NETWORKS": '["127.0.0.1/32"]'}
    with live_service(tmp_path_factory.mktemp("data"), **allowed) as url:
        yield url


def vidlex(url: str, *arguments: str) -> Result:
    environment = {"COLUMNS": "250", "VIDLEX_URL": url, "VIDLEX_NAMESPACE": "cli", "VIDLEX_API_KEY": ""}
    return runner.invoke(app, ["webhooks", *arguments], env=environment)


def test_a_client(url: str, receiver: Receiver) -> None:
    receiver.answer = lambda received: (410 if received.path == "/gone" else 200, {})
    with Client(url, namespace="client") as client:
        with pytest.raises(errors.Conflict) as missing:
            client.webhooks.test(f"{receiver.url}/")
        assert missing.value.code == "webhook_secret_missing"
        secret = client.webhooks.create_secret()
        assert [item.id for item in client.webhooks.secrets()] == [secret.id]
        ids = [client.webhooks.test(f"{receiver.url}/{path}").id for path in ("gone", "x")]
        until(lambda: all(client.webhooks.delivery(name).state != "pending" for name in ids))
        assert [item.id for item in client.webhooks.deliveries(page_size=1)] == sorted(ids, reverse=True)
        assert [item.id for item in client.webhooks.deliveries(state="failed")] == [ids[0]]
        received = {item.id: item for item in receiver.received}[ids[1]]
        assert verify_webhook(received.body, received.headers, [secret.secret])["type"] == "webhook.test"
        assert {item.url: item.disabled_at_ms is None for item in client.webhooks.endpoints()} == {
            f"{receiver.url}/gone": False,
            f"{receiver.url}/x": True,
        }
        client.webhooks.enable(f"{receiver.url}/gone")
        receiver.answer = lambda received: (200, {})
        assert client.webhooks.replay_failed(0).num_queued == 1
        until(lambda: client.webhooks.delivery(ids[0]).state == "succeeded")
        assert client.webhooks.replay(ids[0]).num_attempts == 0
        client.webhooks.delete_secret(secret.id)
        with pytest.raises(errors.NotFound):
            client.webhooks.delete_secret(secret.id)


def test_an_async_client(url: str, receiver: Receiver) -> None:
    receiver.answer = lambda received: (200, {})

    async def work() -> None:
        async with AsyncClient(url, namespace="async") as client:
            secret = await client.webhooks.create_secret()
            assert [item.id for item in await client.webhooks.secrets()] == [secret.id]
            ids = [(await client.webhooks.test(f"{receiver.url}/a", cloud_events=True)).id for _ in range(2)]
            while (await client.webhooks.delivery(ids[1])).state == "pending":
                await asyncio.sleep(0.05)
            assert [item.id async for item in client.webhooks.deliveries(page_size=1)] == sorted(ids, reverse=True)
            assert [item.url for item in await client.webhooks.endpoints()] == [f"{receiver.url}/a"]
            assert (await client.webhooks.replay(ids[0])).id == ids[0]
            assert (await client.webhooks.replay_failed(0)).num_queued == 0
            with pytest.raises(errors.NotFound):
                await client.webhooks.enable(f"{receiver.url}/a")
            await client.webhooks.delete_secret(secret.id)

    asyncio.run(work())


def test_the_command_line(url: str, receiver: Receiver) -> None:
    receiver.answer = lambda received: (
        410 if received.path == "/gone" else 500 if received.path == "/bad" else 200,
        {},
    )
    made = vidlex(url, "secrets", "create")
    assert made.stdout.startswith("whsec_") and "whsec_" not in made.stderr
    (secret,) = [json.loads(line) for line in vidlex(url, "secrets", "list", "--json").stdout.splitlines()]
    assert secret["id"] in vidlex(url, "secrets", "list").stdout
    good = vidlex(url, "test", f"{receiver.url}/good")
    assert good.exit_code == 0 and " 200 " in good.stdout
    bad = vidlex(url, "test", f"{receiver.url}/bad")
    assert bad.exit_code == 1 and " 500 " in bad.stdout and "next try" in bad.stdout
    assert vidlex(url, "test", f"{receiver.url}/gone").exit_code == 1
    assert "(url_refused)" in vidlex(url, "test", "http://10.0.0.1/").stderr
    listed = [json.loads(line) for line in vidlex(url, "list", "--json").stdout.splitlines()]
    assert [item["state"] for item in listed] == ["failed", "pending", "succeeded"]
    assert listed[0]["id"] in vidlex(url, "list", "--state", "failed").stdout
    shown = vidlex(url, "show", listed[0]["id"]).stdout
    assert "webhook.test: failed" in shown and " 410 " in shown
    assert json.loads(vidlex(url, "show", listed[0]["id"], "--json").stdout)["attempts"][0]["status"] == 410
    assert f"{receiver.url}/gone" in vidlex(url, "endpoints").stdout
    assert vidlex(url, "enable", f"{receiver.url}/gone").exit_code == 0
    assert vidlex(url, "replay").exit_code == 2
    assert json.loads(vidlex(url, "replay", "--failed-hours", "1", "--json").stdout) == {"num_queued": 1}
    assert "1 deliveries" in vidlex(url, "replay", listed[2]["id"]).stdout
    assert vidlex(url, "secrets", "delete", secret["id"]).exit_code == 0
    assert vidlex(url, "secrets", "list").stdout == "no secrets\n"

"""Secrets and deliveries of webhooks: `Client.webhooks` and `AsyncClient.webhooks`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from vidlex.service.client.calls import view_of
from vidlex.service.client.exchange import Call
from vidlex.service.schemas.webhooks import (
    DeliveryDetailsView,
    DeliveryListView,
    DeliveryStateName,
    DeliveryView,
    EndpointListView,
    EndpointView,
    NewWebhookSecretView,
    ReplayView,
    WebhookSecretListView,
    WebhookSecretView,
)

T = TypeVar("T")

MAX_PAGE = 200


class RunsCalls(Protocol):
    """A `Client`."""

    def run(self, call: Call[T]) -> T: ...


class RunsCallsInALoop(Protocol):
    """An `AsyncClient`."""

    async def run(self, call: Call[T]) -> T: ...


class Webhooks:
    """Thread-safe, as its client. What receives webhooks needs only `verify_webhook`."""

    def __init__(self, client: RunsCalls) -> None:
        self._client = client

    def create_secret(self) -> NewWebhookSecretView:
        """The only answer with the secret's text. Raises Conflict if there are four already."""
        return self._client.run(_create_secret())

    def secrets(self) -> list[WebhookSecretView]:
        return self._client.run(_secrets())

    def delete_secret(self, secret_id: str) -> None:
        """Raises NotFound."""
        self._client.run(_delete_secret(secret_id))

    def test(self, url: str, *, cloud_events: bool = False) -> DeliveryDetailsView:
        """Queues an event of the type `webhook.test`. Raises RequestInvalid, Conflict if there is no secret."""
        return self._client.run(_test(url, cloud_events))

    def deliveries(
        self, *, state: DeliveryStateName | None = None, page_size: int = MAX_PAGE
    ) -> Iterator[DeliveryView]:
        """Newest first, read page by page."""
        page = self._client.run(_deliveries(state, None, page_size))
        yield from page.data
        while page.has_more:
            page = self._client.run(_deliveries(state, page.last_id, page_size))
            yield from page.data

    def delivery(self, delivery_id: str) -> DeliveryDetailsView:
        """With its tries. Raises NotFound."""
        return self._client.run(_delivery(delivery_id))

    def replay(self, delivery_id: str) -> DeliveryDetailsView:
        """Sent again at once, with the same id. Raises NotFound."""
        return self._client.run(_replay(delivery_id))

    def replay_failed(self, since_ms: int) -> ReplayView:
        """The failed ones since this Unix time in milliseconds, at most 1,000 by one call."""
        return self._client.run(_replay_failed(since_ms))

    def endpoints(self) -> list[EndpointView]:
        return self._client.run(_endpoints())

    def enable(self, url: str) -> None:
        """An endpoint that is disabled because it answered 410. Raises NotFound."""
        self._client.run(_enable(url))


class AsyncWebhooks:
    """As `Webhooks`, for asyncio."""

    def __init__(self, client: RunsCallsInALoop) -> None:
        self._client = client

    async def create_secret(self) -> NewWebhookSecretView:
        return await self._client.run(_create_secret())

    async def secrets(self) -> list[WebhookSecretView]:
        return await self._client.run(_secrets())

    async def delete_secret(self, secret_id: str) -> None:
        await self._client.run(_delete_secret(secret_id))

    async def test(self, url: str, *, cloud_events: bool = False) -> DeliveryDetailsView:
        return await self._client.run(_test(url, cloud_events))

    async def deliveries(
        self, *, state: DeliveryStateName | None = None, page_size: int = MAX_PAGE
    ) -> AsyncIterator[DeliveryView]:
        page = await self._client.run(_deliveries(state, None, page_size))
        while True:
            for delivery in page.data:
                yield delivery
            if not page.has_more:
                return
            page = await self._client.run(_deliveries(state, page.last_id, page_size))

    async def delivery(self, delivery_id: str) -> DeliveryDetailsView:
        return await self._client.run(_delivery(delivery_id))

    async def replay(self, delivery_id: str) -> DeliveryDetailsView:
        return await self._client.run(_replay(delivery_id))

    async def replay_failed(self, since_ms: int) -> ReplayView:
        return await self._client.run(_replay_failed(since_ms))

    async def endpoints(self) -> list[EndpointView]:
        return await self._client.run(_endpoints())

    async def enable(self, url: str) -> None:
        await self._client.run(_enable(url))


def _create_secret() -> Call[NewWebhookSecretView]:
    return Call("POST", "/webhooks/secrets", view_of(NewWebhookSecretView))


def _secrets() -> Call[list[WebhookSecretView]]:
    read: Callable[[Any], WebhookSecretListView] = view_of(WebhookSecretListView)
    return Call("GET", "/webhooks/secrets", lambda reply: read(reply).data, is_repeatable=True)


def _delete_secret(secret_id: str) -> Call[None]:
    return Call("DELETE", f"/webhooks/secrets/{quote(secret_id, safe='')}", lambda _: None)


def _test(url: str, cloud_events: bool) -> Call[DeliveryDetailsView]:
    body = {"url": url, "cloud_events": cloud_events}
    return Call("POST", "/webhooks:test", view_of(DeliveryDetailsView), body=body)


def _deliveries(state: DeliveryStateName | None, after: str | None, page_size: int) -> Call[DeliveryListView]:
    params: dict[str, str | int] = {"limit": min(page_size, MAX_PAGE)}
    params |= {name: value for name, value in (("state", state), ("after", after)) if value is not None}
    return Call("GET", "/webhooks/deliveries", view_of(DeliveryListView), params=params, is_repeatable=True)


def _delivery(delivery_id: str) -> Call[DeliveryDetailsView]:
    return Call("GET", _path(delivery_id), view_of(DeliveryDetailsView), is_repeatable=True)


def _replay(delivery_id: str) -> Call[DeliveryDetailsView]:
    return Call("POST", f"{_path(delivery_id)}:replay", view_of(DeliveryDetailsView))


def _replay_failed(since_ms: int) -> Call[ReplayView]:
    return Call("POST", "/webhooks/deliveries:replay", view_of(ReplayView), body={"since_ms": since_ms})


def _endpoints() -> Call[list[EndpointView]]:
    read: Callable[[Any], EndpointListView] = view_of(EndpointListView)
    return Call("GET", "/webhooks/endpoints", lambda reply: read(reply).data, is_repeatable=True)


def _enable(url: str) -> Call[None]:
    return Call("POST", "/webhooks/endpoints:enable", lambda _: None, body={"url": url})


def _path(delivery_id: str) -> str:
    return f"/webhooks/deliveries/{quote(delivery_id, safe='')}"

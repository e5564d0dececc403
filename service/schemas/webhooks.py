from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vidlex.service.bounds import MAX_URL_CHARS
from vidlex.service.schemas.base import WHOLE, Int64, Strict, View

DeliveryStateName = Literal["pending", "succeeded", "failed"]
_MESSAGE_ID = "msg_01m8sa92dpz006bms3r0pj6t"  # an example
_TIME_MS = 1796145973690
_URL = "https://hooks.example/vidlex"
_HOW_LONG = "`pending`: it is or will be tried. `succeeded`: answered with 2xx. `failed`: given up; it can be replayed."

Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="An https:// URL of a host that the service is configured for.",
        examples=[_URL],
    ),
]


class WebhookTestBody(Strict):
    """Where a test event is sent."""

    url: Url
    cloud_events: bool = Field(False, description="Whether the body is an envelope of CloudEvents 1.0.")


class ReplayBody(Strict):
    """Which deliveries are sent again."""

    since_ms: Annotated[int, Field(ge=0, le=10**14, json_schema_extra={"format": "int64"}), WHOLE] = Field(
        description="Those created at this Unix time in milliseconds or later.", examples=[_TIME_MS]
    )


class EnableEndpointBody(Strict):
    """An endpoint that deliveries may be sent to again."""

    url: Url


class WebhookSecretView(View):
    """A secret that signs deliveries, without its text."""

    object: Literal["webhook.secret"] = Field(default="webhook.secret", description="Type of this object.")
    id: str = Field(description="Id of the secret, to delete it.", examples=["whs_01m8sa92d3m5n8w4x6zqk2vh"])
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])


class NewWebhookSecretView(WebhookSecretView):
    """A created secret. The only response that contains its text."""

    secret: str = Field(
        description="`whsec_` and the base64 of 32 random bytes. It cannot be retrieved again.",
        examples=["whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="],
    )


class WebhookSecretListView(View):
    """The secrets of a namespace, oldest first. All of them sign."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[WebhookSecretView] = Field(description="The secrets.")


class AttemptView(View):
    """One try to send a delivery."""

    at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])
    duration_ms: int = Field(description="Until the answer, or until it was given up.", examples=[31])
    status: int | None = Field(description="HTTP status of the answer; null: there was none.", examples=[200])
    error: str | None = Field(description="Why there was no answer, or no valid one; null: there was one.")
    answer: str | None = Field(description="The beginning of the answer's body; null: there was no answer.")


class DeliveryView(View):
    """An event that is sent to a URL."""

    object: Literal["webhook.delivery"] = Field(default="webhook.delivery", description="Type of this object.")
    id: str = Field(
        description="The header `webhook-id` of all tries and replays: receivers recognise repetitions by it.",
        examples=[_MESSAGE_ID],
    )
    type: str = Field(description="Type of the event.", examples=["job.succeeded"])
    url: str = Field(description="Where it is sent.", examples=[_URL])
    state: DeliveryStateName = Field(description=_HOW_LONG)
    created_at_ms: Int64 = Field(description="Unix time of the event in milliseconds.", examples=[_TIME_MS])
    next_attempt_at_ms: Int64 | None = Field(description="Unix time in milliseconds of the next try; null: none.")
    num_attempts: int = Field(description="Tries since it was queued or replayed.", examples=[1])
    last_status: int | None = Field(description="HTTP status of the last try; null: no answer, or no try.")


class DeliveryDetailsView(DeliveryView):
    """A delivery with what is sent and its tries."""

    body: str = Field(
        description="The body, as it is signed and sent.",
        examples=['{"type":"job.succeeded","timestamp":"2026-12-01T17:26:13.686Z","data":{"id":"job_1"}}'],
    )
    attempts: list[AttemptView] = Field(description="The last 20 tries, oldest first.")


class DeliveryListView(View):
    """A page of deliveries, newest first."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[DeliveryView] = Field(description="The deliveries.")
    has_more: bool = Field(description="Whether another page follows.")
    first_id: str | None = Field(description="Id of the first delivery; null: the page is empty.")
    last_id: str | None = Field(description="Id of the last delivery, for `after`; null: the page is empty.")


class ReplayView(View):
    """What a replay has done."""

    object: Literal["webhook.replay"] = Field(default="webhook.replay", description="Type of this object.")
    num_queued: int = Field(description="Deliveries that are due again.", examples=[12])
    has_more: bool = Field(description="Whether more have failed: repeat the request.")


class EndpointView(View):
    """A URL that deliveries were sent to."""

    object: Literal["webhook.endpoint"] = Field(default="webhook.endpoint", description="Type of this object.")
    url: str = Field(description="The URL.", examples=[_URL])
    disabled_at_ms: Int64 | None = Field(
        description="Unix time in milliseconds at which it answered 410, since when nothing is sent to it; null: it is "
        "enabled."
    )
    last_attempt_at_ms: Int64 | None = Field(description="Unix time in milliseconds of the last try; null: unknown.")
    last_success_at_ms: Int64 | None = Field(description="Unix time in milliseconds of the last 2xx; null: none.")
    num_failures: int = Field(description="Tries without success since the last success.", examples=[0])


class EndpointListView(View):
    """The endpoints of a namespace."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[EndpointView] = Field(description="The endpoints, by URL; at most 1000.")

"""A client of a running service for event loops: `AsyncClient`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import anyio
import httpx

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.bulk.options import TagOptions, TagOptionValues
from vidlex.service.bulk.paths import Paths
from vidlex.service.bulk.results import TagResult
from vidlex.service.client import async_tagging, calls
from vidlex.service.client.async_jobs import AsyncJobs, Streamed
from vidlex.service.client.config import CONNECT_SECONDS, READ_SECONDS, RetryPolicy, resolve
from vidlex.service.client.deliveries import AsyncWebhooks
from vidlex.service.client.engine import DEFAULT_CONCURRENCY, check_options
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.client.exchange import Call, Pause, Reply, error_of_reply, exchange
from vidlex.service.client.feedback import AsyncFeedback
from vidlex.service.client.tls import Verify
from vidlex.service.client.transport import ReplyBody, async_http_client, fault_of, request_options, stream_options
from vidlex.service.client.uploads import OnProgress, VideoInput
from vidlex.service.client.videos import AsyncVideos
from vidlex.service.schemas.calibration import CalibrationBody, CalibrationView
from vidlex.service.schemas.cards import CardFailureView, CardResultView, CardView
from vidlex.service.schemas.classify import ClassificationView
from vidlex.service.schemas.health import ReadyView
from vidlex.service.schemas.keys import ApiKeyView, NewApiKeyView
from vidlex.service.schemas.labels import LabelFailureView, LabelListView, LabelResultView, LabelView
from vidlex.service.schemas.models import ModelDiffView, ModelsView

if TYPE_CHECKING:
    from vidlex.service.bulk.saving import SavedRun

T = TypeVar("T")


class AsyncClient:
    """As `Client`, for asyncio. Every method raises a VidlexClientError by the service's code.

    ``url``, ``key`` and ``namespace`` are by default those of VIDLEX_URL, VIDLEX_API_KEY and VIDLEX_NAMESPACE.
    ``proxy`` is by default that of HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and none for this machine.
    ``timeout_seconds`` is the longest silence of the service during a request.

    Raises ConfigurationInvalid.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        namespace: str | None = None,
        timeout_seconds: float = READ_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
        retries: RetryPolicy = RetryPolicy(),
        verify: Verify = True,
        proxy: str | None = None,
    ) -> None:
        self._config = resolve(
            url,
            key,
            namespace=namespace,
            timeout_seconds=timeout_seconds,
            connect_seconds=connect_seconds,
            retries=retries,
            verify=verify,
            proxy=proxy,
        )
        self._http = async_http_client(self._config)

    @property
    def url(self) -> str:
        return self._config.url

    @property
    def timeout_seconds(self) -> float:
        return self._config.timeout_seconds

    @property
    def retries(self) -> RetryPolicy:
        return self._config.retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- labels

    async def create_label(
        self,
        name: str,
        *,
        if_exists: calls.IfExists = "error",
        idempotency_key: str | None = None,
        **fields: Unpack[calls.LabelFields],
    ) -> LabelView:
        """Raises LabelExists, or with ``if_exists="return"`` returns the existing label."""
        return await self.run(calls.create_label(name, fields, if_exists=if_exists, idempotency_key=idempotency_key))

    async def create_labels(
        self,
        labels: Iterable[calls.NewLabel],
        *,
        if_exists: calls.IfExists = "error",
        idempotency_key: str | None = None,
    ) -> list[LabelResultView | LabelFailureView]:
        """Up to 1,000, independent of each other. Results in the order of the labels."""
        return await self.run(calls.create_labels(labels, if_exists=if_exists, idempotency_key=idempotency_key))

    async def get_label(self, label_id: str) -> LabelView:
        return await self.run(calls.get_label(label_id))

    async def find_label(self, reference: str) -> LabelView:
        """The label with this id, name or alias; case is ignored. Raises NotFound."""
        return await self.run(calls.find_label(reference))

    async def labels(
        self, *, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[calls.LabelFilters]
    ) -> AsyncIterator[LabelView]:
        """All labels in order of creation, read page by page."""
        async for page in self.label_pages(page_size=page_size, **filters):
            for label in page.data:
                yield label

    async def label_pages(
        self, *, after: str | None = None, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[calls.LabelFilters]
    ) -> AsyncIterator[LabelListView]:
        while True:
            page = await self.run(calls.list_labels(filters, after=after, page_size=page_size))
            yield page
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    async def update_label(
        self, label_id: str, *, if_match: str | None = None, **changes: Unpack[calls.LabelChanges]
    ) -> LabelView:
        """``if_match``: the label's ``etag``; raises PreconditionFailed if another change came first."""
        return await self.run(calls.update_label(label_id, changes, if_match=if_match))

    async def delete_label(self, label_id: str, *, if_match: str | None = None) -> int:
        """Returns the vocabulary's revision."""
        return await self.run(calls.delete_label(label_id, if_match=if_match))

    async def label_card(self, label_id: str) -> CardView:
        return await self.run(calls.label_card(label_id))

    async def preview_label(self, label: calls.NewLabel) -> CardView:
        return await self.run(calls.preview_label(label))

    async def preview_labels(self, labels: Iterable[calls.NewLabel]) -> list[CardResultView | CardFailureView]:
        """Up to 32. Stores nothing."""
        return await self.run(calls.preview_labels(labels))

    # --- videos

    async def classify(
        self, video: VideoInput, *, on_progress: OnProgress | None = None, **options: Unpack[calls.KeepingOptions]
    ) -> ClassificationView:
        """``video``: a path, bytes, or a file opened in binary mode; it is read while it is sent."""
        return await self.run(calls.classify(video, options, on_progress=on_progress))

    def tag(
        self,
        paths: Paths,
        *,
        ordered: bool = True,
        candidate_labels: Sequence[str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[TagOptionValues],
    ) -> AsyncGenerator[TagResult]:
        """See `Client.tag`; it runs in threads. The work ends when the iterator is closed or its task is cancelled."""
        chosen = TagOptions(**options)
        check_options(chosen)
        return async_tagging.tag(
            self._config,
            paths,
            chosen,
            ordered=ordered,
            candidate_labels=candidate_labels,
            concurrency=concurrency,
        )

    async def tag_to(
        self,
        paths: Paths,
        out: str | os.PathLike[str],
        *,
        resume: bool = False,
        retry_failed: bool = False,
        overwrite: bool = False,
        candidate_labels: Sequence[str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[TagOptionValues],
    ) -> SavedRun:
        """See `Client.tag_to`; it runs in threads."""
        return await async_tagging.tag_to(
            self._config,
            paths,
            TagOptions(**options),
            os.fspath(out),
            candidate_labels=candidate_labels,
            concurrency=concurrency,
            resume=resume,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )

    @property
    def jobs(self) -> AsyncJobs:
        return AsyncJobs(self)

    @property
    def videos(self) -> AsyncVideos:
        return AsyncVideos(self)

    @property
    def feedback(self) -> AsyncFeedback:
        return AsyncFeedback(self)

    @property
    def webhooks(self) -> AsyncWebhooks:
        return AsyncWebhooks(self)

    # --- models, calibration, keys

    async def models(self) -> ModelsView:
        return await self.run(calls.models())

    async def prepare_model(self, model: str) -> ModelsView:
        return await self.run(calls.prepare_model(model))

    async def activate_model(self) -> ModelsView:
        return await self.run(calls.activate_model())

    async def rollback_model(self) -> ModelsView:
        return await self.run(calls.rollback_model())

    async def drop_model(self, fingerprint: str) -> ModelsView:
        return await self.run(calls.drop_model(fingerprint))

    async def diff_models(self, *, limit: int = 100) -> ModelDiffView:
        return await self.run(calls.diff_models(limit))

    async def calibration(self, *, limit: int = 20) -> CalibrationView:
        """``limit``: labels to return."""
        return await self.run(calls.calibration(limit))

    async def calibrate(self, body: CalibrationBody | Mapping[str, Any], *, limit: int = 20) -> CalibrationView:
        return await self.run(calls.calibrate(body, limit))

    async def delete_calibration(self) -> int:
        """Returns the vocabulary's revision."""
        return await self.run(calls.delete_calibration())

    async def create_key(
        self, scope: Literal["read", "write", "admin"] = "read", **options: Unpack[calls.KeyOptions]
    ) -> NewApiKeyView:
        return await self.run(calls.create_key(scope, options))

    async def list_keys(self) -> list[ApiKeyView]:
        return await self.run(calls.list_keys())

    async def revoke_key(self, key_id: str) -> None:
        await self.run(calls.revoke_key(key_id))

    # --- health

    async def live(self) -> None:
        """Raises NoAnswer if no process answers."""
        await self.run(calls.live())

    async def ready(self) -> ReadyView:
        """Of a service that is not ready too."""
        return await self.run(calls.ready())

    async def metrics(self) -> str:
        return await self.run(calls.metrics())

    # --- requests

    async def run(self, call: Call[T], *, retries: RetryPolicy | None = None) -> T:
        """For callers with a policy of their own."""
        steps = exchange(call, retries or self._config.retries)
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)
                got = None
            else:
                got = await self._send(call)
            try:
                step = steps.send(got)
            except StopIteration as done:
                answer: T = done.value
                return answer

    @asynccontextmanager
    async def stream(self, call: Call[Any], *, silence_seconds: float | None = None) -> AsyncIterator[Streamed]:
        """An answer that is read as it comes, without repetitions; ``call.parse`` is not used.

        ``silence_seconds`` instead of the client's ``timeout_seconds``. Raises VidlexClientError.
        """
        try:
            options = stream_options(call, self._config, silence_seconds)
            async with self._http.stream(call.method, call.path, **options) as response:
                if not response.is_success:
                    received = ReplyBody()
                    async for chunk in response.aiter_bytes():
                        received.add(chunk)
                    raise error_of_reply(received.reply(response))
                yield Streamed(response.status_code, response.aiter_bytes())
        except httpx.HTTPError as error:
            raise fault_of(error, self._config) from None

    async def _send(self, call: Call[Any]) -> Reply | VidlexClientError:
        options = request_options(call)
        try:
            async with AsyncExitStack() as opened:
                if call.upload is not None:
                    body = opened.enter_context(call.upload.opened())
                    options["headers"] |= body.headers
                    options["content"] = aiter(body)
                response = await opened.enter_async_context(self._http.stream(call.method, call.path, **options))
                received = ReplyBody()
                async for chunk in response.aiter_bytes():
                    received.add(chunk)
                return received.reply(response)
        except httpx.HTTPError as error:
            return fault_of(error, self._config)

"""A client of a running service for threads: `Client`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import httpx

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.bulk.options import TagOptions, TagOptionValues
from vidlex.service.bulk.paths import Paths
from vidlex.service.bulk.results import TagResult
from vidlex.service.client import calls
from vidlex.service.client.config import CONNECT_SECONDS, READ_SECONDS, Config, RetryPolicy, resolve
from vidlex.service.client.deliveries import Webhooks
from vidlex.service.client.engine import DEFAULT_CONCURRENCY, tag, tag_to
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.client.exchange import Call, Pause, Reply, error_of_reply, exchange
from vidlex.service.client.feedback import Feedback
from vidlex.service.client.jobs import Jobs, Streamed
from vidlex.service.client.tls import Verify
from vidlex.service.client.transport import ReplyBody, fault_of, http_client, request_options, stream_options
from vidlex.service.client.uploads import OnProgress, VideoInput
from vidlex.service.client.videos import Videos
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


class Client:
    """Thread-safe. Every method raises a VidlexClientError by the service's code (`vidlex.errors`).

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
        self._http = http_client(self._config)

    @property
    def url(self) -> str:
        return self._config.url

    @property
    def timeout_seconds(self) -> float:
        return self._config.timeout_seconds

    @property
    def retries(self) -> RetryPolicy:
        return self._config.retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- labels

    def create_label(
        self,
        name: str,
        *,
        if_exists: calls.IfExists = "error",
        idempotency_key: str | None = None,
        **fields: Unpack[calls.LabelFields],
    ) -> LabelView:
        """Raises LabelExists, or with ``if_exists="return"`` returns the existing label."""
        return self.run(calls.create_label(name, fields, if_exists=if_exists, idempotency_key=idempotency_key))

    def create_labels(
        self,
        labels: Iterable[calls.NewLabel],
        *,
        if_exists: calls.IfExists = "error",
        idempotency_key: str | None = None,
    ) -> list[LabelResultView | LabelFailureView]:
        """Up to 1,000, independent of each other. Results in the order of the labels."""
        return self.run(calls.create_labels(labels, if_exists=if_exists, idempotency_key=idempotency_key))

    def get_label(self, label_id: str) -> LabelView:
        return self.run(calls.get_label(label_id))

    def find_label(self, reference: str) -> LabelView:
        """The label with this id, name or alias; case is ignored. Raises NotFound."""
        return self.run(calls.find_label(reference))

    def labels(self, *, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[calls.LabelFilters]) -> Iterator[LabelView]:
        """All labels in order of creation, read page by page."""
        for page in self.label_pages(page_size=page_size, **filters):
            yield from page.data

    def label_pages(
        self, *, after: str | None = None, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[calls.LabelFilters]
    ) -> Iterator[LabelListView]:
        return calls.label_pages(self.run, filters, after=after, page_size=page_size)

    def update_label(
        self, label_id: str, *, if_match: str | None = None, **changes: Unpack[calls.LabelChanges]
    ) -> LabelView:
        """``if_match``: the label's ``etag``; raises PreconditionFailed if another change came first."""
        return self.run(calls.update_label(label_id, changes, if_match=if_match))

    def delete_label(self, label_id: str, *, if_match: str | None = None) -> int:
        """Returns the vocabulary's revision."""
        return self.run(calls.delete_label(label_id, if_match=if_match))

    def label_card(self, label_id: str) -> CardView:
        return self.run(calls.label_card(label_id))

    def preview_label(self, label: calls.NewLabel) -> CardView:
        return self.run(calls.preview_label(label))

    def preview_labels(self, labels: Iterable[calls.NewLabel]) -> list[CardResultView | CardFailureView]:
        """Up to 32. Stores nothing."""
        return self.run(calls.preview_labels(labels))

    # --- videos

    def classify(
        self, video: VideoInput, *, on_progress: OnProgress | None = None, **options: Unpack[calls.KeepingOptions]
    ) -> ClassificationView:
        """``video``: a path, bytes, or a file opened in binary mode; it is read while it is sent."""
        return self.run(calls.classify(video, options, on_progress=on_progress))

    def tag(
        self,
        paths: Paths,
        *,
        ordered: bool = True,
        candidate_labels: Sequence[str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[TagOptionValues],
    ) -> Iterator[TagResult]:
        """One result per video, in the order of ``paths`` or as completed; the files of this machine, or of a bucket,
        are sent ``concurrency`` at a time, as fast as the service admits them.

        A single path may be a file, a folder, a pattern, a list file or a prefix of a bucket; the items of an iterable
        are one video each. A video that cannot be tagged is a result with ``failure``. Closing the iterator ends the
        work. Without ``candidate_labels``, the stored labels are scored.
        """
        chosen = TagOptions(**options)
        return tag(self, paths, chosen, ordered=ordered, candidate_labels=candidate_labels, concurrency=concurrency)

    def tag_to(
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
        """Writes the rows of `vidlex tag` to a .parquet, .jsonl or .csv file, or to a folder. With ``resume`` what an
        earlier run has done is not done again, with ``retry_failed`` only what failed in it. Needs pyarrow.
        """
        return tag_to(
            self,
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
    def jobs(self) -> Jobs:
        return Jobs(self)

    @property
    def videos(self) -> Videos:
        return Videos(self)

    @property
    def feedback(self) -> Feedback:
        return Feedback(self)

    @property
    def webhooks(self) -> Webhooks:
        return Webhooks(self)

    # --- models, calibration, keys

    def models(self) -> ModelsView:
        return self.run(calls.models())

    def prepare_model(self, model: str) -> ModelsView:
        return self.run(calls.prepare_model(model))

    def activate_model(self) -> ModelsView:
        return self.run(calls.activate_model())

    def rollback_model(self) -> ModelsView:
        return self.run(calls.rollback_model())

    def drop_model(self, fingerprint: str) -> ModelsView:
        return self.run(calls.drop_model(fingerprint))

    def diff_models(self, *, limit: int = 100) -> ModelDiffView:
        return self.run(calls.diff_models(limit))

    def calibration(self, *, limit: int = 20) -> CalibrationView:
        """``limit``: labels to return."""
        return self.run(calls.calibration(limit))

    def calibrate(self, body: CalibrationBody | Mapping[str, Any], *, limit: int = 20) -> CalibrationView:
        return self.run(calls.calibrate(body, limit))

    def delete_calibration(self) -> int:
        """Returns the vocabulary's revision."""
        return self.run(calls.delete_calibration())

    def create_key(
        self, scope: Literal["read", "write", "admin"] = "read", **options: Unpack[calls.KeyOptions]
    ) -> NewApiKeyView:
        return self.run(calls.create_key(scope, options))

    def list_keys(self) -> list[ApiKeyView]:
        return self.run(calls.list_keys())

    def revoke_key(self, key_id: str) -> None:
        self.run(calls.revoke_key(key_id))

    # --- health

    def live(self) -> None:
        """Raises NoAnswer if no process answers."""
        self.run(calls.live())

    def ready(self) -> ReadyView:
        """Of a service that is not ready too."""
        return self.run(calls.ready())

    def metrics(self) -> str:
        return self.run(calls.metrics())

    # --- requests

    def run(
        self, call: Call[T], *, retries: RetryPolicy | None = None, pause: Callable[[float], object] = time.sleep
    ) -> T:
        """For callers with a policy or a way to wait of their own; what ``pause`` raises ends the call."""
        steps = exchange(call, retries or self._config.retries)
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                pause(step.seconds)
                got = None
            else:
                got = self._send(call)
            try:
                step = steps.send(got)
            except StopIteration as done:
                answer: T = done.value
                return answer

    @contextmanager
    def stream(self, call: Call[Any], *, silence_seconds: float | None = None) -> Iterator[Streamed]:
        """An answer that is read as it comes, without repetitions; ``call.parse`` is not used.

        ``silence_seconds`` instead of the client's ``timeout_seconds``. Raises VidlexClientError.
        """
        try:
            options = stream_options(call, self._config, silence_seconds)
            with self._http.stream(call.method, call.path, **options) as response:
                if not response.is_success:
                    received = ReplyBody()
                    for chunk in response.iter_bytes():
                        received.add(chunk)
                    raise error_of_reply(received.reply(response))
                yield Streamed(response.status_code, response.iter_bytes())
        except httpx.HTTPError as error:
            raise fault_of(error, self._config) from None

    def _send(self, call: Call[Any]) -> Reply | VidlexClientError:
        options = request_options(call)
        try:
            with ExitStack() as opened:
                if call.upload is not None:
                    body = opened.enter_context(call.upload.opened())
                    options["headers"] |= body.headers
                    options["content"] = iter(body)
                response = opened.enter_context(self._http.stream(call.method, call.path, **options))
                received = ReplyBody()
                for chunk in response.iter_bytes():
                    received.add(chunk)
                return received.reply(response)
        except httpx.HTTPError as error:
            return fault_of(error, self._config)


def client_with(config: Config) -> Client:
    client = Client.__new__(Client)
    client._config, client._http = config, http_client(config)
    return client

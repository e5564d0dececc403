"""Tags files with a running service, within its admission: a `TagEngine`, and `Client.tag`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vidlex.service.bounds import MAX_CANDIDATES, MAX_URL_CHARS
from vidlex.service.bulk.engine import EngineIdentity, EngineUnavailable, LocalFile
from vidlex.service.bulk.identity import vocabulary_digest
from vidlex.service.bulk.lists import SourceError
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.paths import Paths, sources_of
from vidlex.service.bulk.remote import MissingPackage
from vidlex.service.bulk.results import (
    Receipt,
    Stretch,
    TagFailure,
    TaggedLabel,
    TaggedSegment,
    TagResult,
    VideoFacts,
    result_id_of,
    segment_labels,
)
from vidlex.service.bulk.run import run
from vidlex.service.client import calls
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.errors import (
    Busy,
    ConfigurationInvalid,
    NoAnswer,
    NotAllowed,
    NotAuthorized,
    NotFound,
    QuotaExceeded,
    RequestInvalid,
    TimedOut,
    Unavailable,
    UnexpectedAnswer,
    VidlexClientError,
)
from vidlex.service.client.exchange import Call
from vidlex.service.errors import InvalidParameter
from vidlex.service.schemas.classify import ClassificationView, ScoredLabelView

if TYPE_CHECKING:
    from vidlex.service.bulk.saving import SavedRun

T = TypeVar("T")

DEFAULT_CONCURRENCY = 4
WAITING = RetryPolicy(max_seconds=3600.0, connect_seconds=60.0, max_broken_connections=5)
"""For the service's admission, its start, and the time between two of its releases."""
_MAX_READS = 5  # of a vocabulary that changes meanwhile
# Of this one video, although others of its class concern every video.
_OF_THE_VIDEO = frozenset({"encode_failed", "label_corrupt", "byte_quota_exceeded"})


class _Cancelled(Exception):
    pass


class RunsCalls(Protocol):
    """A `Client`."""

    def run(
        self, call: Call[T], *, retries: RetryPolicy | None = None, pause: Callable[[float], object] = ...
    ) -> T: ...


class ServiceEngine:
    """A ``TagEngine``. Thread-safe; does not close the client.

    ``candidate_labels`` are scored in place of the stored labels. ``concurrency`` videos are sent at a time; what the
    service refuses with 429 is sent again when it says so.

    Raises VidlexClientError.
    """

    def __init__(
        self,
        client: RunsCalls,
        *,
        candidate_labels: Sequence[str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        self._client = client
        self._candidates = None if candidate_labels is None else list(candidate_labels)
        if self._candidates is not None and not 0 < len(self._candidates) <= MAX_CANDIDATES:
            detail = f"candidate_labels must be 1 to {MAX_CANDIDATES} names; register more of them as labels"
            raise RequestInvalid(detail, code="invalid_parameter")
        self.concurrency = concurrency
        self.identity = self._read_identity()

    def _read_identity(self) -> EngineIdentity:
        client = self._client
        for _ in range(_MAX_READS):
            found = client.run(calls.calibration(0))
            revision = found.vocabulary_revision
            if self._candidates is not None:
                rows: list[tuple[str | None, str, float | None, Sequence[str]]]
                rows = [(None, name, None, ()) for name in self._candidates]
            else:
                pages = calls.label_pages(client.run, {"min_revision": revision})
                labels = (label for page in pages for label in page.data)
                rows = [(label.id, label.name, label.threshold, label.categories) for label in labels]
            after = client.run(calls.calibration(0))
            if (after.vocabulary_revision, after.fingerprint, after.model) == (
                revision,
                found.fingerprint,
                found.model,
            ):
                return EngineIdentity(
                    found.model.id,
                    found.model.fingerprint,
                    vocabulary_digest(rows, found.fingerprint),
                    revision if self._candidates is None else None,
                    len(rows),
                )
        raise Unavailable("the vocabulary of the service changes all the time", code="vocabulary_changes")

    def busy(self) -> None:
        return None

    def close(self) -> None:
        pass

    def tag(self, file: LocalFile, options: TagOptions, cancelled: threading.Event) -> TagResult:
        """See ``TagEngine``. Once ``cancelled`` is set, the result is a failure that means nothing."""
        named = TagResult(file.uri, sha256=file.sha256, num_bytes=file.num_bytes)
        if options.features:
            return replace(named, failure=TagFailure("invalid_parameter", "A service sends no vectors of segments"))

        def pause(seconds: float) -> None:
            if cancelled.wait(seconds):
                raise _Cancelled

        def on_progress(num_sent: int, num_bytes: int | None) -> None:
            if cancelled.is_set():
                raise _Cancelled

        try:
            call = calls.classify(file.path, self._params(file, options), on_progress=on_progress)
            answer = self._client.run(call, retries=WAITING, pause=pause)
        except _Cancelled:
            return replace(named, failure=TagFailure("cancelled", "The run ends"))
        except VidlexClientError as error:
            if self._concerns_every_video(error):
                raise EngineUnavailable(error.detail) from error
            return replace(
                named,
                result_id=self.identity.result_id(file.sha256, options),
                failure=TagFailure(error.code, error.detail.replace(str(file.path), "The file")),
            )
        if answer.video.sha256 != file.sha256:
            return replace(named, failure=TagFailure("file_changed", "The file changed while it was read"))
        return self._result(named, answer, options)

    def _params(self, file: LocalFile, options: TagOptions) -> calls.KeepingOptions:
        params: calls.KeepingOptions = {
            "candidate_labels": self._candidates,
            "top_k": options.top_k,
            "min_score": options.min_score,
            "num_frames": options.num_frames,
            "frame_policy": options.frame_policy,
            "start_ms": options.start_ms,
            "end_ms": options.end_ms,
            "aggregate_by": "segments" if options.segments else "video",
            "segment_ms": options.segment_ms,
        }
        if options.keep:
            is_lasting = "://" in file.uri and "?" not in file.uri and len(file.uri) <= MAX_URL_CHARS
            params |= {
                "keep": True,
                "client_id": file.client_id,
                "metadata": dict(file.metadata) or None,
                "uri": file.uri if is_lasting else None,
            }
        return params

    def _concerns_every_video(self, error: VidlexClientError) -> bool:
        if error.code in _OF_THE_VIDEO or isinstance(error, QuotaExceeded):
            return False
        if isinstance(error, TimedOut):  # the service may be gone, or this video takes too long
            try:
                self._client.run(calls.live())
            except VidlexClientError:
                return True
            return False
        everywhere = (
            Busy, ConfigurationInvalid, NoAnswer, NotAllowed, NotAuthorized, NotFound, Unavailable, UnexpectedAnswer
        )  # fmt: skip
        return isinstance(error, everywhere)

    def _result(self, named: TagResult, answer: ClassificationView, options: TagOptions) -> TagResult:
        receipt, video, usage = answer.receipt, answer.video, answer.usage
        vocabulary = self._vocabulary_of(answer)
        labels = [_tagged(label) for label in answer.labels]
        return replace(
            named,
            result_id=result_id_of(video.sha256, answer.model.fingerprint, vocabulary, options.digest_text),
            video=VideoFacts(video.duration_ms, video.start_ms, video.width, video.height, video.fps, video.codec),
            labels=labels,
            segments=_segments(answer.labels, labels) if options.segments else (),
            receipt=Receipt(
                decoder=receipt.decoder,
                encoder=receipt.encoder,
                model_id=answer.model.id,
                fingerprint=answer.model.fingerprint,
                calibration=answer.calibration,
                vocabulary=vocabulary,
                vocabulary_revision=answer.vocabulary_revision if self._candidates is None else None,
                frame_policy=answer.coverage.frame_policy,
                frames_decoded=answer.coverage.frames_decoded,
                frames_failed=answer.coverage.frames_failed,
            ),
            warnings=tuple((warning.code, warning.detail) for warning in answer.warnings),
            timings_ms={
                "decode": usage.decode_ms,
                "queue": usage.queue_ms,
                "encode": usage.encode_ms,
                "match": usage.match_ms,
            },
        )

    def _vocabulary_of(self, answer: ClassificationView) -> str:
        """The digest; of labels that are not those of the identity, one that no other run has."""
        identity = self.identity
        if self._candidates is not None or answer.vocabulary_revision == identity.vocabulary_revision:
            return identity.vocabulary
        calibration = f"{answer.calibration}, revision {answer.vocabulary_revision} after {identity.vocabulary}"
        return vocabulary_digest((), calibration)


def _tagged(label: ScoredLabelView) -> TaggedLabel:
    stretches = tuple(Stretch(s.start_ms, s.end_ms, s.peak_ms, s.score) for s in label.stretches)
    return TaggedLabel(label.id, label.name, label.score, label.threshold, label.matched, stretches)


def _segments(scored: Sequence[ScoredLabelView], tagged: Sequence[TaggedLabel]) -> list[TaggedSegment]:
    """None without labels."""
    segments = []
    for i, segment in enumerate(scored[0].segments if scored else ()):
        labels = segment_labels(tagged, [view.segments[i].score for view in scored])
        segments.append(TaggedSegment(segment.start_ms, segment.end_ms, labels))
    return segments


def check_options(options: TagOptions) -> None:
    """Raises RequestInvalid."""
    with _as_client_errors():
        options.check()


def tag(
    client: RunsCalls,
    paths: Paths,
    options: TagOptions,
    *,
    ordered: bool,
    candidate_labels: Sequence[str] | None,
    concurrency: int,
    cancelled: threading.Event | None = None,
) -> Generator[TagResult]:
    """Raises VidlexClientError if no video can be tagged (any more). Once ``cancelled`` is set, the run ends."""
    with _as_client_errors():
        options.check()
        sources = sources_of(paths)
    engine = ServiceEngine(client, candidate_labels=candidate_labels, concurrency=concurrency)
    results = run(sources, engine, options, ordered=ordered, cancelled=cancelled)

    def each() -> Generator[TagResult]:
        with _as_client_errors():
            yield from results

    return each()


def tag_to(
    client: RunsCalls,
    paths: Paths,
    options: TagOptions,
    out: str,
    *,
    candidate_labels: Sequence[str] | None,
    concurrency: int,
    cancelled: threading.Event | None = None,
    **saved: bool,
) -> SavedRun:
    """``saved``: the further arguments of ``saving.tag_to``.

    Raises Cancelled once ``cancelled`` is set, and VidlexClientError if no video can be tagged.
    """
    from vidlex.service.bulk import saving  # needs pyarrow

    with _as_client_errors():
        options.check()
        sources = sources_of(paths)
    engine = ServiceEngine(client, candidate_labels=candidate_labels, concurrency=concurrency)
    with _as_client_errors():
        return saving.tag_to(engine, sources, options, out, cancelled=cancelled, **saved)


@contextmanager
def _as_client_errors() -> Iterator[Any]:
    try:
        yield
    except EngineUnavailable as error:
        if isinstance(error.__cause__, VidlexClientError):
            raise error.__cause__ from None
        raise Unavailable(str(error), code="engine_unavailable") from error
    except InvalidParameter as error:
        raise RequestInvalid(str(error), code=error.code) from None
    except SourceError as error:
        raise RequestInvalid(str(error), code="source_invalid") from error
    except MissingPackage as error:
        raise ConfigurationInvalid(str(error), code="package_missing") from error
    except ValueError as error:
        if type(error).__name__ == "OutputError":  # its module needs pyarrow
            raise RequestInvalid(str(error), code="output_invalid") from error
        raise

"""What a job reads: an upload of this place, an https:// URL, or an object of a bucket that the service may read."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vidlex.service.bulk.fetch import Cancelled, Fetcher, FetchError
from vidlex.service.bulk.remote import MissingPackage
from vidlex.service.bulk.source import VideoSource
from vidlex.service.errors import FetchFailed, InvalidParameter, UrlRefused
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.records import JobInput
from vidlex.service.machine.process_folder import ProcessFolder
from vidlex.service.outbound.requests import Outbound
from vidlex.service.sharing.requester import Requester

# Bucket names by the rules of S3; a key without control characters and without a query.
_S3_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\x00-\x1f\x7f?#]{1,1024})")

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class SourceFile:
    path: Path
    sha256: str
    num_bytes: int
    uri: str | None = None  # from which it can be read again


class JobSources:
    """Thread-safe. ``start`` first, ``close`` last. ``folder`` is for downloads, removed after their use."""

    def __init__(
        self,
        files: JobFiles,
        outbound: Outbound,
        folder: Path,
        *,
        buckets: tuple[str, ...] = (),
        max_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._files = files
        self._outbound = outbound
        self._folder = ProcessFolder(folder)
        self._buckets = buckets
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds

    def start(self) -> None:
        self._folder.start()

    def close(self) -> None:
        self._folder.close()

    def check(self, uri: str, *, is_batch: bool = False) -> JobInput:
        """Without a look at the network. A batch stays in this place, where its files are. Raises UrlRefused."""
        if uri.startswith("s3://"):
            found = _S3_URI.fullmatch(uri)
            if found is None:
                raise UrlRefused("This is not s3://BUCKET/KEY")
            if found[1] not in self._buckets:
                raise UrlRefused("The service may not read this bucket")
        else:
            self._outbound.policy.check(uri)
        return JobInput("url", uri, self._files.place if is_batch else None)

    @contextmanager
    def opened(
        self, job_input: JobInput | None, requester: Requester, on_bytes: OnBytes = lambda done, total: None
    ) -> Iterator[SourceFile]:
        """The file of a job, for the duration of the block. Raises InvalidParameter, NotFound, and as ``fetched``."""
        if job_input is None:
            raise InvalidParameter("The job has no input")
        if job_input.kind == "url":
            with self.fetched(job_input.ref, requester, on_bytes) as file:
                yield file
            return
        path = self._files.path(job_input)
        yield SourceFile(path, job_input.sha256 or "", path.stat().st_size)

    @contextmanager
    def fetched(
        self, uri: str, requester: Requester, on_bytes: OnBytes = lambda done, total: None
    ) -> Iterator[SourceFile]:
        """A downloaded file, for the duration of the block.

        Raises UrlRefused, FetchFailed (too large or too slow as well), StorageFull, and Overloaded once the requester
        has given up.
        """
        self.check(uri)
        requester.check()
        deadline = min(requester.deadline, time.monotonic() + self._timeout_seconds)
        if uri.startswith("s3://"):
            with self._object(uri, deadline, requester) as file:
                yield file
            return
        path = self._folder.new_path()
        try:
            try:
                found = self._outbound.download(
                    uri,
                    path,
                    max_bytes=self._max_bytes,
                    deadline=deadline,
                    cancelled=requester.cancelled,
                    on_bytes=on_bytes,
                )
            except FetchFailed:
                requester.check()
                raise
            yield SourceFile(path, found.sha256, found.num_bytes, uri)
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _object(self, uri: str, deadline: float, requester: Requester) -> Iterator[SourceFile]:
        folder = self._folder.new_path()
        folder.mkdir(mode=0o700)
        fetcher = Fetcher(
            max_file_bytes=self._max_bytes,
            max_spool_bytes=self._max_bytes,
            timeout_seconds=max(0.0, deadline - time.monotonic()),
            folder=folder,
        )
        try:
            found = _fetched(fetcher, uri, requester.cancelled)
            yield SourceFile(found.path, found.sha256, found.num_bytes, uri)
        except Cancelled:
            requester.check()
            raise
        finally:
            fetcher.close()


def _fetched(fetcher: Fetcher, uri: str, cancelled: threading.Event) -> SourceFile:
    """Raises FetchFailed, Cancelled."""
    try:
        file = fetcher.fetch(VideoSource(uri), cancelled).file
    except FetchError as error:
        raise FetchFailed(error.failure.detail) from error
    except MissingPackage as error:
        raise FetchFailed("The service lacks the package that reads s3://", internal=str(error)) from error
    return SourceFile(file.path, file.sha256, file.num_bytes)

"""What jobs read: a web server and an S3 that are real, and what is refused."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from support.held_files import HeldFiles, held_files
from support.processes import until
from vidlex.service.bulk import remote
from vidlex.service.errors import FetchFailed, InvalidParameter, NotFound, Overloaded, UrlRefused, VidlexError
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.records import JobInput
from vidlex.service.jobs.sources import JobSources
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Outbound
from vidlex.service.sharing.requester import Requester

DATA = bytes(range(256)) * 400
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "NO_PROXY": "*"}.items():
            patch.setenv(name, value)
        remote.filesystem.cache_clear()
        store = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}", use_listings_cache=False)
        for name in ("team-videos", "secret"):
            store.mkdir(name)
            store.pipe_file(f"{name}/in/a.mp4", DATA)
        yield store
        remote.filesystem.cache_clear()
    server.stop()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldFiles]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "a.mp4").write_bytes(DATA)
    with held_files(folder) as files:
        yield files


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[JobSources]:
    files = JobFiles(tmp_path / "jobs", 1 << 30)
    files.open()
    outbound = Outbound(UrlPolicy.configured(["127.0.0.1"], ["127.0.0.0/8"]))
    sources = JobSources(
        files,
        outbound,
        tmp_path / "downloads",
        buckets=("team-videos",),
        max_bytes=len(DATA),
        timeout_seconds=60.0,
    )
    sources.start()
    yield sources
    assert not [path for path in (tmp_path / "downloads").rglob("*") if path.is_file() and path.suffix != ".lock"]
    sources.close()


def test_a_file_is_there_as_long_as_it_is_used(sources: JobSources, web: HeldFiles, bucket: s3fs.S3FileSystem) -> None:
    for uri in (f"{web.url}/a.mp4", "s3://team-videos/in/a.mp4"):
        with sources.opened(sources.check(uri), Requester()) as file:
            assert file.path.read_bytes() == DATA
            assert (file.sha256, file.num_bytes, file.uri) == (hashlib.sha256(DATA).hexdigest(), len(DATA), uri)
        assert not file.path.exists()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://secret/in/a.mp4",
        "s3://team-videos",
        "s3://team-videos/",
        "s3://TEAM-VIDEOS/in/a.mp4",
        "s3://team-videos/in/a.mp4?versionId=1",
        "s3://team-videos/in/a.mp4#part",
        "s3://team-videos/in/\na.mp4",
        "s3://team-videos@secret/in/a.mp4",
        "S3://team-videos/in/a.mp4",
        "gs://team-videos/in/a.mp4",
        "file:///etc/passwd",
        "/etc/passwd",
        "https://other.example/a.mp4",
        "s3://secret::https://127.0.0.1/a.mp4",
        "",
    ],
)
def test_what_is_not_configured_is_refused_before_anything_is_opened(sources: JobSources, uri: str) -> None:
    with pytest.raises(UrlRefused):
        sources.check(uri)
    with pytest.raises(UrlRefused), sources.fetched(uri, Requester()):
        raise AssertionError


def test_what_cannot_be_read_fails(sources: JobSources, web: HeldFiles, bucket: s3fs.S3FileSystem) -> None:
    (web.folder / "large.mp4").write_bytes(DATA + b"1")
    bucket.pipe_file("team-videos/in/large.mp4", DATA + b"1")
    for base in (web.url, "s3://team-videos/in"):
        for name in ("gone.mp4", "large.mp4"):
            with pytest.raises(FetchFailed) as failed, sources.fetched(f"{base}/{name}", Requester()):
                raise AssertionError
            assert "127.0.0.1" not in str(failed.value) and "/downloads" not in str(failed.value)


def test_a_batch_stays_where_its_files_are(sources: JobSources, web: HeldFiles) -> None:
    assert sources.check(f"{web.url}/a.mp4").place is None
    assert sources.check(f"{web.url}/list.jsonl", is_batch=True).place


def test_an_input_that_is_missing_is_an_error_of_the_job(sources: JobSources) -> None:
    with pytest.raises(InvalidParameter), sources.opened(None, Requester()):
        raise AssertionError
    with (
        pytest.raises(NotFound),
        sources.opened(JobInput("upload", f"{'a' * 16}/{'b' * 32}", "elsewhere"), Requester()),
    ):
        raise AssertionError


def test_a_download_ends_when_it_is_cancelled_or_too_slow(sources: JobSources, web: HeldFiles) -> None:
    cancelled = threading.Event()
    errors: list[Exception] = []
    slow = web.hold("a.mp4")

    def read(requester: Requester) -> None:
        try:
            with sources.fetched(slow, requester):
                raise AssertionError
        except VidlexError as error:
            errors.append(error)

    thread = threading.Thread(target=read, args=(Requester(cancelled=cancelled),))
    thread.start()
    until(lambda: len(web.asked) > 0 and slow.endswith(web.asked[-1]))
    cancelled.set()
    thread.join()
    read(Requester(deadline=time.monotonic() + 0.3))
    web.let(slow)
    assert [type(error) for error in errors] == [Overloaded, FetchFailed]

"""SRC and OUT in an S3 that is a real server, and videos from a web server."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from support.bulk_runs import FakeEngine, comparable, tag_into, write_files
from support.serving import colour_video
from vidlex.service.bulk import remote
from vidlex.service.bulk.fetch import Fetcher
from vidlex.service.bulk.lists import SourceError
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.output import TagOutput
from vidlex.service.bulk.remote import MissingPackage
from vidlex.service.bulk.rows import Row, rows_of
from vidlex.service.bulk.run import run
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import Sources
from vidlex.service.bulk.storage import StorageError
from vidlex.service.bulk.target import OutputError

NUM_FILES = 16
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "NO_PROXY": "*"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        remote.filesystem.cache_clear()
        yield found
        remote.filesystem.cache_clear()
    server.stop()


@pytest.fixture
def bucket(environment: dict[str, str], request: pytest.FixtureRequest) -> str:
    """An empty one."""
    name = f"b{abs(hash(request.node.name))}"
    store(environment).mkdir(name)
    return f"s3://{name}"


def store(environment: dict[str, str]) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"], use_listings_cache=False)


@pytest.fixture
def videos(bucket: str, environment: dict[str, str], tmp_path: Path) -> str:
    folder = write_files(tmp_path / "videos", NUM_FILES)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.mp4").write_text("x")
    store(environment).put(f"{folder}/", f"{bucket}/in/deep/", recursive=True)
    return f"{bucket}/in/"


def read(uri: str, environment: dict[str, str]) -> list[Row]:
    files = store(environment)
    names = files.glob(f"{uri.rstrip('/')}/*.parquet") if uri.endswith("/") else [uri]
    return [row for name in names for row in rows_of(pq.read_table(io.BytesIO(files.cat_file(name))))]


@pytest.mark.parametrize("name", ["tags.parquet", "tags/"])
def test_from_a_bucket_to_a_bucket(
    bucket: str, videos: str, environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    engine = FakeEngine()
    tag_into(f"{bucket}/out/{name}", [videos], engine, options=TagOptions(segments=True))
    found = read(f"{bucket}/out/{name}", environment)
    assert [row["uri"] for row in found] == [f"{videos}deep/{i:05}.mp4" for i in range(NUM_FILES)]
    tag_into(tmp_path / "local.parquet", [tmp_path / "videos"], FakeEngine(), options=TagOptions(segments=True))
    local = list(rows_of(pq.read_table(tmp_path / "local.parquet")))
    assert [row["result_id"] for row in found] == [row["result_id"] for row in local][:NUM_FILES]
    left = sorted(path.removeprefix(f"{bucket[5:]}/out/") for path in store(environment).find(f"{bucket}/out"))
    expected = {
        "tags.parquet": ["tags.parquet", "tags.segments.parquet"],
        "tags/": ["tags.segments/part-00000.parquet", "tags/part-00000.parquet"],
    }
    assert left == expected[name]
    with pytest.raises(OutputError, match="exists"):
        TagOutput(f"{bucket}/out/{name}")


def test_a_run_in_a_bucket_is_continued(bucket: str, videos: str, environment: dict[str, str]) -> None:
    out = f"{bucket}/tags.parquet"
    tag_into(out, [videos], FakeEngine(), stop_after=12, checkpoint_rows=5)
    assert not store(environment).exists(out)
    second = FakeEngine()
    tag_into(out, [videos], second, resume=True)
    third = FakeEngine()
    tag_into(f"{bucket}/all.parquet", [videos], third)
    assert 0 < len(second.tagged) < len(third.tagged)
    assert comparable(read(out, environment)) == comparable(read(f"{bucket}/all.parquet", environment))
    store(environment).pipe_file(f"{videos}deep/00000.mp4", b"other content")
    fourth = FakeEngine()
    tag_into(out, [videos], fourth, resume=True)
    assert fourth.tagged == [f"{videos}deep/00000.mp4"]


def test_known_objects_are_not_downloaded_again(bucket: str, videos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tag_into(f"{bucket}/tags.parquet", [videos], FakeEngine())

    def fetch(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    assert len(tag_into(f"{bucket}/tags.parquet", [videos], FakeEngine(), resume=True)) == NUM_FILES


def test_addresses_lists_and_patterns(bucket: str, videos: str, environment: dict[str, str], tmp_path: Path) -> None:
    files = store(environment)
    files.pipe_file(f"{bucket}/in/list.csv", b"uri,id\ndeep/00003.mp4,a\n" + f"{videos}deep/00004.mp4,b\n".encode())
    assert [(s.uri, s.client_id) for s in Sources([f"{videos}list.csv"])] == [
        (f"{videos}deep/00003.mp4", "a"),
        (f"{videos}deep/00004.mp4", "b"),
    ]
    assert [s.uri for s in Sources([f"{videos}deep/0001*.mp4"])] == [
        f"{videos}deep/{i:05}.mp4" for i in range(10, NUM_FILES)
    ]
    assert [s.uri for s in Sources([f"{videos}deep/00001.mp4"])] == [f"{videos}deep/00001.mp4"]
    assert len(list(Sources([videos.rstrip("/")]))) == len(list(Sources([bucket]))) == NUM_FILES
    for nothing in (f"{bucket}/nothing/", f"{bucket}/nothing.mp4", f"{videos}*.mkv", "s3://no-such-bucket/"):
        with pytest.raises(SourceError):
            Sources([nothing])
    (tmp_path / "list.txt").write_text(f"{videos}deep/00001.mp4\n{videos}nothing.mp4\n{bucket}/in\n")
    results = list(run(Sources([str(tmp_path / "list.txt")]), FakeEngine(), TagOptions()))
    codes = [result.failure.code if result.failure else None for result in results]
    assert codes == [None, "file_not_readable", "file_not_readable"]


def test_downloads_are_bounded_and_removed(
    bucket: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = store(environment)
    for number in range(12):
        files.pipe_file(f"{bucket}/{number:02}.mp4", bytes([number]) * 1000)
    files.pipe_file(f"{bucket}/99.mp4", b"x" * 2001)
    largest = 0

    def before(file: Any) -> None:
        nonlocal largest
        with suppress(FileNotFoundError):  # another one was released meanwhile
            largest = max(largest, sum(path.stat().st_size for path in file.path.parent.iterdir()))

    fetcher = Fetcher(max_file_bytes=2000, max_spool_bytes=3000)
    results = list(run(Sources([f"{bucket}/"]), FakeEngine(before=before), TagOptions(), fetcher=fetcher))
    assert [r.failure.code if r.failure else None for r in results] == [None] * 12 + ["file_too_large"]
    assert 1000 <= largest <= 3000
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    fetcher.close()
    assert list(tmp_path.glob("vidlex-tag-*")) == []


def test_a_left_download_folder_of_a_killed_run_is_removed(
    bucket: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number in (os.getpid(), 2**22 + 1):  # more than any process has
        (tmp_path / f"vidlex-tag-{number}-x").mkdir()
    store(environment).pipe_file(f"{bucket}/a.mp4", b"1")
    list(run(Sources([f"{bucket}/"]), FakeEngine(), TagOptions()))
    assert [path.name for path in tmp_path.glob("vidlex-tag-*")] == [f"vidlex-tag-{os.getpid()}-x"]


def test_a_store_without_rights_or_without_an_answer(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.filesystem.cache_clear()
    with pytest.raises(SourceError, match=r"s3://bucket/a.mp4: cannot be listed or read \(\w+\)"):
        Sources(["s3://bucket/a.mp4"])
    with pytest.raises(StorageError, match=r"the store cannot be read or written \(\w+\)"):
        TagOutput("s3://bucket/tags.parquet")
    remote.filesystem.cache_clear()


def test_a_missing_package_is_named() -> None:
    for uri, package in (("gs://bucket/a.mp4", "gcsfs"), ("az://container/a.mp4", "adlfs")):
        with pytest.raises(MissingPackage, match=f"needs {package}: pip install {package}"):
            Sources([uri])


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    write_files(tmp_path / "site", 5)
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_videos_of_a_web_server(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    remote.filesystem.cache_clear()
    (tmp_path / "list.txt").write_text(f"{site}00000.mp4?token=1\n{site}nothing.mp4\n")
    listed = list(run(Sources([str(tmp_path / "list.txt")]), FakeEngine(), TagOptions()))
    assert [r.failure.code if r.failure else None for r in listed] == [None, "file_not_readable"]
    assert listed[0].num_bytes == 1
    found = list(run(Sources([site, f"{site}00001.mp4"]), FakeEngine(), TagOptions()))
    assert [result.uri for result in found] == [*(f"{site}{i:05}.mp4" for i in range(5)), f"{site}00001.mp4"]
    assert not any(result.failure for result in found)


def test_a_version_is_that_of_the_listing_or_of_a_request(site: str, videos: str) -> None:
    first = next(iter(Sources([videos])))
    assert first.version == Fetcher().version(VideoSource(first.uri)) and first.version is not None
    web = Fetcher().version(VideoSource(f"{site}00000.mp4"))
    assert web is None or web.startswith("1:")


def test_the_command_reads_and_writes_a_bucket(bucket: str, environment: dict[str, str], tmp_path: Path) -> None:
    for colour in ("red", "green"):
        colour_video(tmp_path / f"{colour}.mp4", colour, frames_each=4)
        store(environment).put_file(str(tmp_path / f"{colour}.mp4"), f"{bucket}/v/{colour}.mp4")
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", f"{bucket}/v/", "--out", f"{bucket}/o.parquet"]
    words += ["--model", "dummy", "--label", "red", "--label", "green", "--json", "--decode-workers", "1"]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_tagged"] == 2
    found = read(f"{bucket}/o.parquet", environment)
    assert [row["labels"][0]["name"] for row in found] == ["green", "red"]

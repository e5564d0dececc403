"""`Tagger` in this process, `Client` and `AsyncClient` of a real service: the same tests, typed results, codes and
resumption."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import httpx
import pyarrow.parquet as pq
import pytest
from anyio.from_thread import start_blocking_portal

from support.live import live_process
from support.serving import add, colour_video
from vidlex import AsyncClient, Client, Tagger, errors
from vidlex.service.bulk.output import TagOutput
from vidlex.service.bulk.results import TaggedLabel, TagResult, VideoFacts
from vidlex.service.bulk.run import Tagged
from vidlex.service.bulk.source import VideoSource
from vidlex.service.client.config import NO_WAIT

ONE_AT_A_TIME = {"VIDLEX_DECODE_WORKERS": "1", "VIDLEX_MAX_WAITING_VIDEOS": "1"}


class Tags(Protocol):
    def tag(self, paths: Any, *, ordered: bool = True, **options: Any) -> Iterator[TagResult]: ...

    def tag_to(self, paths: Any, out: Any, **options: Any) -> Any: ...

    def close(self) -> None: ...


class BlockingClient:
    """An `AsyncClient` in an event loop of another thread. The first result is there when ``tag`` returns."""

    def __init__(self, url: str) -> None:
        self._opened = ExitStack()
        self._portal = self._opened.enter_context(start_blocking_portal())

        async def make() -> AsyncClient:
            return AsyncClient(url)

        self._client = self._portal.call(make)

    def tag(self, paths: Any, *, ordered: bool = True, **options: Any) -> Iterator[TagResult]:
        results = self._client.tag(paths, ordered=ordered, **options)

        async def following() -> TagResult | None:
            return await anext(results, None)

        async def ended() -> None:
            await results.aclose()

        result = self._portal.call(following)

        def each() -> Iterator[TagResult]:
            found = result
            try:
                while found is not None:
                    yield found
                    found = self._portal.call(following)
            finally:
                self._portal.call(ended)

        return each()

    def tag_to(self, paths: Any, out: Any, **options: Any) -> Any:
        async def run() -> Any:
            return await self._client.tag_to(paths, out, **options)

        return self._portal.call(run)

    def close(self) -> None:
        self._portal.call(self._client.close)
        self._opened.close()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VIDLEX_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    colour_video(made / "1-red.mp4", "red")
    colour_video(made / "2-mixed.mp4", "red", "green", "blue")
    (made / "3-text.mp4").write_bytes(b"no video" * 100)
    colour_video(made / "4-blue.webm.mp4", "blue")
    shutil.copy(made / "1-red.mp4", made / "5-again.mp4")
    return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "data"


@pytest.fixture(scope="module")
def url(data_dir: Path) -> Iterator[str]:
    """A service that admits few videos at a time."""
    with live_process(data_dir, **ONE_AT_A_TIME) as (address, _):
        with httpx.Client(base_url=address, trust_env=False) as http:
            add(http, "green", "blue")
            add(http, "red", threshold=0.9, categories=["warm"])
        yield address


@pytest.fixture(scope="module")
def open_tags(url: str, data_dir: Path) -> dict[str, Callable[[], Tags]]:
    return {
        "Tagger": lambda: Tagger("dummy", namespace="default", data_dir=data_dir, decode_workers=1),
        "Client": lambda: Client(url),
        "AsyncClient": lambda: BlockingClient(url),
    }


@pytest.fixture(scope="module", params=["Tagger", "Client", "AsyncClient"])
def tags(request: pytest.FixtureRequest, open_tags: dict[str, Callable[[], Tags]]) -> Iterator[Tags]:
    made = open_tags[request.param]()
    yield made
    made.close()


def test_results_are_typed_and_in_the_order_of_the_paths(tags: Tags, folder: Path) -> None:
    paths = [folder / "2-mixed.mp4", str(folder / "1-red.mp4")]
    mixed, red = tags.tag(paths, top_k=2)
    assert [result.uri for result in (mixed, red)] == [str(path) for path in paths]
    assert isinstance(red, TagResult) and isinstance(red.video, VideoFacts) and isinstance(red.labels[0], TaggedLabel)
    assert (red.video.duration_ms, red.video.codec) == (1000, "h264")
    assert [label.name for label in red.labels] == ["red", "blue"]
    assert red.labels[0].id is not None and red.labels[0].threshold == 0.9
    assert [label.name for label in red.matched] == ["red"]
    assert red.labels[0].stretches[0].end_ms == 1000
    assert red.sha256 is not None and red.receipt is not None and red.receipt.fingerprint == "dummy-1"
    assert red.num_bytes == Path(red.uri).stat().st_size
    assert {"fetch", "decode", "queue", "encode", "match"} <= set(red.timings_ms)


def test_a_folder_a_list_and_a_pattern_are_read(tags: Tags, folder: Path, tmp_path: Path) -> None:
    names = ["1-red.mp4", "2-mixed.mp4", "3-text.mp4", "4-blue.webm.mp4", "5-again.mp4"]
    assert [Path(result.uri).name for result in tags.tag(folder)] == names
    assert [Path(result.uri).name for result in tags.tag(str(folder / "*-red.mp4"))] == names[:1]
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"uri": str(folder / names[1]), "id": "b", "shop": "x"}) + "\n")
    (result,) = tags.tag(listed)
    assert (result.client_id, dict(result.metadata)) == ("b", {"shop": "x"})
    (result,) = tags.tag([VideoSource(str(folder / names[0]), "own")])
    assert result.client_id == "own"


def test_failed_videos_are_results_with_a_code(tags: Tags, folder: Path) -> None:
    paths = [folder / "missing.mp4", folder / "3-text.mp4", folder, folder / "1-red.mp4"]
    results = list(tags.tag(paths))
    codes = [None if result.failure is None else result.failure.code for result in results]
    assert codes == ["file_not_readable", "unsupported_media", "file_not_readable", None]
    assert [result.labels for result in results[:3]] == [(), (), ()]


def test_as_completed_has_every_video_once(tags: Tags, folder: Path) -> None:
    paths = [folder / "2-mixed.mp4", *[folder / "1-red.mp4"] * 3, folder / "3-text.mp4"]
    results = list(tags.tag(paths, ordered=False))
    assert sorted(result.uri for result in results) == sorted(map(str, paths))


def test_paths_are_read_lazily_and_closing_ends_the_work(tags: Tags, folder: Path) -> None:
    num_read = 0

    def endless() -> Iterator[Path]:
        nonlocal num_read
        while True:
            num_read += 1
            yield folder / "1-red.mp4"

    results: Any = tags.tag(endless())
    assert next(results).failure is None
    results.close()
    after = num_read
    time.sleep(0.2)
    assert num_read == after < 10_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": -1}, "top_k"),
        ({"min_score": 1.5}, "min_score"),
        ({"start_ms": 500, "end_ms": 500}, "end_ms"),
        ({"frame_policy": "all"}, "frame_policy"),
        ({"segment_ms": 0.5}, "segment_ms"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_tagged(
    tags: Tags, folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(errors.RequestInvalid, match=words) as caught:
        tags.tag(folder, **options)
    assert caught.value.code == "invalid_parameter"
    with pytest.raises(TypeError):
        tags.tag(folder, top=3)


def test_a_folder_that_does_not_exist_has_a_code(tags: Tags, folder: Path) -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        tags.tag(folder / "nothing")
    assert caught.value.code == "source_invalid"


def test_an_error_of_the_caller_s_own_paths_reaches_the_caller(tags: Tags, folder: Path) -> None:
    def failing() -> Iterator[Path]:
        yield folder / "1-red.mp4"
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(tags.tag(failing()))


def test_all_give_the_same_results(open_tags: dict[str, Callable[[], Tags]], folder: Path) -> None:
    found = []
    for make in open_tags.values():
        opened = make()
        found.append([*opened.tag(folder), *opened.tag(folder, segments=True, segment_ms=500, top_k=1)])
        opened.close()
    for own, other in ((own, other) for own, *others in zip(*found, strict=True) for other in others):
        assert (own.uri, own.result_id, own.sha256) == (other.uri, other.result_id, other.sha256)
        assert (own.video, own.receipt, own.failure) == (other.video, other.receipt, other.failure)
        assert list(own.labels) == list(other.labels)
        assert list(own.segments) == list(other.segments)
        assert list(own.warnings) == list(other.warnings)


def test_more_videos_than_are_admitted_are_waited_for(
    url: str, data_dir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service answers 429, and the decode queue of this process has one place."""
    for name, value in ONE_AT_A_TIME.items():
        monkeypatch.setenv(name, value)
    paths = []
    for number in range(12):  # of different content, so that each is tagged
        paths.append(tmp_path / f"{number}.mp4")
        paths[-1].write_bytes((folder / "2-mixed.mp4").read_bytes() + number.to_bytes(4))
    with Client(url) as client:
        assert [result.failure for result in client.tag(paths, concurrency=8)] == [None] * 12
    with Tagger("dummy", namespace="default", data_dir=data_dir) as tagger:
        assert [result.failure for result in tagger.tag(paths)] == [None] * 12


def test_a_run_that_was_ended_is_resumed(
    tags: Tags,
    open_tags: dict[str, Callable[[], Tags]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In an event loop, an interrupt ends the loop.
    interrupt = RuntimeError if isinstance(tags, BlockingClient) else KeyboardInterrupt
    add_row = TagOutput.add
    added: list[Tagged] = []

    def interrupted(self: TagOutput, tagged: Tagged) -> None:
        if len(added) == 3:
            raise interrupt
        added.append(tagged)
        add_row(self, tagged)

    paths = sorted(folder.glob("*.mp4"))
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(TagOutput, "add", interrupted)
        with pytest.raises(interrupt):
            tags.tag_to(paths, out)
    assert not out.exists()
    with pytest.raises(errors.RequestInvalid, match="not finished") as caught:
        tags.tag_to(folder, out)
    assert caught.value.code == "output_invalid"
    resumed = tags.tag_to(paths, out, resume=True)
    assert (resumed.num_videos, resumed.num_failed) == (5, 1)
    assert resumed.num_new == 4 - len({tagged.result.sha256 for tagged in added})
    unbroken = tags.tag_to(paths, tmp_path / "unbroken.parquet")
    assert (unbroken.num_videos, unbroken.num_new) == (5, 4)  # two files have the same content
    tables = [pq.read_table(path).drop_columns(["timings_ms"]) for path in (out, tmp_path / "unbroken.parquet")]
    assert tables[0].equals(tables[1])
    # The other engine has the same labels, so that it has nothing to do either.
    for make in open_tags.values():
        other = make()
        again = other.tag_to(paths, out, resume=True)
        other.close()
        assert (again.num_videos, again.num_new) == (5, 0)


def test_what_ends_a_run_has_a_code(folder: Path, tmp_path: Path) -> None:
    with (
        live_process(tmp_path / "data") as (address, process),
        Client(address, retries=NO_WAIT) as client,
        httpx.Client(base_url=address, trust_env=False) as http,
    ):
        add(http, "red")
        results = client.tag([folder / "1-red.mp4"] * 2)
        assert next(results).failure is None
        process.terminate()
        process.wait()
        with pytest.raises(errors.NoAnswer) as caught:
            list(client.tag(folder))
        assert caught.value.code == "connection_failed"
    tagger = Tagger("dummy", labels=["red"], data_dir=tmp_path)
    running = tagger.tag(folder / "1-red.mp4" for _ in iter(int, 1))
    next(running)
    tagger.close()
    with pytest.raises(errors.Unavailable) as ended:
        list(running)
    assert ended.value.code == "engine_unavailable"

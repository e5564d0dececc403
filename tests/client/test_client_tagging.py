"""`AsyncClient.tag` and `tag_to` end with the task that reads them; results: bulk/test_tagger_and_client.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from support.live import live_service
from support.processes import until
from support.serving import colour_video
from vidlex import AsyncClient


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("tagging") / "data") as address:
        yield address


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")
    return path


class Endless:
    """Paths without end, read by any number of threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_read = 0

    def __iter__(self) -> Iterator[Path]:
        while True:
            self.num_read += 1
            yield self.path


def tagging_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("vidlex-tag", "fetch", "tag_"))]


def is_over() -> bool:
    return not tagging_threads()


def test_leaving_the_iterator_ends_the_work(url: str, red: Path) -> None:
    paths = Endless(red)

    async def first_ones() -> list[str]:
        async with AsyncClient(url) as client, aclosing(client.tag(paths, candidate_labels=["red"])) as results:
            found = []
            async for result in results:
                assert result.failure is None
                found.append(result.uri)
                if len(found) == 3:
                    break
            return found

    assert asyncio.run(first_ones()) == [str(red)] * 3
    until(is_over)
    assert paths.num_read < 10_000


@pytest.mark.parametrize("to_file", [False, True])
def test_a_cancelled_task_ends_the_work(url: str, red: Path, tmp_path: Path, to_file: bool) -> None:
    paths = Endless(red)

    async def tag(client: AsyncClient) -> None:
        if to_file:
            await client.tag_to(paths, tmp_path / "tags.jsonl", candidate_labels=["red"])
        else:
            async for _ in client.tag(paths, candidate_labels=["red"]):
                pass

    async def run() -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(tag(client))
            while paths.num_read < 20:
                await asyncio.sleep(0.01)
                await client.live()  # the loop is free meanwhile
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    until(is_over)
    num_read = paths.num_read
    assert num_read < 100_000
    assert not (tmp_path / "tags.jsonl").exists()

"""Lists of kept videos that lack features of an encoder: bounded, and empty at once if none does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kept_videos import NAMESPACE, keep, kept_store
from support.stores import running_store
from vidlex.service.errors import Overloaded
from vidlex.service.videos import pages
from vidlex.service.videos.pages import KeptVideoPage, VideoFilter


def test_pages_of_videos_without_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_store(tmp_path / "store") as client:
        store = kept_store(client, tmp_path)
        monkeypatch.setattr(pages, "_CHUNK", 2)
        monkeypatch.setattr(pages, "MAX_PASSED_OVER", 3)
        read: list[int] = []
        read_ids = pages._ids

        def counted(*args: Any) -> Iterator[list[bytes]]:
            for candidates in read_ids(*args):
                read.append(len(candidates))
                yield candidates

        monkeypatch.setattr(pages, "_ids", counted)
        without = keep(store, "without")
        time.sleep(0.002)
        ids = [keep(store, str(number), fingerprint="encoder-2") for number in range(12)]
        wanted = VideoFilter(missing_fingerprint="encoder-2")
        page = store.page(NAMESPACE, wanted, limit=9)
        assert page.data == [] and page.has_more and sum(read) == 6 and page.last_id == sorted(ids, reverse=True)[5]
        found, num_pages = [], 1
        while page.has_more:
            page = store.page(NAMESPACE, wanted, limit=9, after_id=page.last_id)
            found += [video.id for video in page.data]
            num_pages += 1
        assert found == [without] and num_pages > 2

        def refuse() -> None:
            raise Overloaded

        with pytest.raises(Overloaded):
            store.page(NAMESPACE, wanted, limit=9, check=refuse)
        keep(store, "without", fingerprint="encoder-2")
        read.clear()
        assert store.page(NAMESPACE, wanted, limit=9) == KeptVideoPage([], has_more=False, last_id=None)
        assert read == []  # all have them

"""Thumbnails of kept videos: made on request only, removed with their video, their files never in the way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from fastapi.testclient import TestClient
from PIL import Image

from support.kept_videos import FINGERPRINT, NAMESPACE, kept_store, new_video, segments_of, vectors_of
from support.serving import assert_problem, classify, colour_video, serving
from vidlex.service.errors import ByteQuotaExceeded, KeptVideoDamaged, NotFound
from vidlex.service.videos import upkeep
from vidlex.service.videos.records import NewThumbnail
from vidlex.service.videos.store import KeptVideoStore, VideoLimits


def keep(store: KeptVideoStore, name: str, *jpegs: bytes, **fields: Any) -> str:
    thumbnails = [NewThumbnail(i, i + 1, i, jpeg=jpeg) for i, jpeg in enumerate(jpegs)]
    new = new_video(name, **fields)
    return store.keep(new, FINGERPRINT, segments_of(3), vectors_of(name), thumbnails=thumbnails).id


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpegs"))


def test_they_are_kept_replaced_and_removed_with_the_video(
    store: KeptVideoStore, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RETIRED_SECONDS", -60.0)
    without = store.keep(new_video("x"), FINGERPRINT, segments_of(3), vectors_of("x"))
    video_id = keep(store, "a", b"first", b"second")
    reader = kept_store(client, tmp_path)
    assert [reader.thumbnail(NAMESPACE, video_id, number) for number in (0, 1)] == [b"first", b"second"]
    assert [kept.at_ms for kept in reader.get(NAMESPACE, video_id).thumbnails] == [0, 1]
    for number in (-1, 2):
        with pytest.raises(NotFound):
            reader.thumbnail(NAMESPACE, video_id, number)
    with pytest.raises(NotFound):
        reader.thumbnail(NAMESPACE, without.id, 0)
    with pytest.raises(NotFound):
        reader.thumbnail("theirs", video_id, 0)
    size = len(b"firstsecond")
    assert reader.get(NAMESPACE, video_id).num_bytes >= without.num_bytes + size

    (path,) = pictures(tmp_path)
    assert store.sweep().removed_files == 0
    same = store.keep(new_video("a"), FINGERPRINT, segments_of(3), vectors_of("a"))  # without: the old ones stay
    assert len(same.thumbnails) == 2
    assert pictures(tmp_path) == [path]
    keep(store, "a", b"third")
    assert reader.thumbnail(NAMESPACE, video_id, 0) == b"third"
    assert store.sweep().removed_files == 1
    assert len(pictures(tmp_path)) == 1
    keep(store, "a")  # none this time
    assert reader.get(NAMESPACE, video_id).thumbnails == ()
    keep(store, "a", b"fourth")
    store.remove(NAMESPACE, video_id)
    store.sweep()
    assert pictures(tmp_path) == []
    assert store.usage(NAMESPACE) == (1, without.num_bytes)


def test_a_file_that_no_record_names_goes(client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between the file and the record; over the quota none is written."""
    store = kept_store(client, tmp_path)
    keep(store, "a", b"a")

    def fail(*_: object) -> None:
        raise RuntimeError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr(store._space(NAMESPACE).steps, "run", fail)
        with pytest.raises(RuntimeError):
            keep(store, "b", b"b")
    assert len(pictures(tmp_path)) == 2
    assert store.sweep().removed_files == 0  # the process may be alive
    monkeypatch.setattr(upkeep, "RETIRED_SECONDS", -60.0)
    assert store.sweep().removed_files == 1
    full = kept_store(client, tmp_path, VideoLimits(store.usage(NAMESPACE)[1] + 1000, None))
    with pytest.raises(ByteQuotaExceeded):
        keep(full, "a", 1001 * b"x")
    assert len(pictures(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_damaged_pictures_leave_the_video_as_it_is(store: KeptVideoStore, tmp_path: Path, damage: str) -> None:
    video_id = keep(store, "a", b"picture")
    (path,) = pictures(tmp_path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"pictur" if damage == "short" else b"picturE")
    with pytest.raises(KeptVideoDamaged):
        store.thumbnail(NAMESPACE, video_id, 0)
    assert store.features(NAMESPACE, video_id, FINGERPRINT) is not None
    assert len(store.get(NAMESPACE, video_id).thumbnails) == 1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("service")) as client:
        yield client


def test_a_picture_of_each_stretch(service: TestClient, tmp_path: Path) -> None:
    video = colour_video(tmp_path / "v.mp4", "red", "green", "blue")
    asked = {"aggregate_by": "segments", "segment_ms": 1000, "candidate_labels": ["red", "blue"]}
    answer = classify(service, video, **asked, keep=True, thumbnails=True).json()
    expected = sorted(
        (stretch["start_ms"], stretch["end_ms"], stretch["peak_ms"])
        for label in answer["labels"]
        for stretch in label["stretches"]
    )
    assert len(expected) == 2
    found = service.get(f"/videos/{answer['video_id']}").json()["thumbnails"]
    assert [(one["start_ms"], one["end_ms"], one["at_ms"]) for one in found] == expected
    for one, colour in zip(found, (0, 2), strict=True):
        picture = service.get(one["url"])
        assert picture.headers["content-type"] == "image/jpeg"
        pixels = np.asarray(Image.open(io.BytesIO(picture.content)))
        assert pixels.shape == (115, 192, 3)  # of 160 x 96, without bars
        assert pixels.mean(axis=(0, 1)).argmax() == colour
        assert pixels.min(axis=(0, 1))[colour] > 150  # no bars
    assert_problem(service.get(f"/videos/{answer['video_id']}/thumbnails/2"), 404, "not_found")
    assert_problem(service.get("/videos/vid_x/thumbnails/0"), 404, "not_found")

    plain = classify(service, video, **asked, keep=True, num_frames=2).json()
    assert service.get(f"/videos/{plain['video_id']}").json()["thumbnails"] == []
    assert_problem(classify(service, video, thumbnails=True), 422, "invalid_parameter")

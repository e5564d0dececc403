"""Outputs of the frozen tower on disk: shared by runs, completed after an interruption, and what is not kept there."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from support.clips import write_dataset
from support.manifest_source import opened
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.sources.decode_pool import BrokenVideo, DecodePool
from vidlex.model.sources.reading import View
from vidlex.model.sources.trunk_cache import ContentDigests
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import Trunk


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("clips"), num_train=14, num_validation=8)


def refuse(*arguments: Any, **named: Any) -> None:
    raise AssertionError("nothing should be decoded")


def test_cache_holds_the_outputs_of_the_tower_and_later_runs_do_not_decode(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    with opened(dataset, tmp_path, num_cached_views=2, cache_folder=folder) as source:
        written = len(list(folder.rglob("*.npy")))
        assert written == 14 * 2 + 8
        assert source.cached is not None
        cache = source.cached.cache
        size = np.load(next(folder.rglob("*.npy"))).nbytes
        assert size == cache.num_bytes == 2 * 3 * (12 + 5 * 16)
        steps = [source.draw(step) for step in range(3)]
        rows = [source.order.at(place) for place in range(6)]
        for row, features, tokens in zip(rows, *cast(Trunk, steps[0].frames), strict=True):
            video = source.training.path(row)
            plain = decode_frames(video, geometry=FrameGeometry(16), num_frames=3).frames
            trunk = cache.compute(torch.from_numpy(plain)[None].permute(0, 1, 4, 2, 3))
            if (tokens - trunk.tokens[0]).abs().max() < 1e-2:
                assert (features - trunk.frame_features[0]).abs().max() < 1e-2
            else:  # the augmented view
                augmented = cache._file(source.cached.key(View(source.training, row, 1)))
                assert np.array_equal(np.load(augmented)[36:], tokens.flatten().numpy())
        validation = [*source.validation_videos(99)]
        assert all(isinstance(chunk.frames, Trunk) for chunk in validation)
    text = capsys.readouterr().err.replace("\n", "")
    assert f"{36 * size / 1e9:.3g} GB (36 of {size / 1e6:.3g} MB)" in text
    assert text.index("outputs of the frozen tower on disk") < text.index("frozen tower: 36 of 36")

    monkeypatch.setattr(DecodePool, "read", refuse)
    moved = shutil.copytree(dataset.parent, tmp_path / "moved") / "manifest.jsonl"
    with opened(moved, tmp_path / "other", num_cached_views=2, cache_folder=folder) as source:
        for step in (2, 0):
            again = source.draw(step).frames
            assert all(torch.equal(a, b) for a, b in zip(again, steps[step].frames, strict=True))
    with (
        pytest.raises(AssertionError, match="nothing should be decoded"),
        opened(moved, tmp_path / "other", num_cached_views=2, cache_folder=folder, num_frames=2),
    ):
        pass


def test_interrupted_cache_is_completed_with_the_same_values(dataset: Path, tmp_path: Path) -> None:
    for out in ("whole", "partial"):
        with opened(dataset, tmp_path / out, num_cached_views=1):
            pass
    files = sorted((tmp_path / "partial").rglob("*.npy"))
    for file in files[::3]:
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in files[1::3]}
    with opened(dataset, tmp_path / "partial", num_cached_views=1):
        pass
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    for file in files:
        other = tmp_path / "whole" / file.relative_to(tmp_path / "partial")
        assert file.read_bytes() == other.read_bytes()


def test_cache_that_does_not_fit_is_refused_before_it_is_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with (
        pytest.raises(ValueError, match=r"need 1\.21e-05 GB .* has 1e-06 GB: lower num_cached_views"),
        opened(dataset, tmp_path, num_cached_views=1),
    ):
        pass
    with (
        pytest.raises(ValueError, match="trains the image tower"),
        opened(dataset, tmp_path, num_cached_views=1, trains_tower=True),
    ):
        pass


def kept(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{suffix}"))


def test_only_what_depends_on_the_content_is_kept_for_other_runs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video that took too long or could not be opened is not broken for the next run."""
    data = shutil.copytree(dataset.parent, tmp_path / "data")
    (data / "000.mp4").write_bytes(b"nothing")
    read, digest = DecodePool.read, ContentDigests.of

    def slow(self: DecodePool, path: Path, *arguments: Any, **named: Any) -> None:
        if path.name == "001.mkv":
            raise BrokenVideo("decoding takes more than 60 s", was_killed=True)
        read(self, path, *arguments, **named)

    monkeypatch.setattr(DecodePool, "read", slow)
    monkeypatch.setattr(ContentDigests, "of", lambda self, path: "" if path.stem in "002 003" else digest(self, path))
    cache = tmp_path / "cache"
    with opened(data / "manifest.jsonl", tmp_path / "a", num_cached_views=1, cache_folder=cache) as source:
        videos = sum(len(chunk.targets) for chunk in source.training_videos(99))
        assert videos == 14 - 4
        listed = dict(line.split("\t") for line in (tmp_path / "a" / "broken_videos.txt").read_text().splitlines())
    reasons = {Path(path).name: reason for path, reason in listed.items()}
    assert reasons["001.mkv"] == "killed: decoding takes more than 60 s"
    assert reasons["002.webm"] == reasons["003.mov"] == "the file cannot be read"
    assert len(kept(cache, "broken")) == 1 and len(kept(cache, "npy")) == 10 + 8

    monkeypatch.undo()
    with opened(data / "manifest.jsonl", tmp_path / "b", num_cached_views=1, cache_folder=cache) as source:
        assert sum(len(chunk.targets) for chunk in source.training_videos(99)) == 13
    assert len(kept(cache, "broken")) == 1 and len(kept(cache, "npy")) == 13 + 8


def test_file_of_the_cache_that_is_cut_off_is_written_again(dataset: Path, tmp_path: Path) -> None:
    with opened(dataset, tmp_path, num_cached_views=1):
        pass
    files = kept(tmp_path, "npy")
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(b"")
    files[1].write_bytes(contents[1][:-2])
    with opened(dataset, tmp_path, num_cached_views=1):
        pass
    assert [file.read_bytes() for file in files] == contents


def test_disk_that_is_full_is_reported_with_the_file(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_bytes(self: Path, content: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_bytes)
        with (
            pytest.raises(ValueError, match=r"\.npy cannot be written: No space left on device"),
            opened(dataset, tmp_path, num_cached_views=1),
        ):
            pass
    assert not list(tmp_path.rglob("*.partial")) and not kept(tmp_path, "npy")
    with opened(dataset, tmp_path, num_cached_views=1):
        assert len(kept(tmp_path, "npy")) == 14 + 8

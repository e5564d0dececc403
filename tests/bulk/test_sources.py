"""What SRC arguments name: files, folders, patterns, lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.paths import ROOT
from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.service.bulk.lists import SourceError
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import Sources, local_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "notes.txt", "c/d.webm", "c/e.mov", ".hidden.mp4", ".git/f.mp4", "c/.x/g.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "videos"


def names(sources: Sources, folder: Path) -> list[str]:
    return [os.path.relpath(source.uri, folder) for source in sources]


def test_a_folder_is_read_recursively_in_order_without_hidden_files(folder: Path) -> None:
    sources = Sources([str(folder)])
    assert names(sources, folder) == ["a.MKV", "b.mp4", "c/d.webm", "c/e.mov"] == names(sources, folder)
    assert sources.count() == 4
    assert all(Path(source.uri).is_absolute() for source in sources)


def test_links_to_files_are_followed_and_links_to_folders_are_not(folder: Path) -> None:
    (folder / "z.mp4").symlink_to(folder / "b.mp4")
    (folder / "c" / "loop").symlink_to(folder)
    (folder / "c" / "own.mp4").symlink_to("own.mp4")
    assert names(Sources([str(folder)]), folder)[-1] == "z.mp4"
    assert len(list(Sources([str(folder)]))) == 6
    (folder.parent / "link").symlink_to(folder)
    assert len(list(Sources([str(folder.parent / "link")]))) == 6


def test_the_arguments_keep_their_order(folder: Path) -> None:
    sources = Sources([str(folder / "c"), str(folder / "b.mp4"), f"file://{folder}/a.MKV"])
    assert names(sources, folder) == ["c/d.webm", "c/e.mov", "b.mp4", "a.MKV"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["a.MKV", "b.mp4"]),
        ("*.mp4", ["b.mp4"]),
        ("**/*", ["a.MKV", "b.mp4", "c/d.webm", "c/e.mov"]),
        ("c/*.mov", ["c/e.mov"]),
        ("*.txt", ["notes.txt"]),
    ],
)
def test_patterns(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(Sources([f"{folder}/{pattern}"]), folder) == found


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    (folder / "[1].mp4").write_bytes(b"x")
    assert names(Sources([str(folder / "[1].mp4")]), folder) == ["[1].mp4"]


def test_a_name_that_is_not_text_becomes_a_uri(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.mp4"
    Path(os.fsdecode(path)).write_bytes(b"x")
    (source,) = Sources([str(tmp_path)])
    assert source.uri == f"file://{tmp_path}/%FF.mp4"
    found = local_path(source.uri)
    assert found is not None and found.read_bytes() == b"x"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("nothing.mp4", "no such file"),
        ("*.nothing", "no video matches"),
        ("empty", "no videos in this folder"),
        ("empty.txt", "no videos in this list"),
        ("ftp://host/a.mp4", "ftp:// is not read"),
        ("https://host::file:///etc/passwd", None),
    ],
)
def test_what_matches_nothing_is_an_error(tmp_path: Path, argument: str, problem: str | None) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(SourceError, match=problem):
        Sources([argument if "://" in argument else str(tmp_path / argument)])


def test_a_manifest_of_data_build_names_its_videos(tmp_path: Path) -> None:
    write_manifest(
        tmp_path / "manifest.jsonl",
        [Entry("videos/a.mp4", ("dog",), native_id="4Zx", split="train"), Entry("../b.mp4", (), start_ms=5)],
    )
    first, second = Sources([str(tmp_path / "manifest.jsonl")])
    assert first == VideoSource(
        f"{tmp_path}/videos/a.mp4",
        "4Zx",
        {"positives": '["dog"]', "negatives": "[]", "closed": "false", "split": "train"},
    )
    assert (second.uri, second.client_id) == (f"{tmp_path.parent}/b.mp4", None)


def test_the_room_imports_no_torch_and_no_numpy() -> None:
    import subprocess
    import sys

    modules = [
        f"vidlex.service.bulk.{path.stem}"
        for path in sorted((ROOT / "service/bulk").glob("*.py"))
        if path.stem != "__init__"
    ]
    code = f"import sys, {', '.join(modules)}\nprint(*{{'torch', 'numpy', 'pyarrow', 'fsspec'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

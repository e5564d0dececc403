"""The folder of jobs' files: what is durable, what is shared, what is removed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from support.job_stores import job_store
from support.processes import until
from vidlex.service.errors import NotFound, Overloaded, ShareExceeded, StorageFull
from vidlex.service.jobs.files import JobFiles
from vidlex.service.jobs.records import Job, JobInput, NewJob


def opened(root: Path, max_bytes: int = 1 << 20) -> JobFiles:
    files = JobFiles(root, max_bytes)
    files.open()
    return files


def upload(folder: Path, data: bytes = b"video") -> Path:
    path = folder / f"upload-{time.monotonic_ns()}"
    path.write_bytes(data)
    return path


def adopt(files: JobFiles, folder: Path, data: bytes = b"video", client: str = "ada") -> JobInput:
    return files.adopt(upload(folder, data), client=client, sha256="00", num_bytes=len(data))


def job_of(job_input: JobInput | None, client: str = "ada", name: str = "job_1") -> Job:
    return Job(
        id=name,
        kind="batch",
        namespace="default",
        client=client,
        input=job_input,
        state="running",
        created_at_ms=0,
        queue_until_ms=0,
    )


def everything(names: Sequence[str]) -> Collection[str]:
    return names


def nothing(names: Sequence[str]) -> Collection[str]:
    return ()


def test_an_upload_is_moved_and_found_by_processes_that_share_the_folder(tmp_path: Path) -> None:
    files, other = opened(tmp_path / "jobs"), opened(tmp_path / "jobs")
    assert files.place == other.place
    path = upload(tmp_path)
    job_input = files.adopt(path, client="ada", sha256="ab", num_bytes=5)
    assert not path.exists()
    assert (job_input.kind, job_input.place, job_input.sha256, job_input.num_bytes) == ("upload", files.place, "ab", 5)
    assert other.path(job_input).read_bytes() == b"video"
    elsewhere = opened(tmp_path / "elsewhere")
    assert elsewhere.place != files.place
    with pytest.raises(NotFound):
        elsewhere.path(job_input)
    other.remove(job_input)
    with pytest.raises(NotFound):
        files.path(job_input)
    files.remove(job_input)


def test_an_upload_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it gets its name, and its folder after."""
    files = opened(tmp_path / "jobs")
    synced: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    path = upload(tmp_path)
    job_input = files.adopt(path, client="ada", sha256="ab", num_bytes=5)
    owner = job_input.ref.partition("/")[0]
    assert synced == [path.name, "inputs", owner]


def test_a_name_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    files = opened(tmp_path / "jobs")
    for ref in ("../place", f"{'a' * 16}/../../place", "/etc/passwd", f"{'a' * 16}/{'b' * 31}", ""):
        with pytest.raises(NotFound):
            files.path(JobInput("upload", ref, files.place))


def test_a_client_holds_half_and_the_rest_is_for_others(tmp_path: Path) -> None:
    files = opened(tmp_path / "jobs", max_bytes=1000)
    first = adopt(files, tmp_path, b"x" * 300)
    adopt(files, tmp_path, b"x" * 200)
    with pytest.raises(ShareExceeded) as refused:
        adopt(files, tmp_path, b"x" * 300)
    assert refused.value.extra == {"limit": "job_bytes"}
    adopt(files, tmp_path, b"x" * 250, client="bob")
    with pytest.raises(Overloaded):
        adopt(files, tmp_path, b"x" * 300, client="eve")
    assert files.num_bytes == 750
    files.remove(first)
    adopt(files, tmp_path, b"x" * 300, client="eve")
    assert files.num_bytes == 750
    other = opened(tmp_path / "jobs", max_bytes=1000)
    assert other.num_bytes == 750, "counted by a process that starts"
    for path in (tmp_path / "jobs" / "inputs").rglob("*"):
        if path.is_file() and path.stat().st_size == 200:
            path.unlink()  # by another process
    files.sweep(everything, everything)
    assert files.num_bytes == 550


def test_a_full_disk_is_reported_and_takes_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = opened(tmp_path / "jobs")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        adopt(files, tmp_path)
    assert files.num_bytes == 0


def test_an_upload_on_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = opened(tmp_path / "jobs")
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    path = upload(tmp_path, b"x" * 3_000_000)
    job_input = files.adopt(path, client="ada", sha256="ab", num_bytes=5)
    assert files.path(job_input).read_bytes() == b"x" * 3_000_000 and not path.exists()
    assert [p.name for p in files.path(job_input).parent.iterdir()] == [job_input.ref.partition("/")[2]]


def test_files_without_a_job_are_removed_after_a_while(tmp_path: Path) -> None:
    files = opened(tmp_path / "jobs")
    kept, orphan = adopt(files, tmp_path), adopt(files, tmp_path, client="bob")
    live, gone = job_of(kept, name="job_live"), job_of(None, name="job_gone")
    for job in (live, gone):
        (files.output_folder(job) / "a.output.jsonl").write_bytes(b"{}\n")
    assert files.sweep(nothing, nothing) == 0, "they are new: their job may be about to be stored"

    def in_use(refs: Sequence[str]) -> Collection[str]:
        assert sorted(refs) == sorted([kept.ref, orphan.ref])
        return [kept.ref]

    def existing(ids: Sequence[str]) -> Collection[str]:
        assert sorted(ids) == ["job_gone", "job_live"]
        return ["job_live"]

    assert files.sweep(in_use, existing, orphan_seconds=-1.0) == 2
    assert files.path(kept).is_file() and files.find_output_folder(live).is_dir()
    with pytest.raises(NotFound):
        files.path(orphan)
    with pytest.raises(NotFound):
        files.find_output_folder(gone)
    assert files.num_bytes == len(b"video") + 3
    again = adopt(files, tmp_path, client="bob")
    assert files.path(again).is_file(), "the empty folder was removed, and is made again"


def test_the_store_knows_which_uploads_a_job_has(tmp_path: Path, client: redis.Redis) -> None:
    """From its submission to its removal, also while it is finished and may be tried again."""
    files, jobs = opened(tmp_path / "jobs"), job_store(client)
    job_input = adopt(files, tmp_path)

    def num_removed() -> int:
        return files.sweep(jobs.inputs_in_use, jobs.existing, orphan_seconds=-1.0)

    job, _ = jobs.submit(NewJob(kind="classify", namespace="default", client="ada", input=job_input, keep_seconds=0.2))
    files.output_folder(job)
    assert num_removed() == 0
    jobs.cancel("default", job.id)
    assert num_removed() == 0 and files.path(job_input).is_file()
    until(lambda: [removed.id for removed in jobs.sweep()] == [job.id])
    assert num_removed() == 2, "its process was killed before it removed them"
    with pytest.raises(NotFound):
        files.path(job_input)


def test_the_files_of_a_job_are_removed_with_it(tmp_path: Path) -> None:
    files = opened(tmp_path / "jobs")
    job = job_of(adopt(files, tmp_path))
    (files.output_folder(job) / "a.output.jsonl").write_bytes(b"{}\n")
    assert job.input is not None
    files.remove_files_of(job)
    with pytest.raises(NotFound):
        files.path(job.input)
    with pytest.raises(NotFound):
        files.find_output_folder(job)
    assert files.num_bytes == 0


def test_a_damaged_place_is_not_replaced(tmp_path: Path) -> None:
    files = opened(tmp_path / "jobs")
    (tmp_path / "jobs" / "place").write_text("not a place")
    with pytest.raises(OSError, match="damaged"):
        opened(tmp_path / "jobs")
    assert files.place

"""Batches through the whole service: manifests with all kinds of lines, interrupted runs, the files that come out."""

from __future__ import annotations

import errno
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from support.held_files import HeldFiles, held_files
from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, classify, colour_video, serving, wait_until
from vidlex.service.errors import InvalidParameter, NotFound, StorageFull, StoreUnavailable
from vidlex.service.jobs.batch import handler, manifest
from vidlex.service.jobs.batch.outputs import KINDS, BatchOutputs, published_file
from vidlex.service.jobs.classify import JobVideos


@dataclass(frozen=True)
class Served:
    client: Any
    files: HeldFiles
    video: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("files")
    video = colour_video(folder / "red.mp4", "red", frames_each=4)
    colour_video(folder / "blue.mp4", "blue", frames_each=4)
    (folder / "text.mp4").write_text("no video")
    urls: dict[str, Any] = {"fetch_hosts": ("127.0.0.1",), "private_networks": ("127.0.0.0/8",)}
    with (
        held_files(folder) as files,
        serving(tmp_path_factory.mktemp("data"), decode_workers=2, job_lease_seconds=2.0, **urls) as client,
    ):
        add(client, "red", "blue")
        yield Served(client, files, video)


def submit(client: Any, lines: bytes, **options: Any) -> str:
    fields = {"params": json.dumps({"kind": "batch", **options})}
    answer = client.post("/jobs", files={"file": ("batch.jsonl", lines, "application/jsonl")}, data=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def finished(client: Any, job_id: str) -> dict[str, Any]:
    states = ("succeeded", "failed", "cancelled", "expired")
    wait_until(lambda: client.get(f"/jobs/{job_id}").json()["state"] in states, "the batch does not end")
    job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
    return job


def lines_of(client: Any, job_id: str, kind: str) -> list[dict[str, Any]]:
    answer = client.get(f"/jobs/{job_id}/{kind}")
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(b"\n") or not answer.content
    return [json.loads(line) for line in answer.content.splitlines()]


def as_lines(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_each_line_is_answered_once(served: Served) -> None:
    client, url = served.client, served.files.url
    good = as_lines(
        {"custom_id": "red", "url": f"{url}/red.mp4", "metadata": {"n": [1, "ä"]}},
        {"custom_id": "blue", "uri": f"{url}/blue.mp4", "params": {"top_k": 1}},
    )
    bad = as_lines(
        {"custom_id": "red", "url": f"{url}/red.mp4"},
        {"custom_id": "none"},
        {"custom_id": "both", "url": f"{url}/red.mp4", "uri": f"{url}/red.mp4"},
        {"custom_id": "odd", "url": f"{url}/red.mp4", "frames": 3},
        {"custom_id": "elsewhere", "url": "https://other.example/red.mp4"},
        {"custom_id": "file", "url": "file:///etc/passwd"},
        {"custom_id": "bucket", "url": "s3://secret/red.mp4"},
        {"custom_id": "gone", "url": f"{url}/gone.mp4"},
        {"custom_id": "text", "url": f"{url}/text.mp4"},
        {"custom_id": "deep", "url": f"{url}/red.mp4", "metadata": {"x": "y" * 20_000}},
    )
    job_id = submit(client, b"\xef\xbb\xbf" + good + b"\n\nnot json\n" + bad.rstrip(b"\n"), metadata={"of": "me"})
    job = finished(client, job_id)
    assert job["state"] == "succeeded" and job["metadata"] == {"of": "me"}
    result = client.get(f"/jobs/{job_id}/result").json()
    assert result["request_counts"] == {"total": 13, "completed": 2, "failed": 11}
    output, errors = (lines_of(client, job_id, kind) for kind in ("output", "errors"))
    assert (result["output"]["lines"], result["errors"]["lines"]) == (2, 11)
    assert sorted(line["line"] for line in (*output, *errors)) == list(range(1, 14))

    by_id = {line["custom_id"]: line for line in output}
    assert by_id["red"]["metadata"] == {"n": [1, "ä"]}
    alone = classify(client, served.video).json()
    assert by_id["red"]["result"]["labels"] == alone["labels"]
    assert by_id["red"]["result"]["receipt"] == alone["receipt"]
    assert [label["name"] for label in by_id["blue"]["result"]["labels"]] == ["blue"]

    codes = {line["line"]: line["error"]["code"] for line in errors}
    names = ["invalid_parameter"] * 4 + ["url_refused"] * 3 + ["fetch_failed", "unsupported_media", "invalid_parameter"]
    assert codes == {3: "malformed", **dict(enumerate(names, 4))}
    assert "Line 1" in next(line["error"]["detail"] for line in errors if line["line"] == 4)


def test_a_manifest_may_come_from_a_url(served: Served) -> None:
    client, files = served.client, served.files
    path = files.folder / "list.jsonl"
    path.write_bytes(as_lines({"custom_id": "red", "url": f"{files.url}/red.mp4"}))
    body = {"kind": "batch", "input": {"url": f"{files.url}/list.jsonl"}, "params": {"top_k": 1}}
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    assert finished(client, job_id)["state"] == "succeeded"
    assert [line["custom_id"] for line in lines_of(client, job_id, "output")] == ["red"]
    assert lines_of(client, job_id, "errors") == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"\n \n", "has no lines"), (b'{"custom_id":"a"}\n' * 4, "more than 3 lines"), (b"x" * 99, "more than 90 bytes")],
)
def test_a_manifest_out_of_bounds_fails_the_job(
    served: Served, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    monkeypatch.setattr(manifest, "MAX_LINES", 3)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 90)
    job = finished(served.client, submit(served.client, content))
    assert job["state"] == "failed" and job["attempts"] == 1
    assert job["error"]["code"] == "invalid_parameter" and problem in job["error"]["detail"]


def test_a_line_that_is_too_long_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_LINE_BYTES", 100)
    path = tmp_path / "list.jsonl"
    short = as_lines({"custom_id": "a", "url": "https://x.example/1"}, {"custom_id": "b", "url": "https://x.example/2"})
    first, second = short.splitlines(keepends=True)
    for num_bytes in (101, 102, 205, 100_000):
        path.write_bytes(first + b"[" * num_bytes + b"\n" + second + b"[" * num_bytes)
        assert manifest.count_lines(path) == 4
        lines = list(manifest.read_manifest(path))
        assert [line.number for line in lines] == [1, 2, 3, 4]
        assert [line.line.custom_id if line.line else None for line in lines] == ["a", None, "b", None]


def test_what_was_done_before_an_interruption_is_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt does only the rest, and every line is there once."""
    client, files = served.client, served.files
    slow = files.hold("red.mp4")
    for n in range(6):
        (files.folder / f"blue-{n}.mp4").write_bytes((files.folder / "blue.mp4").read_bytes())
    lines = [{"custom_id": str(n), "url": f"{files.url}/blue-{n}.mp4"} for n in range(6)]
    is_first = threading.Event()
    run = handler._Run._check

    def fails_once(self: Any) -> None:
        if not is_first.is_set() and len(self._outputs.done) >= 6:
            is_first.set()
            raise RuntimeError("as if the process had crashed")
        run(self)

    monkeypatch.setattr(handler._Run, "_check", fails_once)
    job_id = submit(client, as_lines(*lines, {"custom_id": "slow", "url": slow}))
    assert is_first.wait(PATIENCE_SECONDS)
    files.let(slow)
    job = finished(client, job_id)
    assert (job["state"], job["attempts"]) == ("succeeded", 2)
    output = lines_of(client, job_id, "output")
    assert Counter(line["custom_id"] for line in output) == Counter([*map(str, range(6)), "slow"])
    asked = Counter(path for path in files.asked if path.startswith("/blue-"))
    assert set(asked.values()) == {1}, "none was classified again"


def test_a_fault_of_the_service_fails_one_line_after_three_tries(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "_RETRY_SECONDS", 0.01)
    classify_video, num_calls = JobVideos.classify, Counter[int]()

    def faulty(self: JobVideos, file: Any, params: Any, *others: Any) -> dict[str, Any]:
        num_calls[params.top_k] += 1
        if params.top_k == 7 or (params.top_k == 8 and num_calls[8] < 3):
            raise RuntimeError("/secret/path")
        return classify_video(self, file, params, *others)

    monkeypatch.setattr(JobVideos, "classify", faulty)
    url = f"{served.files.url}/red.mp4"
    lines = [{"custom_id": str(n), "url": url, "params": {"top_k": n}} for n in (7, 8, 9)]
    job_id = submit(served.client, as_lines(*lines))
    assert finished(served.client, job_id)["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (error,) = lines_of(served.client, job_id, "errors")
    assert error["custom_id"] == "7" and error["error"]["code"] == "internal_error"
    assert "secret" not in error["error"]["detail"]
    assert num_calls == {7: 3, 8: 3, 9: 1}


def test_a_cancelled_batch_ends_and_has_what_was_done(served: Served) -> None:
    client, files = served.client, served.files
    slow = files.hold("red.mp4")
    lines = [{"custom_id": "done", "url": f"{files.url}/blue.mp4"}, {"custom_id": "slow", "url": slow}]
    job_id = submit(client, as_lines(*lines))
    wait_until(lambda: (client.get(f"/jobs/{job_id}").json()["progress"] or {}).get("done") == 1, "no progress")
    job = client.get(f"/jobs/{job_id}").json()
    assert job["request_counts"] == {"total": 2, "completed": 1, "failed": 0}
    assert_problem(client.get(f"/jobs/{job_id}/output"), 409, "job_conflict")
    assert client.delete(f"/jobs/{job_id}").status_code == 202
    assert finished(client, job_id)["state"] == "cancelled"
    files.let(slow)
    assert [line["custom_id"] for line in lines_of(client, job_id, "output")] == ["done"]


# -- the files


def outputs_of(folder: Path, started_at_ms: int) -> BatchOutputs:
    return BatchOutputs(folder, lambda num_bytes: None, started_at_ms=started_at_ms)


def test_torn_and_repeated_lines_of_earlier_runs_are_left_out(tmp_path: Path) -> None:
    whole = [json.dumps({"line": n, "result": n}).encode() + b"\n" for n in range(1, 5)]
    (tmp_path / "aa.output.jsonl").write_bytes(whole[0] + whole[1] + whole[2][:-4])
    (tmp_path / "bb.output.jsonl").write_bytes(whole[1] + whole[3] + b"\0\0\0\n" + whole[2])
    (tmp_path / "bb.errors.jsonl").write_bytes(b'{"line":5,"error":{}}\n' + whole[0][:5])
    taken: list[int] = []
    with BatchOutputs(tmp_path, taken.append, started_at_ms=1) as outputs:
        assert outputs.done == {1, 2, 4, 5} and outputs.num_failed == 1
        for number in (1, 3, 3):
            outputs.write("output", number, {"result": number})
        files = outputs.finish()
    assert len(taken) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files.values())
    content = (tmp_path / files["output"].name).read_bytes()
    assert [json.loads(line)["line"] for line in content.splitlines()] == [1, 2, 4, 3]
    assert (files["output"].num_lines, files["output"].num_bytes) == (4, len(content))
    assert files["errors"].num_lines == 1


def test_a_run_that_goes_on_without_its_lease_changes_nothing(tmp_path: Path) -> None:
    with outputs_of(tmp_path, 1) as lost:
        lost.write("output", 1, {"by": "lost"})
        with outputs_of(tmp_path, 2) as held:
            lost.write("output", 2, {"by": "lost"})
            held.write("output", 2, {"by": "held"})
            lost.write("output", 3, {"by": "lost"})
            files = held.finish()
            with pytest.raises(StoreUnavailable):
                lost.finish()
    lines = [json.loads(line) for line in (tmp_path / files["output"].name).read_bytes().splitlines()]
    assert lines == [{"line": 1, "by": "lost"}, {"line": 2, "by": "held"}]


def test_a_run_that_begins_without_its_lease_leaves_the_files_of_the_next_one(tmp_path: Path) -> None:
    """It was halted between taking the job and looking for the files of earlier runs."""
    with outputs_of(tmp_path, 2) as held:
        held.write("output", 1, {"by": "held"})
        with outputs_of(tmp_path, 1) as lost:
            assert lost.done == set()
            lost.write("output", 1, {"by": "lost"})
            lost.finish()
            held.write("errors", 2, {"by": "held"})
        files = held.finish()
    for kind, number in zip(KINDS, (1, 2), strict=True):
        result = json.dumps({kind: {"name": files[kind].name}}).encode()
        for published in (published_file(tmp_path, kind, result), published_file(tmp_path, kind, None)):
            assert json.loads(published.read_bytes()) == {"line": number, "by": "held"}
    with outputs_of(tmp_path, 3) as outputs:
        assert outputs.done == {1, 2}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_batch_does_not_succeed_without_its_files(tmp_path: Path) -> None:
    with outputs_of(tmp_path, 1) as outputs:
        outputs.write("output", 1, {})
        path = next(tmp_path.glob("*.output.jsonl"))
        path.unlink()
        with pytest.raises(StoreUnavailable):
            outputs.finish()
        path.write_bytes(b"")
        with pytest.raises(StoreUnavailable):
            outputs.finish()


def test_the_files_of_a_batch_without_a_result_are_those_of_its_last_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        published_file(tmp_path, "output", None)
    with outputs_of(tmp_path, 1) as outputs:
        outputs.write("output", 1, {"text": "x" * 200_000})
        outputs.finish()
    path = published_file(tmp_path, "output", None)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"line":2,' + b"y" * 100_000)
    assert published_file(tmp_path, "output", None).read_bytes() == whole
    path.write_bytes(b'{"line":2,' + b"y" * 100_000)
    assert published_file(tmp_path, "output", None).read_bytes() == b""


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

    with outputs_of(tmp_path, 1) as outputs:
        outputs.write("output", 1, {})
        usual = outputs._files["output"]
        outputs._files["output"] = FullFile(usual.name, "a")
        with pytest.raises(StorageFull):
            outputs.write("output", 2, {})
        outputs._files["output"].close()
        outputs._files["output"] = usual
        outputs.write("output", 3, {})
        name = outputs.finish()["output"].name
    assert [json.loads(line)["line"] for line in (tmp_path / name).read_bytes().splitlines()] == [1, 3]


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(b"")
    with pytest.raises(InvalidParameter):
        manifest.count_lines(tmp_path / "list.jsonl")

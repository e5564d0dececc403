"""`vidlex jobs` with a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_service
from support.serving import colour_video
from vidlex.service.cli import app
from vidlex.service.commands.output import EXIT_FAILED, EXIT_USAGE

runner = CliRunner()


@dataclass(frozen=True)
class Service:
    url: str
    files: HeldFiles

    def vidlex(self, *arguments: str | Path, code: int = 0) -> Result:
        environment = {"VIDLEX_URL": self.url, "COLUMNS": "200"}
        result = runner.invoke(app, ["jobs", *map(str, arguments)], env=environment)
        assert result.exit_code == code, result.output
        return result


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("jobs")
    colour_video(folder / "red.mp4", "red")
    (folder / "text.mp4").write_text("no video\n" * 50)
    environment = {"VIDLEX_JOB_WORKERS": "1", **ENVIRONMENT}
    with held_files(folder) as files, live_service(folder / "data", **environment) as url:
        yield Service(url, files)


@pytest.fixture
def red(service: Service) -> Path:
    return service.files.folder / "red.mp4"


def test_a_job_is_submitted_and_waited_for(service: Service, red: Path) -> None:
    submitted = service.vidlex("submit", red, "--label", "red", "--priority", "high", "--metadata", '{"order": 17}')
    job_id = submitted.stdout.strip()
    assert job_id.startswith("job_") and submitted.stderr == ""
    waited = service.vidlex("wait", job_id)
    assert "red" in waited.stdout and "160x96" in waited.stdout
    shown = service.vidlex("show", job_id)
    assert "succeeded, attempt 1 of 3" in shown.stdout and "160x96" in shown.stdout
    (job,) = map(json.loads, service.vidlex("show", job_id, "--json").stdout.splitlines())
    assert (job["metadata"], job["priority"]) == ({"order": 17}, "high")
    assert [label["name"] for label in job["result"]["labels"]] == ["red"]
    (again,) = map(json.loads, service.vidlex("wait", job_id, "--json").stdout.splitlines())
    assert again == job


def test_addresses_and_repetitions(service: Service) -> None:
    url = f"{service.files.url}/red.mp4"
    arguments = ("submit", url, "--label", "red", "--idempotency-key", "one", "--json")
    first, second = (json.loads(service.vidlex(*arguments).stdout) for _ in range(2))
    assert first["id"] == second["id"] and first["input"]["kind"] == "url"
    (done,) = map(json.loads, service.vidlex("submit", url, "--label", "red", "--wait", "--json").stdout.splitlines())
    assert done["state"] == "succeeded"


def test_events_are_printed_as_they_come(service: Service, red: Path) -> None:
    job_id = service.vidlex("submit", red, "--label", "red").stdout.strip()
    lines = service.vidlex("events", job_id).stdout.splitlines()
    assert lines[0].endswith("state queued") and lines[-1].endswith("state succeeded")
    events = list(map(json.loads, service.vidlex("events", job_id, "--json").stdout.splitlines()))
    assert [event["data"]["state"] for event in events if event["event"] == "state"][-1] == "succeeded"
    after = service.vidlex("events", job_id, "--after", events[0]["id"], "--json").stdout.splitlines()
    assert list(map(json.loads, after)) == events[1:]


def test_a_job_that_fails_fails_the_command(service: Service, red: Path) -> None:
    bad = service.vidlex("submit", service.files.folder / "text.mp4").stdout.strip()
    good = service.vidlex("submit", red, "--label", "red").stdout.strip()
    waited = service.vidlex("wait", bad, good, code=EXIT_FAILED)
    assert "unsupported_media" in waited.stderr and "160x96" in waited.stdout
    shown = service.vidlex("submit", service.files.folder / "text.mp4", "--wait", code=EXIT_FAILED)
    assert "unsupported_media" in shown.stderr
    listed = service.vidlex("list", "--state", "failed").stdout
    assert bad in listed and "unsupported_media" in listed and good not in listed
    failed = service.vidlex("show", "job_none", code=EXIT_FAILED)
    assert "not_found" in failed.stderr


def test_jobs_are_cancelled_and_retried(service: Service, red: Path) -> None:
    url = service.files.hold("red.mp4")
    running = service.vidlex("submit", url, "--label", "red").stdout.strip()
    queued = [service.vidlex("submit", red, "--label", "red").stdout.strip() for _ in range(2)]
    late = service.vidlex("wait", running, "--timeout", "0.2", code=EXIT_FAILED)
    assert "is running after" in late.stderr or "is queued after" in late.stderr
    assert service.vidlex("cancel", *queued).stdout.splitlines() == [f"{job_id} cancelled" for job_id in queued]
    service.files.let(url)
    service.vidlex("wait", running)
    assert "job_conflict" in service.vidlex("retry", running, code=EXIT_FAILED).stderr
    service.vidlex("retry", *queued)
    service.vidlex("wait", *queued)
    ids = [json.loads(line)["id"] for line in service.vidlex("list", "--limit", "3", "--json").stdout.splitlines()]
    assert ids == [*queued[::-1], running]
    assert running not in service.vidlex("list", "--limit", "2").stdout
    assert service.vidlex("list", "--dead", "--json").stdout == ""


def test_a_batch(service: Service, tmp_path: Path) -> None:
    names = ["red.mp4", "text.mp4"]
    manifest = tmp_path / "batch.jsonl"
    lines = [json.dumps({"custom_id": name, "url": f"{service.files.url}/{name}"}) for name in names]
    manifest.write_text("\n".join(lines))
    shown = service.vidlex("submit", manifest, "--batch", "--label", "red", "--wait").stdout
    assert "1 of 2 videos, 1 failed" in shown and "/output" in shown
    job_id = json.loads(service.vidlex("list", "--kind", "batch", "--json").stdout)["id"]
    assert httpx.get(f"{service.url}/jobs/{job_id}/output", trust_env=False).status_code == 200


def test_usage(service: Service, red: Path) -> None:
    wrong = service.vidlex("submit", red, "--metadata", "[1]", code=EXIT_USAGE)
    assert "JSON object" in wrong.stderr
    refused = service.vidlex("submit", "s3://bucket/a.mp4", code=EXIT_FAILED)
    assert "url_refused" in refused.stderr
    missing = service.vidlex("submit", "missing.mp4", code=EXIT_FAILED)
    assert "missing.mp4" in missing.stderr

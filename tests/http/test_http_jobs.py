"""/jobs against a running service: submission, results, cancellation, idempotency, namespaces, URLs, batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.held_files import ENVIRONMENT, HeldFiles, held_files
from support.live import live_service
from support.processes import until
from support.serving import colour_video, serving
from vidlex.service.access.api_keys import new_key

ADMIN, ZOO, PARK, KEEPER = (new_key()[1] for _ in range(4))
FINAL = ("succeeded", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class Service:
    url: str
    jobs_dir: Path
    files: HeldFiles

    def client(self, key: str = ADMIN) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"X-API-Key": key}, timeout=120, trust_env=False)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("jobs")
    colour_video(folder / "red.mp4", "red")
    colour_video(folder / "green.mp4", "green")
    (folder / "text.mp4").write_text("no video\n" * 50)
    (folder / "keys").write_text(
        f"{ADMIN} scope=admin\n{ZOO} scope=read namespace=zoo\n{PARK} scope=read namespace=park\n"
        f"{KEEPER} scope=write namespace=zoo\n"
    )
    environment = {
        "VIDLEX_API_KEYS_FILE": str(folder / "keys"),
        "VIDLEX_RATE_LIMIT_PER_SECOND": "0",
        "VIDLEX_DECODE_WORKERS": "1",
        "VIDLEX_JOB_WORKERS": "1",
        "VIDLEX_MAX_WAITING_VIDEOS": "2",
        "VIDLEX_WEBHOOK_HOSTS": '["hooks.example"]',
        **ENVIRONMENT,
    }
    with held_files(folder) as files, live_service(folder / "data", **environment) as url:
        found = Service(url, folder / "data" / "jobs", files)
        with found.client() as client:
            for namespace in ("default", "zoo"):
                for name in ("red", "green"):
                    client.post("/labels", json={"name": name}, headers={"X-Vidlex-Namespace": namespace})
        yield found


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as found:
        yield found


@pytest.fixture
def red(service: Service) -> Path:
    return service.files.folder / "red.mp4"


def upload(client: httpx.Client, file: Path, path: str = "/jobs", **params: Any) -> httpx.Response:
    headers = params.pop("headers", {})
    return client.post(path, files={"file": file.read_bytes()}, data={"params": json.dumps(params)}, headers=headers)


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    for _ in range(10):
        answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30"})
        assert answer.headers["preference-applied"] == "wait=30"
        job: dict[str, Any] = answer.json()
        if job["state"] in FINAL:
            return job
    raise AssertionError(job)


def without_usage(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "usage"}


def test_an_upload_becomes_a_job_with_the_answer_of_classify(client: httpx.Client, red: Path) -> None:
    answer = upload(client, red, params={"top_k": 1}, metadata={"order": [17]}, priority="high")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}" and job["state"] in ("queued", "running")
    assert job["metadata"] == {"order": [17]} and job["priority"] == "high"
    assert job["input"]["bytes"] == red.stat().st_size
    done = finished(client, job["id"])
    assert (done["state"], done["attempts"], done["error"]) == ("succeeded", 1, None)
    assert done["created_at_ms"] <= done["started_at_ms"] <= done["finished_at_ms"] < done["expires_at_ms"]
    direct = client.post("/classify", files={"file": red.read_bytes()}, data={"params": '{"top_k": 1}'}).json()
    assert without_usage(done["result"]) == without_usage(direct)
    assert client.get(done["result_url"]).json() == done["result"]


def test_conditional_requests(client: httpx.Client, red: Path) -> None:
    job_id = upload(client, red).json()["id"]
    finished(client, job_id)
    answer = client.get(f"/v1/jobs/{job_id}")
    again = client.get(f"/jobs/{job_id}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head(f"/jobs/{job_id}")
    assert (head.status_code, head.headers["etag"], head.content) == (200, answer.headers["etag"], b"")


def test_classify_becomes_a_job_if_that_is_preferred(client: httpx.Client, red: Path) -> None:
    for prefer in ("respond-async", 'handling=strict, Respond-Async; x="y"'):
        answer = upload(client, red, "/v1/classify", top_k=1, headers={"Prefer": prefer})
        assert answer.status_code == 202, answer.text
        assert answer.headers["preference-applied"] == "respond-async"
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        assert len(finished(client, answer.json()["id"])["result"]["labels"]) == 1
    deadline = {"Prefer": "respond-async", "X-Vidlex-Deadline-Ms": "60000"}
    answer = upload(client, red, "/classify", headers=deadline)
    assert answer.status_code == 200 and "preference-applied" not in answer.headers


def test_a_repetition_makes_no_second_job(service: Service, client: httpx.Client, red: Path) -> None:
    key = {"Idempotency-Key": "order 18"}
    first = upload(client, red, metadata={"a": 1}, headers=key)
    assert first.status_code == 202 and "idempotency-replayed" not in first.headers
    finished(client, first.json()["id"])
    num_files = len(list(service.jobs_dir.glob("inputs/*/*")))
    second = upload(client, red, metadata={"a": 1}, headers=key)
    assert second.status_code == 200 and second.headers["idempotency-replayed"] == "true"
    assert second.json()["id"] == first.json()["id"]
    other_file = upload(client, service.files.folder / "green.mp4", metadata={"a": 1}, headers=key)
    other_body = upload(client, red, metadata={"a": 2}, headers=key)
    for answer in (other_file, other_body):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert len(list(service.jobs_dir.glob("inputs/*/*"))) <= num_files
    assert upload(client, red, headers={"Idempotency-Key": "x" * 256}).json()["code"] == "invalid_parameter"


def test_a_video_that_cannot_be_decoded_fails_with_its_code(service: Service, client: httpx.Client) -> None:
    job = finished(client, upload(client, service.files.folder / "text.mp4").json()["id"])
    assert (job["state"], job["error"]["code"], job["dead"]) == ("failed", "unsupported_media", False)
    answer = client.get(f"/jobs/{job['id']}/result")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_conflict")
    assert job["result"] is None and job["result_url"] is None
    dead = client.get("/jobs", params={"dead": "true"}).json()
    assert job["id"] not in [found["id"] for found in dead["data"]]


def test_queued_and_running_jobs_are_cancelled_and_retried(service: Service, client: httpx.Client) -> None:
    url = service.files.hold("red.mp4")
    running = client.post("/jobs", json={"input": {"url": url}}).json()["id"]
    until(lambda: client.get(f"/jobs/{running}").json()["state"] == "running")
    queued = client.post("/jobs", json={"input": {"url": f"{service.files.url}/red.mp4"}}).json()
    assert queued["state"] == "queued" and queued["input"]["url"].endswith("/red.mp4")

    answer = client.delete(f"/jobs/{queued['id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert client.post(f"/jobs/{running}:retry").json()["code"] == "job_conflict"
    answer = client.delete(f"/jobs/{running}")
    assert answer.status_code == 202 and answer.json()["cancelling"]
    service.files.let(url)
    assert finished(client, running)["state"] == "cancelled"
    assert client.delete(f"/jobs/{running}").status_code == 200

    for job_id in (running, queued["id"]):
        answer = client.post(f"/jobs/{job_id}:retry")
        assert (answer.status_code, answer.json()["attempts"]) == (202, 0)
        assert finished(client, job_id)["state"] == "succeeded"


def test_waiting_jobs_take_no_place_of_videos(service: Service, client: httpx.Client, red: Path) -> None:
    """Of which there are two."""
    url = service.files.hold("red.mp4")
    ids = [client.post("/jobs", json={"input": {"url": url}}).json()["id"]]
    ids += [upload(client, red).json()["id"] for _ in range(6)]
    assert client.post("/classify", files={"file": red.read_bytes()}).status_code == 200
    service.files.let(url)
    assert {finished(client, job_id)["state"] for job_id in ids} == {"succeeded"}


def test_jobs_of_another_namespace_do_not_exist(service: Service, red: Path) -> None:
    with service.client(ZOO) as zoo, service.client(PARK) as park:
        job_id = upload(zoo, red).json()["id"]
        finished(zoo, job_id)
        for path in ("", "/result", "/output", "/errors", "/events"):
            answer = park.get(f"/jobs/{job_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        assert park.delete(f"/jobs/{job_id}").status_code == 404
        assert park.post(f"/jobs/{job_id}:retry").status_code == 404
        assert park.get("/jobs").json()["data"] == []
        assert [job["id"] for job in zoo.get("/jobs").json()["data"]] == [job_id]
        assert park.get("/jobs", headers={"X-Vidlex-Namespace": "zoo"}).json()["code"] == "forbidden"
        # The same key of two namespaces is two keys.
        key = {"Idempotency-Key": "shared"}
        assert upload(zoo, red, headers=key).json()["id"] != upload(park, red, headers=key).json()["id"]


def test_what_a_read_key_may_do(service: Service, red: Path) -> None:
    with service.client(ZOO) as zoo:
        job_id = upload(zoo, red).json()["id"]
        assert finished(zoo, job_id)["state"] == "succeeded"
        assert zoo.delete(f"/jobs/{job_id}").status_code == 200
        for path, options in (("/jobs", {"params": {"keep": True}}), ("/classify", {"keep": True})):
            answer = upload(zoo, red, path, **options, headers={"Prefer": "respond-async"})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        with service.client(KEEPER) as keeper:
            kept = upload(keeper, red, params={"keep": True}).json()["id"]
            assert finished(zoo, kept)["state"] == "succeeded"
            for answer in (zoo.delete(f"/jobs/{kept}"), zoo.post(f"/jobs/{kept}:retry")):
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert keeper.delete(f"/jobs/{kept}").status_code == 200


def test_a_job_without_its_upload_is_not_retried(service: Service, client: httpx.Client) -> None:
    job = finished(client, upload(client, service.files.folder / "text.mp4").json()["id"])
    assert client.post(f"/jobs/{job['id']}:retry").status_code == 202
    assert finished(client, job["id"])["state"] == "failed"
    uploads = [path for path in service.jobs_dir.glob("inputs/*/*") if path.read_bytes().startswith(b"no video")]
    for path in uploads:
        path.unlink()
    answer = client.post(f"/jobs/{job['id']}:retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_conflict") and "upload" in answer.text
    assert client.get(f"/jobs/{job['id']}").json()["state"] == "failed"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://elsewhere.example/a.mp4", "url_refused"),
        ("http://10.0.0.1/a.mp4", "url_refused"),
        ("http://127.0.0.1@elsewhere.example/a.mp4", "url_refused"),
        ("file:///etc/passwd", "url_refused"),
        ("s3://bucket/key.mp4", "url_refused"),
        ("", "invalid_parameter"),
        ("https://a.example/" + "a" * 5000, "invalid_parameter"),
    ],
)
def test_urls_are_checked_when_the_job_is_submitted(client: httpx.Client, url: str, code: str) -> None:
    before = client.get("/jobs", params={"limit": 1}).json()["first_id"]
    answer = client.post("/jobs", json={"input": {"url": url}})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.get("/jobs", params={"limit": 1}).json()["first_id"] == before


def test_a_secret_in_a_url_is_not_shown(service: Service, client: httpx.Client) -> None:
    url = f"{service.files.url}/red.mp4?signature=3f9a"
    answer = client.post("/jobs", json={"input": {"url": url}})
    assert answer.status_code == 202 and "3f9a" not in answer.text
    assert "3f9a" not in json.dumps(finished(client, answer.json()["id"]))
    assert "/red.mp4?signature=3f9a" in service.files.asked


def test_webhooks_are_checked_when_the_job_is_submitted(service: Service, client: httpx.Client, red: Path) -> None:
    num_files = len(list(service.jobs_dir.glob("inputs/*/*")))
    for url, code in (
        ("https://hooks.example/x", "webhook_secret_missing"),
        ("https://other.example/x", "url_refused"),
        ("http://10.0.0.1/x", "url_refused"),
    ):
        answer = upload(client, red, webhook={"url": url})
        assert answer.json()["code"] == code, answer.text
    assert upload(client, red, webhook={"url": "https://hooks.example/x", "events": ["job.none"]}).status_code == 422
    assert len(list(service.jobs_dir.glob("inputs/*/*"))) <= num_files


def test_a_batch_has_results_and_errors(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    names = ("red.mp4", "green.mp4", "text.mp4")
    lines = [json.dumps({"custom_id": name, "url": f"{service.files.url}/{name}"}) for name in names]
    manifest = tmp_path / "batch.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    answer = upload(client, manifest, kind="batch", params={"top_k": 1})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"])
    assert job["state"] == "succeeded", job
    assert job["request_counts"] == {"total": 3, "completed": 2, "failed": 1} and job["result"] is None
    assert client.get(job["result_url"]).json()["request_counts"] == job["request_counts"]
    output = client.get(job["output_url"])
    assert output.headers["content-type"].startswith("application/jsonl")
    part = client.get(job["output_url"], headers={"Range": "bytes=1-2,3-4"})
    assert (part.status_code, part.content) == (200, output.content)
    results = {line["custom_id"]: line["result"] for line in map(json.loads, output.text.splitlines())}
    assert {name: result["labels"][0]["name"] for name, result in results.items()} == {
        "red.mp4": "red",
        "green.mp4": "green",
    }
    (error,) = map(json.loads, client.get(job["errors_url"]).text.splitlines())
    assert (error["custom_id"], error["error"]["code"]) == ("text.mp4", "unsupported_media")
    video = client.get("/jobs", params={"kind": "classify"}).json()["data"][0]["id"]
    assert client.get(f"/jobs/{video}/output").json()["code"] == "job_conflict"


def test_jobs_are_listed_newest_first_and_filtered(service: Service, client: httpx.Client, red: Path) -> None:
    ids = [upload(client, red, metadata={"number": number}).json()["id"] for number in range(5)]
    for job_id in ids:
        finished(client, job_id)
    first = client.get("/jobs", params={"limit": 3}).json()
    second = client.get("/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert first["has_more"] and first["data"][0]["result"] is None
    failed = client.get("/jobs", params={"state": "failed", "limit": 1000}).json()["data"]
    assert failed and {job["state"] for job in failed} == {"failed"}
    assert client.get("/jobs", params={"state": "done"}).status_code == 422
    assert client.get("/jobs", params={"after": "nonsense"}).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": {}},
        {"input": {"url": "https://a.example/"}, "kind": "backfill"},
        {"input": {"url": "https://a.example/"}, "params": {"top_k": -1}},
        {"input": {"url": "https://a.example/"}, "params": {"deadline_ms": 1000}},
        {"input": {"url": "https://a.example/"}, "priority": "urgent"},
        {"input": {"url": "https://a.example/"}, "unknown": 1},
        {"input": {"url": "https://a.example/"}, "metadata": []},
    ],
)
def test_bodies_that_are_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter"), answer.text
    assert answer.json()["errors"]


def test_other_requests_that_are_refused(client: httpx.Client) -> None:
    assert client.post("/jobs", content=b"x").json()["code"] == "unsupported_media"
    assert client.get("/jobs/job_none").json()["code"] == "not_found"
    assert client.post("/jobs", files={"file": b""}).json()["code"] == "undecodable_video"
    assert client.post("/jobs", files={"other": b"x"}).json()["code"] == "invalid_parameter"
    assert client.put("/jobs").status_code == 405


def test_a_client_has_a_share_of_the_queue_and_of_the_bytes(red: Path, tmp_path: Path) -> None:
    """Half of them, as long as it is alone. Nothing is left of what is refused."""
    size = red.stat().st_size
    with serving(tmp_path, job_workers=0, max_queued_jobs=6, max_job_bytes=4 * size) as client:

        def submit() -> tuple[int, str, str]:
            answer = client.post("/jobs", files={"file": red.read_bytes()})
            found = answer.json()
            return answer.status_code, found.get("limit", ""), answer.headers.get("retry-after", "")

        assert [submit() for _ in range(2)] == [(202, "", "")] * 2
        assert submit() == (429, "job_bytes", "1")
        url = {"input": {"url": "https://files.example/a.mp4"}}
        assert client.post("/jobs", json=url).json()["code"] == "url_refused"
        (newest, _) = client.get("/jobs").json()["data"]
        assert client.delete(f"/jobs/{newest['id']}").status_code == 200
        assert len(list(tmp_path.glob("jobs/inputs/*/*"))) == 2  # it may be retried
    with serving(tmp_path / "queue", job_workers=0, max_queued_jobs=6, fetch_hosts=("files.example",)) as client:
        answers = [client.post("/jobs", json=url) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
        assert answers[-1].json()["code"] == "share_exceeded" and answers[-1].json()["limit"] == "queued_jobs"
        assert client.delete(f"/jobs/{answers[0].json()['id']}").json()["state"] == "cancelled"
        assert client.post("/jobs", json=url).status_code == 202

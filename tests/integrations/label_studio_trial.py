"""Exported tasks in a running Label Studio, its ML backend, and annotations that come back."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from support.processes import free_port, until
from vidlex.service.client.client import Client
from vidlex.service.exports import label_studio
from vidlex.service.exports.ml_backend import Backend, LabelStudioServer, create_app
from vidlex.service.exports.tagged import from_json

EMAIL, PASSWORD = "trial@example.com", "a-long-password-1"
START_SECONDS = 300.0


def try_label_studio(python: Path, client: Client, video: Path, folder: Path) -> None:
    answer = client.classify(video, top_k=0, aggregate_by="segments", segment_ms=1000)
    tagged = from_json(answer.model_dump(mode="json"), uri=str(video))
    with running(python, folder) as url, logged_in(url) as studio:
        token = studio.post("/api/token/").raise_for_status().json()["token"]
        config = label_studio.labelling_config(label.name for label in tagged.labels)
        project = post(studio, "/api/projects", {"title": "trial", "label_config": config})["id"]
        try_predictions(studio, project, [label_studio.task(tagged, "https://media.example/red-blue.mp4")])
        print("Label Studio: tasks and predictions imported, annotation exported and read as corrections")
        try_backend(studio, project, client, LabelStudioServer(url, token), video)
        print("Label Studio: ML backend connected, predictions retrieved")


def try_predictions(studio: httpx.Client, project: int, tasks: list[Any]) -> None:
    imported = post(studio, f"/api/projects/{project}/import?return_task_ids=true", tasks)
    assert (imported["task_count"], imported["prediction_count"]) == (1, 1), imported
    (number,) = imported["task_ids"]
    task = studio.get(f"/api/tasks/{number}").raise_for_status().json()
    (prediction,) = task["predictions"]
    assert prediction["result"] == tasks[0]["predictions"][0]["result"], prediction
    kept = [found for found in prediction["result"] if found["type"] == "timelinelabels"]
    kept = [found for found in kept if found["value"]["timelinelabels"] == ["red"]]
    post(studio, f"/api/tasks/{number}/annotations/", {"result": kept})
    exported = studio.get(f"/api/projects/{project}/export?exportType=JSON").raise_for_status().json()
    corrections = [(found.name, found.right) for found in label_studio.read_corrections(exported)]
    assert corrections[:2] == [("red", True), ("blue", False)], corrections
    assert len(corrections) == 2 + len(kept)


def try_backend(studio: httpx.Client, project: int, client: Client, server: LabelStudioServer, video: Path) -> None:
    with video.open("rb") as file:
        sent = studio.post(f"/api/projects/{project}/import?return_task_ids=true", files={"file": (video.name, file)})
    (number,) = sent.raise_for_status().json()["task_ids"]
    port = free_port()
    app = create_app(Backend(client, server))
    backend = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=backend.run, daemon=True)
    thread.start()
    try:
        until(lambda: backend.started)
        added = post(studio, "/api/ml", {"project": project, "url": f"http://127.0.0.1:{port}", "title": "vidlex"})
        state = studio.get(f"/api/ml/{added['id']}").raise_for_status().json()["state"]
        assert state == "CO", state  # connected
        chosen = {"selectedItems": {"all": False, "included": [number]}, "project": project}
        post(studio, f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", chosen)

        def predictions() -> list[Any]:
            found = studio.get(f"/api/tasks/{number}").raise_for_status().json()["predictions"]
            assert isinstance(found, list)
            return found

        until(lambda: bool(predictions()))
        (prediction,) = predictions()
        names = {name for result in prediction["result"] for name in result["value"].get("choices", ())}
        assert names, prediction
    finally:
        backend.should_exit = True
        thread.join()


@contextmanager
def running(python: Path, folder: Path) -> Iterator[str]:
    port = free_port()
    quiet = {"LATEST_VERSION_CHECK": "0", "COLLECT_ANALYTICS": "0", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
    allowed = {"ML_BLOCK_LOCAL_IP": "0", "SSRF_PROTECTION_ENABLED": "0"}
    command: list[str | Path] = [python.parent / "label-studio", "start", "--no-browser", "--port", str(port)]
    command += ["--username", EMAIL, "--password", PASSWORD, "--data-dir", folder / "label-studio"]
    (folder / "label-studio").mkdir()
    log = folder / "label-studio.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **quiet, **allowed})
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{url}/health", process, log), START_SECONDS)
        yield url
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        process.kill()
        process.wait()


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-4000:]
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextmanager
def logged_in(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, follow_redirects=True, timeout=120, trust_env=False) as studio:
        studio.get("/user/login/")
        studio.headers["Referer"] = f"{url}/"
        form = {"email": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": studio.cookies["csrftoken"]}
        studio.post("/user/login/", data=form).raise_for_status()
        studio.headers["X-CSRFToken"] = studio.cookies["csrftoken"]
        yield studio


def post(studio: httpx.Client, path: str, body: Any) -> Any:
    answer = studio.post(path, json=body)
    assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:1000]}"
    return json.loads(answer.text or "null")

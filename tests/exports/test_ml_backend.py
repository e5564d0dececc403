"""The ML backend for Label Studio over HTTP, with a real service and files behind a token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from support.live import live_service
from support.processes import free_port, until
from support.serving import colour_video
from vidlex.service.client.client import Client
from vidlex.service.exports import label_studio
from vidlex.service.exports.corrections import Correction
from vidlex.service.exports.ml_backend import Backend, Interface, LabelStudioServer, TaskRefused, create_app
from vidlex.service.exports.tagged import from_json

CONFIG = """<View>
  <Video name="clip" value="$film" framerate="10"/>
  <TimelineLabels name="when" toName="clip"><Label value="red"/><Label value="blue"/></TimelineLabels>
  <Choices name="what" toName="clip" choice="multiple"><Choice value="red"/><Choice value="green"/></Choices>
  <TextArea name="note" toName="clip"/>
</View>"""


class Files(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers.get("Authorization") == "Token secret":
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


class Setup:
    def __init__(
        self, http: httpx.Client, client: Client, files: str, video: Path, submitted: list[Correction]
    ) -> None:
        self.http, self.client, self.files, self.video, self.submitted = http, client, files, video, submitted

    def predict(self, reference: str, config: str = CONFIG) -> httpx.Response:
        body = {"tasks": [{"id": 1, "data": {"film": reference}}], "label_config": config, "project": "1.2"}
        return self.http.post("/predict", json=body)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("label-studio")
    video = colour_video(folder / "red.mp4", "red", "red")
    submitted: list[Correction] = []
    with (
        live_service(tmp_path_factory.mktemp("service") / "data") as url,
        file_server(folder) as files,
        Client(url) as client,
    ):
        client.create_labels(["red", "blue"])
        app = create_app(Backend(client, LabelStudioServer(files, "secret")), on_corrections=submitted.extend)
        with running(app) as http:
            yield Setup(http, client, files, video, submitted)


def test_health_and_setup(setup: Setup) -> None:
    assert setup.http.get("/health").json()["status"] == "UP"
    version = setup.http.post("/setup", json={"project": "1", "schema": CONFIG}).json()["model_version"]
    assert version == f"{setup.client.models().served.id} {setup.client.models().served.fingerprint}"


@pytest.mark.parametrize("kind", ["path", "url"])
def test_predictions_use_the_tags_of_the_project(setup: Setup, kind: str) -> None:
    reference = "/red.mp4" if kind == "path" else f"{setup.files}/red.mp4"
    answer = setup.predict(reference)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    by_type = {result["type"]: result for result in prediction["result"]}
    assert by_type["choices"]["from_name"] == "what" and by_type["choices"]["to_name"] == "clip"
    assert by_type["choices"]["value"]["choices"] == ["red"]
    assert by_type["timelinelabels"]["from_name"] == "when"
    assert by_type["timelinelabels"]["value"] == {"ranges": [{"start": 1, "end": 20}], "timelinelabels": ["red"]}


def test_labels_that_are_not_registered_are_scored_by_name(setup: Setup) -> None:
    config = CONFIG.replace("red", "lime").replace("blue", "white").replace("green", "yellow")
    answer = setup.predict("/red.mp4", config)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 1


@pytest.mark.parametrize(
    ("reference", "config"),
    [
        ("https://other.example/red.mp4", CONFIG),
        ("file:///etc/passwd", CONFIG),
        ("//other.example/red.mp4", CONFIG),
        ("/missing.mp4", CONFIG),
        ("/red.mp4", "<View/>"),
        ("/red.mp4", "no XML"),
        ("/red.mp4", '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'),
        ("/red.mp4", '<View><Video name="clip" value="$film"/></View>'),
    ],
)
def test_other_tasks_are_refused(setup: Setup, reference: str, config: str) -> None:
    answer = setup.predict(reference, config)
    assert answer.status_code == 422 and answer.json()["detail"]


def test_a_file_that_is_no_video_is_an_error_with_its_code(setup: Setup) -> None:
    (setup.video.parent / "text.mp4").write_text("no video")
    answer = setup.predict("/text.mp4")
    assert answer.status_code == 502 and answer.json()["code"] == "unsupported_media"


def test_the_limit_of_a_video_holds(setup: Setup) -> None:
    server = LabelStudioServer(setup.files, "secret", max_video_bytes=100)
    with pytest.raises(TaskRefused, match="too large"):
        Backend(setup.client, server).predict({"data": {"film": "/red.mp4"}}, Interface.parse(CONFIG))


def test_submitted_annotations_are_corrections(setup: Setup) -> None:
    setup.submitted.clear()
    answer = setup.client.classify(setup.video, top_k=0)
    task = label_studio.task(from_json(answer.model_dump(mode="json"), uri="red.mp4"))
    annotation = {"result": [{"type": "choices", "value": {"choices": ["blue"]}}]}
    body = {"action": "ANNOTATION_CREATED", "task": task, "annotation": annotation}
    assert setup.http.post("/webhook", json=body).json() == {"status": "ok", "corrections": 2}
    assert [(found.name, found.right) for found in setup.submitted] == [("blue", True), ("red", False)]
    other = {**body, "task": {"data": {"video": "x"}}}
    assert setup.http.post("/webhook", json=other).json() == {"status": "ok", "corrections": 0}
    assert setup.http.post("/webhook", json={"action": "PROJECT_UPDATED"}).json()["corrections"] == 0

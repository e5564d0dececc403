"""A Label Studio ML backend: Label Studio asks it for predictions, and sends it what people submit.

The protocol is that of github.com/HumanSignal/label-studio-ml-backend: ``/health``, ``/setup``, ``/predict``,
``/webhook``. Videos are read from Label Studio only, with its token: a task cannot make this process open other URLs.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio
import httpx
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from vidlex.service.client.client import Client
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.exports import label_studio
from vidlex.service.exports.corrections import Correction, NotCorrections
from vidlex.service.exports.tagged import TaggedVideo, from_json

MODEL_CLASS = "Vidlex"
DEFAULT_MAX_VIDEO_BYTES = 2 << 30
MAX_CONFIG_CHARS = 1 << 20
_MAX_BODY_BYTES = 16 << 20
_MAX_TASKS = 100
_TIMEOUT = httpx.Timeout(30.0, read=120.0)
_CHUNK_BYTES = 1 << 20
_ACCESS_SECONDS = 120.0  # less than the five minutes of Label Studio


class TaskRefused(ValueError):
    """A task, or the project's labelling interface, is not one that this backend can work on."""


class LabelStudioServer:
    """Thread-safe. ``token``: a personal access token, or a legacy one."""

    def __init__(self, url: str, token: str, *, max_video_bytes: int = DEFAULT_MAX_VIDEO_BYTES) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._max_video_bytes = max_video_bytes
        self._lock = threading.Lock()
        self._access = ""  # made from a personal access token, valid for some minutes
        self._access_until = 0.0  # time.monotonic

    def resolve(self, reference: str) -> str:
        """Of a task's video. Raises TaskRefused for another server's."""
        url = urljoin(f"{self.url}/", reference)
        own, asked = urlsplit(self.url), urlsplit(url)
        if (asked.scheme, asked.netloc) != (own.scheme, own.netloc):
            raise TaskRefused("the video of a task must be a file of Label Studio")
        return url

    def download(self, reference: str, path: Path) -> None:
        """Raises TaskRefused."""
        url, num_bytes = self.resolve(reference), 0
        try:
            headers = {"Authorization": self._authorization()}
            with path.open("wb") as file, httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
                if response.status_code != 200:
                    raise TaskRefused(f"Label Studio answers {response.status_code} for the video of a task")
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    num_bytes += len(chunk)
                    if num_bytes > self._max_video_bytes:
                        raise TaskRefused("the video of a task is too large")
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise TaskRefused(f"the video of a task cannot be read: {type(error).__name__}") from error

    def _authorization(self) -> str:
        if self._token.count(".") != 2:  # no JSON Web Token
            return f"Token {self._token}"
        with self._lock:
            if time.monotonic() > self._access_until:
                answer = httpx.post(f"{self.url}/api/token/refresh", json={"refresh": self._token}, timeout=_TIMEOUT)
                if answer.status_code != 200:
                    raise TaskRefused("Label Studio refuses the access token")
                self._access = str(answer.json()["access"])
                self._access_until = time.monotonic() + _ACCESS_SECONDS
            return f"Bearer {self._access}"


@dataclass(frozen=True)
class Interface:
    """Tags of the project's labelling interface."""

    video: str  # name
    value: str  # of the task's data
    names: Sequence[str]  # of the labels
    choices: str | None
    timeline: str | None

    @classmethod
    def parse(cls, config: str) -> Interface:
        """Raises TaskRefused."""
        if len(config) > MAX_CONFIG_CHARS or "<!" in config:  # no entities
            raise TaskRefused("the labelling interface is too long, or has declarations")
        try:
            root = ET.fromstring(config)
        except ET.ParseError as error:
            raise TaskRefused("the labelling interface is no XML") from error
        video = root.find(".//Video")
        if video is None:
            raise TaskRefused("the labelling interface has no Video tag")
        to = video.get("name", "")
        choices = next((tag for tag in root.iter("Choices") if tag.get("toName") == to), None)
        timeline = next((tag for tag in root.iter("TimelineLabels") if tag.get("toName") == to), None)
        parts = [*(() if choices is None else choices.iter("Choice"))]
        parts += [*(() if timeline is None else timeline.iter("Label"))]
        names = list(dict.fromkeys(tag.get("value", "") for tag in parts))
        if not names:
            raise TaskRefused("the labelling interface has neither Choices nor TimelineLabels for the video")
        return cls(
            video=to,
            value=video.get("value", "").lstrip("$"),
            names=names,
            choices=None if choices is None else choices.get("name"),
            timeline=None if timeline is None else timeline.get("name"),
        )

    def prediction(self, video: TaggedVideo) -> dict[str, Any]:
        """With the names of this interface's tags; labels that it does not offer are left out."""
        offered = set(self.names)
        made = label_studio.prediction(
            replace(video, labels=[label for label in video.labels if label.name in offered])
        )
        tags = {label_studio.CHOICES: self.choices, label_studio.TIMELINE: self.timeline}
        made["result"] = [
            {**result, "from_name": tags[result["from_name"]], "to_name": self.video}
            for result in made["result"]
            if tags[result["from_name"]] is not None
        ]
        return made


class Backend:
    """Thread-safe. Labels of the interface that are registered are scored as such, else their names."""

    def __init__(self, client: Client, server: LabelStudioServer) -> None:
        self._client = client
        self._server = server

    def predict(self, task: Any, interface: Interface) -> dict[str, Any]:
        """Raises TaskRefused, VidlexClientError."""
        reference = (task.get("data") or {}).get(interface.value) if isinstance(task, dict) else None
        if not isinstance(reference, str):
            raise TaskRefused(f"the task's data has no {interface.value}")
        registered = {label.name: label.id for label in self._client.labels()}
        ids = [registered[name] for name in interface.names if name in registered]
        with tempfile.TemporaryDirectory(prefix="vidlex-label-studio-") as folder:
            path = Path(folder, "video")
            self._server.download(reference, path)
            if ids:
                answer = self._client.classify(path, label_ids=ids, top_k=0)
            else:
                answer = self._client.classify(path, candidate_labels=list(interface.names), top_k=0)
        return interface.prediction(from_json(answer.model_dump(mode="json"), uri=reference))

    @property
    def version(self) -> str:
        models = self._client.models()
        return f"{models.served.id} {models.served.fingerprint}"


OnCorrections = Callable[[list[Correction]], object]


def create_app(backend: Backend, *, on_corrections: OnCorrections | None = None) -> FastAPI:
    """``on_corrections`` gets what people submit for tasks that Vidlex has exported, see ``label_studio.task``."""
    app = FastAPI(title="Vidlex for Label Studio", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": MODEL_CLASS})

    @app.post("/setup")
    async def setup(request: Request) -> JSONResponse:
        await _body(request)
        return JSONResponse({"model_version": await anyio.to_thread.run_sync(lambda: backend.version)})

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        body = await _body(request)
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or len(tasks) > _MAX_TASKS:
            raise TaskRefused(f"tasks is a list of at most {_MAX_TASKS}")
        interface = Interface.parse(str(body.get("label_config") or ""))
        results = [await anyio.to_thread.run_sync(backend.predict, task, interface) for task in tasks]
        return JSONResponse({"results": results})

    @app.post("/webhook")
    async def webhook(request: Request) -> JSONResponse:
        body = await _body(request)
        action, task, annotation = body.get("action"), body.get("task"), body.get("annotation")
        num_corrections = 0
        is_submitted = action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
        if on_corrections is not None and is_submitted and isinstance(task, dict) and isinstance(annotation, dict):
            if "vidlex" not in (task.get("data") or {}):
                return JSONResponse({"status": "ok", "corrections": 0})
            found = list(label_studio.read_corrections([{**task, "annotations": [annotation]}]))
            num_corrections = len(found)
            await anyio.to_thread.run_sync(on_corrections, found)
        return JSONResponse({"status": "ok", "corrections": num_corrections}, 201)

    @app.exception_handler(TaskRefused)
    @app.exception_handler(NotCorrections)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(VidlexClientError)
    async def failed(_: Request, error: VidlexClientError) -> JSONResponse:
        return JSONResponse({"detail": error.detail, "code": error.code}, 502)

    return app


async def _body(request: Request) -> dict[str, Any]:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise TaskRefused("the request is too large")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise TaskRefused("the request is no JSON") from None
    if not isinstance(body, dict):
        raise TaskRefused("the request is no object")
    return body

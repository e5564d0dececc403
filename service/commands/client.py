"""The command line as an HTTP client of a running service."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from vidlex.service.commands.output import EXIT_UNREACHABLE, EXIT_USAGE, CommandError
from vidlex.service.labels.store.names import fold

API_KEY_VARIABLE = "VIDLEX_API_KEY"
NAMESPACE_VARIABLE = "VIDLEX_NAMESPACE"

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_RETRY_SECONDS = 60.0
PAGE = 1000

UrlOption = Annotated[
    str, typer.Option("--url", envvar="VIDLEX_URL", help="Address of the running service.", show_default=True)
]


class ServiceClient:
    """JSON over HTTP; every failure becomes a CommandError whose text a person can act on. Thread-safe."""

    def __init__(self, url: str, *, timeout_seconds: float = 600.0) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise CommandError(f"--url must begin with http:// or https://, not {url!r}", exit_code=EXIT_USAGE)
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        namespace = os.environ.get(NAMESPACE_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if namespace:
            headers["X-Vidlex-Namespace"] = namespace
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_seconds, connect=10.0),
            trust_env=False,
            headers=headers,
        )

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The decoded JSON answer, or None where there is none. Waits and repeats while the service is busy."""
        deadline = time.monotonic() + MAX_RETRY_SECONDS
        while True:
            response = self._send(method, path, options)
            if response.is_success:
                return response.json() if response.content else None
            problem = problem_of(response)
            pause = _retry_seconds(response, problem)
            if pause is None or time.monotonic() + pause > deadline:
                raise CommandError(describe(problem), problem=problem)
            time.sleep(pause)

    def _send(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        for _, file, *_rest in options.get("files", {}).values():
            file.seek(0)
        try:
            return self._http.request(method, path, **options)
        except httpx.ConnectError:
            hint = "start one with `vidlex serve`, or name another with --url or VIDLEX_URL"
            raise CommandError(f"no service answers at {self.url} ({hint})", exit_code=EXIT_UNREACHABLE) from None
        except httpx.TimeoutException:
            raise CommandError(
                f"the service at {self.url} did not answer in time", exit_code=EXIT_UNREACHABLE
            ) from None
        except httpx.TransportError as error:
            raise CommandError(
                f"the connection to {self.url} broke: {error or type(error).__name__}", exit_code=EXIT_UNREACHABLE
            ) from None

    def labels(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every label, page by page, in order of creation."""
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self.call("GET", "/labels", params={"limit": PAGE, **params})
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    def find_label(self, reference: str) -> dict[str, Any]:
        """A label by its id or by its exact name (in any case)."""
        if reference.startswith("lbl_"):
            found: dict[str, Any] = self.call("GET", f"/labels/{reference}")
            return found
        # A text sorts before all others that begin with it, so the first one is the label or there is none.
        page = (
            self.call("GET", "/labels", params={"prefix": reference, "limit": 1}) if fold(reference) else {"data": []}
        )
        for label in page["data"]:
            if fold(reference) in (fold(name) for name in (label["name"], *label["aliases"])):
                return dict(label)
        raise CommandError(f"there is no label named {reference!r}")

    def classify(self, path: Path, params: dict[str, Any]) -> dict[str, Any]:
        """Upload one file and return the service's answer."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror or error}") from None
        with file:
            answer: dict[str, Any] = self.call(
                "POST",
                "/classify",
                files={"file": (path.name, file, "application/octet-stream")},
                data={"params": json.dumps(params)} if params else None,
            )
        return answer


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """The problem document of an error answer; something readable if a proxy answered in its place."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and ("detail" in document or "title" in document):
        return document
    return {"status": response.status_code, "title": f"HTTP {response.status_code} {response.reason_phrase}".strip()}


def describe(problem: dict[str, Any]) -> str:
    """One line for a person: the detail, and the stable code to search for."""
    text = str(problem.get("detail") or problem.get("title"))
    if problem.get("code") == "unauthorized":
        text += f"; {API_KEY_VARIABLE} holds the key that this command sends"
    return f"{text} ({problem['code']})" if problem.get("code") else text


def _retry_seconds(response: httpx.Response, problem: dict[str, Any]) -> float | None:
    """How long to wait before the same request may succeed; None where repeating it does not help or is not safe."""
    if response.status_code != 429 and problem.get("code") != "model_loading":
        return None
    try:
        return min(30.0, max(0.1, float(response.headers.get("Retry-After", 1))))
    except ValueError:
        return 1.0

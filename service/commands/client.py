"""The HTTP client of the command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.commands.output import EXIT_UNREACHABLE, EXIT_USAGE, CommandError
from vidlex.service.labels.store.names import fold

if TYPE_CHECKING:
    import httpx

API_KEY_VARIABLE = "VIDLEX_API_KEY"
NAMESPACE_VARIABLE = "VIDLEX_NAMESPACE"

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_RETRY_SECONDS = 60.0

UrlOption = Annotated[str, typer.Option("--url", envvar="VIDLEX_URL", help="Address of the service.")]


class ServiceClient:
    """JSON over HTTP. Raises CommandError for every failure. Thread-safe."""

    def __init__(self, url: str, *, timeout_seconds: float = 600.0) -> None:
        import httpx  # here and below: it takes longer to import than the command line

        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise CommandError(f"--url must start with http:// or https://, not {url!r}", exit_code=EXIT_USAGE)
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
        """The decoded JSON body, or None if it is empty. Retries while the service is busy or loading a model."""
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
        import httpx

        for _, file, *_rest in options.get("files", {}).values():
            file.seek(0)
        try:
            return self._http.request(method, path, **options)
        except httpx.ConnectError:
            hint = "start it with `vidlex serve`, or set --url or VIDLEX_URL"
            raise CommandError(f"no service at {self.url}; {hint}", exit_code=EXIT_UNREACHABLE) from None
        except httpx.TimeoutException:
            raise CommandError(
                f"the service at {self.url} did not answer in time", exit_code=EXIT_UNREACHABLE
            ) from None
        except httpx.TransportError as error:
            raise CommandError(
                f"the connection to {self.url} failed: {error or type(error).__name__}", exit_code=EXIT_UNREACHABLE
            ) from None

    def labels(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All labels in order of creation."""
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self.call("GET", "/labels", params={"limit": MAX_PAGE_SIZE, **params})
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    def find_label(self, reference: str) -> dict[str, Any]:
        """The label with this id, name or alias (case-insensitive). Raises CommandError if there is none."""
        if reference.startswith("lbl_"):
            found: dict[str, Any] = self.call("GET", f"/labels/{quote(reference, safe='')}")
            return found
        # A name sorts before all others with the same prefix, so the first result is an exact match or there is none.
        page = (
            self.call("GET", "/labels", params={"prefix": reference, "limit": 1}) if fold(reference) else {"data": []}
        )
        for label in page["data"]:
            if fold(reference) in (fold(name) for name in (label["name"], *label["aliases"])):
                return dict(label)
        raise CommandError(f"no label {reference!r}")

    def classify(self, path: Path, params: dict[str, Any]) -> dict[str, Any]:
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
    """The problem document of an error response; derived from the status if the body is not one (as from a proxy)."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and ("detail" in document or "title" in document):
        return document
    return {"status": response.status_code, "title": f"HTTP {response.status_code} {response.reason_phrase}".strip()}


def describe(problem: dict[str, Any]) -> str:
    text = str(problem.get("detail") or problem.get("title"))
    if problem.get("code") == "unauthorized":
        text += f"; set {API_KEY_VARIABLE} to a valid key"
    return f"{text} ({problem['code']})" if problem.get("code") else text


def _retry_seconds(response: httpx.Response, problem: dict[str, Any]) -> float | None:
    """Seconds to wait before a retry; None if the request must not be repeated."""
    if response.status_code != 429 and problem.get("code") != "model_loading":
        return None
    try:
        return min(30.0, max(0.1, float(response.headers.get("Retry-After", 1))))
    except ValueError:
        return 1.0

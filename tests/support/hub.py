"""A model hub on loopback: repositories that are folders, with the requests of `huggingface_hub`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    url: str
    downloads: list[str] = field(default_factory=list)  # such as "org/name/config.json"


@contextmanager
def model_hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    """``repositories``: "ORG/NAME" and the folder with its files."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            for name, folder in repositories.items():
                if path.startswith(f"api/models/{name}"):
                    found = _tree(folder) if "/tree/" in path else {"id": name, "sha": COMMIT, "siblings": []}
                    return self._send(json.dumps(found).encode(), with_body)
                if path.startswith(f"{name}/resolve/") and (folder / Path(path).name).is_file():
                    if with_body:
                        hub.downloads.append(f"{name}/{Path(path).name}")
                    return self._send((folder / Path(path).name).read_bytes(), with_body)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{_oid(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _tree(folder: Path) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _oid(file.read_bytes())}
        for file in sorted(folder.iterdir())
    ]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

"""An HTTP server with files, some of which come only when a test lets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.processes import PATIENCE_SECONDS

ENVIRONMENT = {"VIDLEX_FETCH_HOSTS": '["127.0.0.1"]', "VIDLEX_PRIVATE_NETWORKS": '["127.0.0.0/8"]'}
"""Of a service that may read from it."""


class HeldFiles:
    """``held`` are names whose answers wait for ``let``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._gates: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def hold(self, name: str) -> str:
        """Its URL. Each call makes another one, so that tests do not meet."""
        path = f"/held-{len(self._gates)}/{name}"
        self._gates[path] = threading.Event()
        return f"{self.url}{path}"

    def let(self, url: str) -> None:
        self._gates[url.removeprefix(self.url)].set()

    def let_all(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def file_of(self, path: str) -> Path:
        self.asked.append(path)
        gate = self._gates.get(path)
        if gate is not None:
            gate.wait(PATIENCE_SECONDS)
        return self.folder / path.rpartition("/")[2]


@contextmanager
def held_files(folder: Path) -> Iterator[HeldFiles]:
    files = HeldFiles(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = files.file_of(self.path)
            found = path.is_file()
            content = path.read_bytes() if found else b""
            try:
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the reader has left
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        files.let_all()
        server.shutdown()
        server.server_close()
        thread.join()

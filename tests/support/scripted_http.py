"""An HTTP server with the answers of a test, which remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """``body``: bytes as they are, else JSON. ``breaks``: the connection ends before (`silent`) or in (`half`) it."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    breaks: str = ""


@dataclass(frozen=True)
class Asked:
    method: str
    target: str
    headers: dict[str, str]  # by name in lower case
    num_bytes: int
    body: bytes  # the first MiB


def problem(status: int, code: str, **more: Any) -> Answer:
    """As the service sends it; ``retry_after`` is the header."""
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    body = {"type": "about:blank", "title": code, "status": status, "detail": f"detail of {code}", "code": code} | more
    return Answer(status, body, headers)


class ScriptedServer:
    def __init__(self) -> None:
        self.answers: list[Answer] = []  # the last one is repeated
        self.asked: list[Asked] = []
        self.url = ""

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def scripted() -> Iterator[ScriptedServer]:
    script = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body, num_bytes = self._received()
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, self.path, headers, num_bytes, body))
            answer = script.next_answer()
            if answer.breaks == "silent":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            content = b"" if answer.body is None else content
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            try:
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if answer.breaks else content)
            except OSError:  # the client has left
                self.close_connection = True
                return
            if answer.breaks:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def _received(self) -> tuple[bytes, int]:
            kept, total = b"", 0
            for chunk in self._chunks():
                kept += chunk[: 2**20 - len(kept)]
                total += len(chunk)
            return kept, total

        def _chunks(self) -> Iterator[bytes]:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return
            rest = int(self.headers.get("Content-Length", 0))
            while rest:
                chunk = self.rfile.read(min(rest, 65_536))
                if not chunk:
                    return
                rest -= len(chunk)
                yield chunk

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A receiver of webhooks: a real HTTP server that remembers what came, with answers of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.webhooks.records import Delivery
from vidlex.service.webhooks.store import WebhookStore

LOOPBACK = UrlPolicy.configured(["*"], ["127.0.0.0/8"])

Queue = Callable[..., str]


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]  # by name in lower case
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """``answer``: status and headers; may block until ``ended`` is set."""

    answer: Callable[[Received], tuple[int, dict[str, str]]] = lambda received: (200, {})
    received: list[Received] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hang(self, _: Received) -> tuple[int, dict[str, str]]:
        self.ended.wait()
        return 200, {}


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, self.rfile.read(int(headers["content-length"])))
            receiver.received.append(received)
            status, answered = receiver.answer(received)
            with suppress(OSError):
                self.send_response(status)
                for name, value in answered.items():
                    self.send_header(name, value)
                body = b"" if status in (204, 304) else b"seen"
                if body:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """The sender has left."""

    server = Server(("0.0.0.0", 0), Handler)  # all addresses of loopback, for endpoints of several hosts
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def is_done(store: WebhookStore, delivery_id: str, namespace: str = "zoo") -> bool:
    return store.log.get(namespace, delivery_id).state != "pending"


def statuses(delivery: Delivery) -> list[int | None]:
    return [attempt.status for attempt in delivery.attempts]

"""A forward proxy: CONNECT, and requests with an absolute address. Every host is taken for one server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class ForwardProxy:
    def __init__(self, target: tuple[str, int], *, answer: bytes | None = None) -> None:
        self.target, self.answer = target, answer
        self.heads: list[str] = []  # line and headers of each request
        self.url = ""


@contextmanager
def forward_proxy(port: int, *, answer: bytes | None = None) -> Iterator[ForwardProxy]:
    """Connects everything to ``port`` of 127.0.0.1, or sends ``answer``."""
    proxy = ForwardProxy(("127.0.0.1", port), answer=answer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=_accept, args=(listener, proxy))
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, proxy: ForwardProxy) -> None:
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(accepted, proxy), daemon=True).start()


def _serve(accepted: socket.socket, proxy: ForwardProxy) -> None:
    with suppress(OSError), accepted:
        accepted.settimeout(60)
        head, rest = b"", b""
        while b"\r\n\r\n" not in head:
            data = accepted.recv(65_536)
            if not data:
                return
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        proxy.heads.append(head.decode())
        if proxy.answer is not None:
            accepted.sendall(proxy.answer)
            return
        with socket.create_connection(proxy.target) as upstream:
            if head.startswith(b"CONNECT "):
                accepted.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                line, _, fields = head.partition(b"\r\n")
                method, address, version = line.split(b" ")
                path = b"/" + address.split(b"/", 3)[3]
                # One request per connection, so that each one's address is seen.
                fields = b"\r\n".join(f for f in fields.split(b"\r\n") if not f.lower().startswith(b"connection:"))
                upstream.sendall(b" ".join((method, path, version)) + b"\r\n" + fields + b"\r\nConnection: close")
                upstream.sendall(b"\r\n\r\n")
            upstream.sendall(rest)
            back = threading.Thread(target=pump, args=(upstream, accepted), daemon=True)
            back.start()
            pump(accepted, upstream)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

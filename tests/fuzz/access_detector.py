"""Detects whether a decoder follows a reference out of a video file."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path


class AccessDetector:
    """A loopback server that counts connections, and a FIFO that counts opens for reading."""

    def __init__(self, folder: Path) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.path = folder / "detector"
        os.mkfifo(self.path)
        self._is_closing = False
        self.num_connections = 0
        # One reader may be counted several times.
        self.num_opens = 0
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._accept, self._watch)]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/detector"

    @property
    def num_accesses(self) -> int:
        return self.num_connections + self.num_opens

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                if self._is_closing:
                    return
                self.num_connections += 1

    def _watch(self) -> None:
        while True:
            with self.path.open("wb"):  # blocks until a reader opens the FIFO
                if self._is_closing:
                    return
                self.num_opens += 1

    def close(self) -> None:
        self._is_closing = True
        socket.create_connection(self._server.getsockname()).close()
        os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
        for thread in self._threads:
            thread.join(5.0)
        self._server.close()

    def __enter__(self) -> AccessDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

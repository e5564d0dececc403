"""A real service process: HTTP clients, bad files, crashes and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from fuzz.forged_headers import playlist, write_claimed_size
from support import videos
from support.paths import ROOT
from support.processes import PATIENCE_SECONDS
from support.serving import add, assert_problem, classify, colour_video, wait_until


class Server:
    """``python -m vidlex.service`` on a free port; records its log."""

    def __init__(self, folder: Path, **variables: Any) -> None:
        self.folder = folder
        self.log: list[dict[str, Any]] = []
        env = {name: value for name, value in os.environ.items() if not name.startswith("VIDLEX_")}
        defaults = {"data_dir": folder, "model": "dummy", "port": 0, "decode_workers": 1}
        defaults |= {"feature_cache_bytes": 0, "label_cache_bytes": 0}  # every request decodes and encodes
        env |= {f"VIDLEX_{name.upper()}": str(value) for name, value in (defaults | variables).items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vidlex.service"], cwd=ROOT, env=env, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.log.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode().rstrip()})

    def line(self, event: str) -> dict[str, Any] | None:
        return next((entry for entry in list(self.log) if entry["event"] == event), None)

    def client(self) -> httpx.Client:
        def listens() -> bool:
            assert self.process.poll() is None, self.log
            return self.line("listening") is not None

        wait_until(listens, "it is not listening")
        url = str((self.line("listening") or {})["url"])
        client = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False)
        wait_until(lambda: client.get("/readyz").status_code == 200, "it is not ready")
        return client

    def decoders(self) -> list[int]:
        return [pid for pid in self.children() if b"decode.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def children(self) -> list[int]:
        pids = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            pids += [int(pid) for pid in (task / "children").read_text().split()]
        return pids

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), max_upload_bytes=3_000_000)
    yield running
    assert running.end() == -signal.SIGTERM


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with closing(server.client()) as client:
        add(client, "red", "green", "blue")
        yield client


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", "red")


@pytest.fixture
def stays_healthy(server: Server, client: httpx.Client, red: Path) -> Iterator[None]:
    """After the test, the service works and no upload remains."""
    yield
    wait_until(lambda: client.get("/readyz").status_code == 200, "not ready")
    answer = classify(client, red).json()
    assert answer["labels"][0]["name"] == "red"
    wait_until(lambda: not list((server.folder / "uploads").glob("*/*")), "an upload remains")


def test_red_video_is_classified_as_red(client: httpx.Client, red: Path) -> None:
    body = classify(client, red).json()
    assert [(x["name"], round(x["score"], 3), x["matched"]) for x in body["labels"]] == [
        ("red", 0.993, True),
        ("blue", 0.007, False),
        ("green", 0.007, False),
    ]


BAD_FILES: dict[str, tuple[Callable[[Path, Path], Path], int, str]] = {
    "text": (lambda folder, red: _write(folder, b"This is not a video.\n" * 50), 415, "unsupported_media"),
    "empty": (lambda folder, red: _write(folder, b""), 422, "undecodable_video"),
    "zeros": (lambda folder, red: _write(folder, bytes(10_000)), 415, "unsupported_media"),
    "truncated": (lambda folder, red: videos.truncate(red, folder / "bad", 0.5), 422, "undecodable_video"),
    "audio only": (lambda folder, red: videos.write_audio_only(folder / "bad.mp4"), 422, "undecodable_video"),
    "large picture": (
        lambda folder, red: write_claimed_size(red, folder / "bad", width=20_000, height=20_000),
        422,
        "resolution_too_large",
    ),
    "large picture hidden from the container": (
        lambda folder, red: write_claimed_size(red, folder / "bad", width=16_000, height=16_000, in_container=False),
        422,
        "resolution_too_large",
    ),
    "too long": (
        lambda folder, red: videos.write_video(folder / "bad.mkv", num_frames=3, pts_ms=[0, 100, 11_000_000]),
        422,
        "video_too_long",
    ),
    "playlist": (
        lambda folder, red: _write(folder, playlist("file:///etc/passwd")),
        415,
        "unsupported_media",
    ),
}


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "bad"
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("stays_healthy")
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_with_their_code(client: httpx.Client, red: Path, tmp_path: Path, kind: str) -> None:
    make, status, code = BAD_FILES[kind]
    assert_problem(classify(client, make(tmp_path, red)), status, code)


def test_hanging_decoder_and_stalled_upload_time_out(tmp_path: Path, red: Path) -> None:
    """A separate service, because of its short timeouts."""
    server = Server(tmp_path, decode_timeout_seconds=1, upload_idle_seconds=1)
    try:
        with closing(server.client()) as client, ThreadPoolExecutor(1) as pool:
            wait_until(server.decoders, "no decoder")
            (pid,) = server.decoders()
            os.kill(pid, signal.SIGSTOP)
            answer = pool.submit(classify, client, red)
            assert client.get("/livez").status_code == 200  # other requests are not blocked
            assert_problem(answer.result(PATIENCE_SECONDS), 422, "undecodable_video")
            assert pid not in server.decoders()
            wait_until(lambda: client.get("/readyz").status_code == 200, "the decoder was not replaced")
            with connect(client) as connection:
                connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + PART + b"some bytes, and then nothing")
                assert b" 408 " in first_line(connection)
            wait_until(lambda: not list((server.folder / "uploads").glob("*/*")), "an upload remains")
    finally:
        server.end()


@pytest.mark.usefixtures("stays_healthy")
def test_crashed_decoder_is_replaced(server: Server, client: httpx.Client, red: Path) -> None:
    wait_until(server.decoders, "no decoder")
    (pid,) = server.decoders()
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(classify, client, red)
        wait_until(lambda: "vidlex_videos_at_work 1.0" in client.get("/metrics").text, "the request is not running")
        os.kill(pid, signal.SIGKILL)
        assert_problem(answer.result(PATIENCE_SECONDS), 422, "undecodable_video")


HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=bb\r\n"
PART = b'--bb\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=PATIENCE_SECONDS)


def first_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.readline()


@pytest.mark.usefixtures("stays_healthy")
def test_excessive_content_length_is_refused_before_the_body(client: httpx.Client) -> None:
    with connect(client) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000000\r\nExpect: 100-continue\r\n\r\n")
        assert b" 413 " in first_line(connection)


@pytest.mark.usefixtures("stays_healthy")
def test_large_upload_without_content_length_is_refused(client: httpx.Client) -> None:
    chunk = b"x" * 100_000
    body = (PART if i == 0 else chunk for i in range(60))
    answer = client.post("/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=bb"})
    assert_problem(answer, 413, "upload_too_large")


@pytest.mark.usefixtures("stays_healthy")
def test_two_framings_of_a_body_are_refused_and_end_the_connection(client: httpx.Client) -> None:
    hidden = b"GET /labels HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(connect(client)) as connection:
        connection.sendall(
            b"POST /labels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + hidden
        )
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1") == 1


def test_disconnect_during_upload_releases_resources(server: Server, client: httpx.Client, red: Path) -> None:
    with connect(client) as connection:
        connection.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n" + PART + b"x" * 1_500_000)
        wait_until(lambda: list((server.folder / "uploads").glob("*/*")), "no upload")
    wait_until(lambda: "vidlex_uploads_in_progress 0.0" in client.get("/metrics").text, "the upload is still counted")


@pytest.mark.usefixtures("stays_healthy")
def test_work_is_cancelled_when_the_client_disconnects(server: Server, client: httpx.Client, red: Path) -> None:
    wait_until(server.decoders, "no decoder")
    (pid,) = server.decoders()
    os.kill(pid, signal.SIGSTOP)
    body = PART + red.read_bytes() + b"\r\n--bb--\r\n"
    with connect(client) as connection:
        connection.sendall(HEAD + f"X-Request-Id: disconnected\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: "vidlex_videos_at_work 1.0" in client.get("/metrics").text, "the request is not running")
    wait_until(lambda: not _close_wait_connections(client.base_url.port or 0), "the disconnect is not detected")
    assert client.get("/livez").status_code == 200  # the event loop has processed the disconnect
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: [e for e in server.log if e.get("request_id") == "disconnected"], "no log line")
    assert [e["status"] for e in server.log if e.get("request_id") == "disconnected"] == [499]


def _close_wait_connections(port: int) -> list[str]:
    """Connections that only the client has closed (CLOSE_WAIT)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "08"]


@pytest.mark.usefixtures("stays_healthy")
def test_concurrent_clients_get_the_same_scores(client: httpx.Client, red: Path) -> None:
    alone = classify(client, red).json()["labels"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: classify(client, red), range(16)))
    for answer in answers:
        assert answer.status_code == 200
        for label, wanted in zip(answer.json()["labels"], alone, strict=True):
            assert label["name"] == wanted["name"] and abs(label["score"] - wanted["score"]) < 1e-5


def test_labels_survive_sigkill(tmp_path: Path, red: Path) -> None:
    server = Server(tmp_path)
    try:
        with closing(server.client()) as client:
            labels = add(client, "red", "blue", categories=["colour"])
            children = server.children()
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "processes remain")
        server = Server(tmp_path)
        with closing(server.client()) as client:
            assert client.get("/labels").json()["data"] == labels
            assert classify(client, red).json()["labels"][0]["id"] == labels[0]["id"]
            assert classify(client, red).json()["vocabulary_revision"] == 2
    finally:
        server.end()


def test_graceful_shutdown_finishes_accepted_requests(tmp_path: Path, red: Path) -> None:
    server = Server(tmp_path)
    try:
        with closing(server.client()) as client, ThreadPoolExecutor(1) as pool:
            add(client, "red")
            children = server.children()
            (pid,) = server.decoders()
            os.kill(pid, signal.SIGSTOP)
            answer = pool.submit(classify, client, red)
            wait_until(lambda: "vidlex_videos_at_work 1.0" in client.get("/metrics").text, "the request is not running")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").json()["status"] == "stopping", "readiness does not change")
            refused = client.get("/labels")
            assert_problem(refused, 503, "stopping")
            assert refused.headers["connection"] == "close"
            assert client.get("/livez").status_code == 200
            os.kill(pid, signal.SIGCONT)
            assert answer.result(PATIENCE_SECONDS).json()["labels"][0]["name"] == "red"
            wait_until(lambda: _refuses_connections(client), "still accepting connections")
        assert server.end() == -signal.SIGTERM
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        assert server.line("stopped")
    finally:
        server.end(signal.SIGKILL)


def _refuses_connections(client: httpx.Client) -> bool:
    try:
        connect(client).close()
    except OSError:
        return True
    return False


def test_log_lines_are_json_with_request_id(server: Server, client: httpx.Client) -> None:
    client.get("/labels", headers={"X-Request-Id": "my-request"})
    wait_until(lambda: [e for e in server.log if e.get("request_id") == "my-request"], "no log line")
    (entry,) = [e for e in server.log if e.get("request_id") == "my-request"]
    assert (entry["event"], entry["method"], entry["path"], entry["status"]) == ("request", "GET", "/labels", 200)
    assert [e for e in server.log if "level" not in e] == []


def test_log_lines_of_other_threads_have_the_request_id(server: Server, client: httpx.Client, red: Path) -> None:
    wait_until(server.decoders, "no decoder")
    (pid,) = server.decoders()
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        headers = {"X-Request-Id": "killed-decoder"}
        files = {"file": ("video.mp4", red.read_bytes(), "video/mp4")}
        answer = pool.submit(lambda: client.post("/classify", files=files, headers=headers))
        wait_until(lambda: "vidlex_queued_videos 1.0" in client.get("/metrics").text, "the video is not at the decoder")
        os.kill(pid, signal.SIGKILL)
        assert_problem(answer.result(PATIENCE_SECONDS), 422, "undecodable_video")
    crashes = [e for e in server.log if e["event"] == "decode_process_crashed"]
    assert crashes[-1]["request_id"] == "killed-decoder"
    wait_until(lambda: client.get("/readyz").status_code == 200, "not ready again")


def test_failed_start_exits_with_a_status(tmp_path: Path, server: Server, client: httpx.Client) -> None:
    second = Server(server.folder)  # same folder
    assert second.process.wait(PATIENCE_SECONDS) == 1
    assert second.line("start_failed")
    third = Server(tmp_path, port=70_000)
    assert third.process.wait(PATIENCE_SECONDS) == 2
    third.end()
    assert "VIDLEX_PORT" in third.log[0]["event"]
    assert client.get("/readyz").status_code == 200

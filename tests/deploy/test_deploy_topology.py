"""The deployment as processes: one store, two replicas and one proxy, with the files that compose mounts."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import redis
from redis.exceptions import NoPermissionError

from support.processes import PATIENCE_SECONDS, until
from support.serving import colour_video
from support.topology import MAX_BODY_BYTES, Topology, running

PROXY_SEES_SECONDS = 5.0  # docker/upgrade.sh waits as long


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with running(tmp_path_factory.mktemp("topology")) as topology:
        yield topology


def test_a_label_of_one_replica_is_soon_on_the_other(top: Topology) -> None:
    first, second, proxy = (top.client(name) for name in ("service-a", "service-b", "proxy"))
    video = colour_video(top.folder / "red.mp4", "red").read_bytes()
    assert first.post("/labels", json={"name": "red"}).status_code == 201

    def matched(client: httpx.Client) -> list[str]:
        answer = client.post("/classify", files={"file": video}).raise_for_status().json()
        return [label["name"] for label in answer["labels"] if label["matched"]]

    until(lambda: matched(second) == ["red"])  # takes a second on an idle machine
    assert matched(proxy) == ["red"]


def test_keys_soon_hold_everywhere(top: Topology) -> None:
    first, proxy = top.client("service-a"), top.client("proxy")
    assert proxy.get("/labels", headers={"Authorization": ""}).status_code == 401
    made = first.post("/keys", json={"scope": "read"}).json()
    reader = top.client("service-b", Authorization=f"Bearer {made['key']}")
    until(lambda: reader.get("/labels").status_code == 200)
    assert first.delete(f"/keys/{made['id']}").status_code == 204
    until(lambda: reader.get("/labels").status_code == 401)
    metrics = top.client("service-b", Authorization=f"Bearer {top.secret('metrics_key')}")
    assert metrics.get("/metrics").status_code == 200, "as Prometheus asks"
    assert metrics.post("/labels", json={"name": "x"}).status_code == 403


def test_the_proxy_bounds_uploads_names_requests_and_hides_metrics(top: Topology) -> None:
    proxy = top.client("proxy")
    body = b"x" * (MAX_BODY_BYTES + 1)
    assert proxy.post("/classify", files={"file": body}).status_code == 413
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    chunks = (head, *[b"x" * 100_000] * 22, b"\r\n--b--\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert proxy.post("/classify", content=iter(chunks), headers=headers).status_code == 413, "with no Content-Length"
    assert proxy.get("/metrics").status_code == proxy.get("/v1/metrics").status_code == 404
    assert proxy.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert re.fullmatch(r"[0-9a-f-]{36}", proxy.get("/livez").headers["x-request-id"])
    assert httpx.get(f"{top.url('proxy')}/", timeout=PATIENCE_SECONDS, trust_env=False).status_code == 200


def test_the_store_lets_in_its_one_user_and_him_only_where_needed(top: Topology) -> None:
    port = top.ports["store"]
    password = top.secret("redis_password")
    config = (top.folder / "users.acl").read_text()
    assert password not in config, "only its hash"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, username="vidlex", password="wrong").ping()
    client = redis.Redis(port=port, username="vidlex", password=password)
    assert client.ping()
    for command in (
        ["EVAL", "return 1", "0"], ["SCRIPT", "FLUSH"],
            ["FUNCTION", "LIST"], ["CONFIG", "GET", "*"], ["MODULE", "LIST"],
        ["FLUSHALL"], ["KEYS", "*"], ["SHUTDOWN"], ["ACL", "LIST"], ["REPLICAOF", "NO", "ONE"],
        ["SAVE"], ["MONITOR"], ["GET", "foreign"], ["MIGRATE", "x", "1", "k", "0", "1"],
    ):  # fmt: skip
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    client.close()
    assert top.secret("admin_key") not in "".join(top.log(name) for name in top.processes)
    assert password not in "".join(top.log(name) for name in top.processes)


def test_a_replica_dies_under_load_and_the_service_goes_on(top: Topology) -> None:
    proxy = top.client("proxy")
    answers: list[tuple[float, int]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(
            base_url=top.url("proxy"), headers=dict(proxy.headers), timeout=PATIENCE_SECONDS, trust_env=False
        ) as http:
            while not stop.is_set():
                answers.append((time.monotonic(), http.get("/labels").status_code))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        until(lambda: len(answers) > 40)
        top.processes["service-a"].kill()
        top.processes["service-a"].wait()
        died = time.monotonic()
        until(lambda: sum(at > died for at, _ in answers) > 100)
        assert proxy.post("/labels", json={"name": "while one is away"}).status_code == 201
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    # Requests at the killed replica fail, at most one per connection; later requests succeed.
    lost = [at for at, status in answers if status != 200]
    assert len(lost) <= 4 and all(at < died + 1.0 for at in lost), answers
    top.start_replica("service-a")
    until(lambda: top.healthy("service-a"))
    names = [label["name"] for label in top.client("service-a").get("/labels").json()["data"]]
    assert "while one is away" in names


def test_replicas_are_replaced_one_by_one_and_no_request_fails(top: Topology) -> None:
    """As docker/upgrade.sh does it: stopped, started again, ready, then the next one."""
    names, proxy = ("service-a", "service-b"), top.client("proxy")
    for name in names:
        until(lambda name=name: top.healthy(name))  # type: ignore[misc]
    statuses: list[int] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = proxy.get("/labels")
            except httpx.TransportError as error:
                failures.append(repr(error))
            else:
                statuses.append(answer.status_code)
                if answer.status_code != 200:
                    failures.append(answer.text)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for name in names:
            before = len(statuses)
            top.processes[name].terminate()
            top.processes[name].wait(PATIENCE_SECONDS)
            top.start_replica(name)
            until(lambda name=name: top.healthy(name))  # type: ignore[misc]
            time.sleep(PROXY_SEES_SECONDS)
            assert len(statuses) > before + 10, "no load"
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert not failures, failures[:5]

"""Two replicas: one applies a fitted threshold, both match by it; both fit automatically, and the history is one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.judgements import judgement, thirty
from support.processes import PATIENCE_SECONDS
from support.replicas import Replica, two_replicas
from support.serving import add, classify, colour_video

Pair = tuple[httpx.Client, httpx.Client]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("feedback")
    with two_replicas(folder, VIDLEX_FEEDBACK_APPLY="auto") as (_, processes):
        yield processes


@pytest.fixture
def replicas(processes: list[Replica]) -> Iterator[Pair]:
    a, b = (httpx.Client(base_url=p.url, timeout=PATIENCE_SECONDS, trust_env=False) for p in processes)
    with a, b:
        yield a, b


def matches(client: httpx.Client, video: Path, label_id: str, revision: str) -> tuple[bool, float, float]:
    found = classify(client, video, label_ids=[label_id], num_frames=3, min_revision=int(revision))
    answer = found.raise_for_status().json()
    (label,) = answer["labels"]
    return label["matched"], label["score"], label["threshold"]


def test_replicas_agree_on_what_matches(replicas: Pair, tmp_path: Path) -> None:
    a, b = replicas
    (label,) = add(a, "red")
    # A third of red: the dummy model's score is sigmoid(10 / sqrt(3) - 5) = 0.684.
    video = colour_video(tmp_path / "mixed.mp4", "red", "green", "blue")
    before = [matches(client, video, label["id"], "0") for client in replicas]
    assert before[0] == before[1] and before[0][0] is True
    b.post("/feedback", json={"judgements": thirty("red")[:-1]}).raise_for_status()
    path = f"/feedback/fits/{label['id']}"
    assert [client.get(path).raise_for_status().json()["status"] for client in replicas] == ["too_few"] * 2

    # The thirtieth is enough, and the evidence is beyond its uncertainty: 15 of 30 that match are wrong.
    (version,) = a.post("/feedback", json=thirty("red")[-1]).raise_for_status().json()["applied"]
    assert (version["client"], version["threshold_before"]) == ("auto", None)
    revision = a.get(f"/labels/{label['id']}").json()["revision"]
    after = [matches(client, video, label["id"], str(revision)) for client in replicas]
    assert after[0] == after[1] == (False, before[0][1], version["threshold"])

    reverted = b.post(f"{path}:revert").raise_for_status()
    back = [matches(client, video, label["id"], reverted.headers["x-vidlex-revision"]) for client in replicas]
    assert back[0] == back[1] == before[0]
    # What a person has reverted stays so, whatever is judged next, until a person applies it again.
    for i, client in enumerate(replicas):
        more = judgement(f"more {i}", "red", False, 0.8)
        assert client.post("/feedback", json=more).raise_for_status().json()["applied"] == []
    applied = a.post(f"{path}:apply").raise_for_status()
    again = [matches(client, video, label["id"], applied.headers["x-vidlex-revision"]) for client in replicas]
    assert again[0] == again[1] and again[0][0] is False


def test_both_fit_at_the_same_time_and_the_history_is_one(replicas: Pair) -> None:
    (label,) = add(replicas[0], "green")

    def judge(number: int) -> list[dict[str, Any]]:
        client = replicas[number % 2]
        score = 0.55 + 0.004 * (number % 100)
        body = judgement(number, "green", number * 7 % 100 < number % 100, score)
        applied: list[dict[str, Any]] = client.post("/feedback", json=body).raise_for_status().json()["applied"]
        return applied

    with ThreadPoolExecutor(6) as threads:
        applied = [version for versions in threads.map(judge, range(100)) for version in versions]
    histories = [history(client, label["id"]) for client in replicas]
    assert histories[0] == histories[1]
    assert {version["id"] for version in histories[0]} == {version["id"] for version in applied}
    assert applied
    check_chain(histories[0], replicas[1].get(f"/labels/{label['id']}").json()["threshold"])


def history(client: httpx.Client, label_id: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = client.get(f"/feedback/fits/{label_id}/versions").raise_for_status().json()["data"]
    return data


def check_chain(versions: list[dict[str, Any]], threshold_of_label: float | None) -> None:
    """Each version goes on from a threshold that was in force, and the newest one is that of the label."""
    chain = {version["threshold_before"]: version["threshold"] for version in versions}
    assert len(chain) == len(versions)
    threshold = None
    while threshold in chain:
        threshold = chain.pop(threshold)
    assert not chain
    assert threshold_of_label == threshold


@pytest.mark.parametrize("num_acknowledged", [5, 33, 61])
def test_kill_9_loses_no_acknowledged_judgement(
    processes: list[Replica], replicas: Pair, num_acknowledged: int
) -> None:
    """Of two threads that judge while the service is killed; the other replica has all, and one history."""
    (label,) = add(replicas[1], f"blue {num_acknowledged}")
    acknowledged: list[str] = []

    def judge(first: int) -> None:
        for number in range(first, 200, 2):
            score = 0.55 + 0.004 * (number % 100)
            body = judgement(number, label["name"], number * 7 % 100 < number % 100, score)
            try:
                answer = replicas[0].post("/feedback", json=body)
            except httpx.TransportError:
                return
            if answer.status_code == 201:
                acknowledged.append(answer.json()["judgements"][0]["id"])
            if len(acknowledged) >= num_acknowledged:
                processes[0].kill()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(judge, range(2)))
    processes[0].start()
    processes[0].wait()
    assert len(acknowledged) >= num_acknowledged
    params = {"label_id": label["id"], "limit": 1000}
    found = [item["id"] for item in replicas[1].get("/feedback", params=params).raise_for_status().json()["data"]]
    assert set(acknowledged) <= set(found)
    versions = history(replicas[1], label["id"])
    check_chain(versions, replicas[1].get(f"/labels/{label['id']}").json()["threshold"])
    counts = {item["label_id"]: item["num_judgements"] for item in replicas[1].get("/feedback:labels").json()["data"]}
    assert counts[label["id"]] == len(found)

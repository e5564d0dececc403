"""Hostile files through a real service: every answer as documented, nothing leaked, nothing opened, nothing lost.

Here some hundred mutations; `vidlex bench fuzz` sends 10,000.
"""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.processes import PATIENCE_SECONDS, until
from vidlex.service.bench.fuzz import FuzzOptions, attack, judge
from vidlex.service.bench.hostile_files import ANY_ANSWER, OK, HostileFile, build
from vidlex.service.bench.live import Canary, LiveService, live_service
from vidlex.service.bench.mutate import mutate

NUM_MUTATIONS = 300


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    with Canary(tmp_path_factory.mktemp("canary")) as canary:
        yield canary


@pytest.fixture(scope="module")
def files(canary: Canary, tmp_path_factory: pytest.TempPathFactory) -> list[HostileFile]:
    return build(tmp_path_factory.mktemp("files"), canary.url, canary.path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("service") / "data"
    with live_service(folder, decode_workers=2, decode_timeout_seconds=60) as service:
        yield service


def test_the_canary_sings(tmp_path: Path) -> None:
    """It notices a reader of its file and a caller of its address; else its silence would prove nothing."""
    with Canary(tmp_path) as canary:
        canary.path.open("rb").close()
        until(lambda: canary.num_readings >= 1)
        assert canary.num_calls == 0
        with pytest.raises(OSError):
            urllib.request.urlopen(canary.url, timeout=5)
        until(lambda: canary.num_calls == 1)
        assert canary.num_touches >= 2


def test_mutations_are_the_same_for_the_same_seed(files: list[HostileFile]) -> None:
    data = [file.data for file in files]
    made = [mutate(data, pieces=data, seed=1, number=number) for number in range(50)]
    assert made == [mutate(data, pieces=data, seed=1, number=number) for number in range(50)]
    assert made != [mutate(data, pieces=data, seed=2, number=number) for number in range(50)]
    assert sum(one in data for one in made) < 5


def test_there_are_sound_files_of_every_accepted_kind(files: list[HostileFile]) -> None:
    sound = [file for file in files if file.allowed == frozenset([OK])]
    assert len(sound) >= 20
    assert len(files) >= 80


def test_hostile_and_mutated_files(service: LiveService, files: list[HostileFile], canary: Canary) -> None:
    before = service.num_files()
    found = attack(service, files, FuzzOptions(seed=7), num_files=NUM_MUTATIONS)
    assert found.clean, (found.wrong, found.leaks, found.good_differ)
    assert found.num_good == NUM_MUTATIONS // 100
    assert sum(found.answers.values()) == len(files) + NUM_MUTATIONS
    assert found.answers["200"] > 30 and found.answers["422 undecodable_video"] > 100
    assert canary.num_touches == 0
    assert service.is_ready() and not service.uploads()
    assert service.log_lines("internal_error") == 0
    until(lambda: service.num_files() <= before + 4)  # connections that are kept alive


def test_a_broken_rule_is_found() -> None:
    """The judge can say no."""
    problem = {"type": "", "title": "", "status": 422, "detail": "", "code": "undecodable_video", "request_id": ""}
    kind = {"content-type": "application/problem+json"}
    assert judge(httpx.Response(422, json=problem, headers=kind), ANY_ANSWER) == ("", "", "422 undecodable_video")
    wrong, _, _ = judge(httpx.Response(500, json=problem | {"code": "internal_error"}, headers=kind), ANY_ANSWER)
    assert "500 internal_error is not among" in wrong
    _, leak, _ = judge(httpx.Response(422, json=problem | {"detail": "moov atom"}, headers=kind), ANY_ANSWER)
    assert "moov" in leak
    assert judge(httpx.Response(422, json={"code": "undecodable_video"}, headers=kind), ANY_ANSWER)[0]
    assert judge(httpx.Response(200, text="<html>"), ANY_ANSWER)[0]


def test_killed_decoders_take_only_their_own_requests_with_them(service: LiveService, files: list[HostileFile]) -> None:
    """kill -9 of every decode process in turn while eight clients work: 200 or the file's error."""
    good = next(file for file in files if file.name == "sound.mp4")
    over = threading.Event()
    answers: list[tuple[int, str]] = []
    failing: set[str] = set()

    def work() -> None:
        with service.client() as client:
            while not over.is_set():
                answer = client.post("/classify", files={"file": (good.name, good.data)})
                answers.append((answer.status_code, answer.json().get("code", "")))

    def watch() -> None:
        while not over.wait(0.05):
            answer = httpx.get(f"{service.url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False)
            failing.update(name for name, check in answer.json()["checks"].items() if not check["ok"])

    threads = [threading.Thread(target=work) for _ in range(8)] + [threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    num_killed = 0
    for _ in range(6):
        until(lambda: len(service.decoders()) == 2)
        enough = len(answers) + 10
        until(lambda enough=enough: len(answers) >= enough)  # type: ignore[misc]
        victim = service.decoders()[num_killed % 2]
        os.kill(victim, signal.SIGKILL)
        num_killed += 1
        until(lambda victim=victim: victim not in service.decoders())  # type: ignore[misc]
    until(lambda: len(service.decoders()) == 2)
    over.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    failed = [answer for answer in answers if answer[0] != 200]
    assert set(failed) <= {(422, "undecodable_video")}
    assert len(failed) <= num_killed
    assert len(answers) > 60
    assert failing <= {"decoders"}  # told where a machine is slow to start another; nothing else suffers

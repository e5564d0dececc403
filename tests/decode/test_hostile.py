"""Hostile files sent to a running service; `make fuzz` sends more mutations."""

from __future__ import annotations

import io
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fuzz.access_detector import AccessDetector
from fuzz.answers import ANY_ANSWER, OK, HostileFile
from fuzz.hostile_files import build
from fuzz.mutate import mutate
from fuzz.runner import FuzzOptions, check_answer, count_unexpected_errors, send_files
from fuzz.valid_files import REFERENCE
from support.processes import PATIENCE_SECONDS, until
from vidlex.model.decode.containers.formats import CONTAINERS
from vidlex.model.decode.containers.sniff import demuxer_of
from vidlex.service.bench.live import LiveService, live_service

NUM_MUTATIONS = 500


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessDetector]:
    with AccessDetector(tmp_path_factory.mktemp("detector")) as detector:
        yield detector


@pytest.fixture(scope="module")
def files(detector: AccessDetector, tmp_path_factory: pytest.TempPathFactory) -> list[HostileFile]:
    return build(tmp_path_factory.mktemp("files"), detector.url, detector.path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("service") / "data"
    with live_service(folder, decode_workers=2, decode_timeout_seconds=60) as service:
        yield service


def test_access_detector_counts_reads_and_connections(tmp_path: Path) -> None:
    with AccessDetector(tmp_path) as detector:
        detector.path.open("rb").close()
        until(lambda: detector.num_opens >= 1)
        assert detector.num_connections == 0
        with pytest.raises(OSError):
            urllib.request.urlopen(detector.url, timeout=5)
        until(lambda: detector.num_connections == 1)
        assert detector.num_accesses >= 2


def test_mutations_are_reproducible(files: list[HostileFile]) -> None:
    data = [file.data for file in files]
    made = [mutate(data, donors=data, seed=1, number=number) for number in range(50)]
    assert made == [mutate(data, donors=data, seed=1, number=number) for number in range(50)]
    assert made != [mutate(data, donors=data, seed=2, number=number) for number in range(50)]
    assert sum(one in data for one in made) < 5


def test_files_include_valid_ones_of_every_accepted_kind(files: list[HostileFile]) -> None:
    valid = [file for file in files if file.allowed == frozenset([OK])]
    others = [file for file in files if OK not in file.allowed or len(file.allowed) > 1]
    assert len(valid) >= 60
    assert len(others) >= 300
    for some in (valid, others):
        assert {demuxer_of(io.BytesIO(file.data)) for file in some} >= set(CONTAINERS)


def test_hostile_and_mutated_files_get_documented_answers(
    service: LiveService, files: list[HostileFile], detector: AccessDetector
) -> None:
    before = service.num_files()
    found = send_files(service, files, FuzzOptions(seed=7), num_mutations=NUM_MUTATIONS)
    assert found.is_clean, (found.wrong, found.leaks, found.changed_scores)
    assert found.num_reference == NUM_MUTATIONS // 100
    assert sum(found.answers.values()) == len(files) + NUM_MUTATIONS
    assert found.answers["200"] > 30 and found.answers["422 undecodable_video"] > 100
    assert detector.num_accesses == 0
    assert service.is_ready() and not service.uploads()
    assert count_unexpected_errors(service.log_text()) == 0
    until(lambda: service.num_files() <= before + 4)  # idle keep-alive connections


def test_check_answer_reports_violations_and_leaks() -> None:
    problem = {"type": "", "title": "", "status": 422, "detail": "", "code": "undecodable_video", "request_id": ""}
    kind = {"content-type": "application/problem+json"}
    assert check_answer(httpx.Response(422, json=problem, headers=kind), ANY_ANSWER) == (
        "",
        "",
        "422 undecodable_video",
    )
    wrong, _, _ = check_answer(httpx.Response(500, json=problem | {"code": "internal_error"}, headers=kind), ANY_ANSWER)
    assert "500 internal_error is not among" in wrong
    _, leak, _ = check_answer(httpx.Response(422, json=problem | {"detail": "moov atom"}, headers=kind), ANY_ANSWER)
    assert "moov" in leak
    assert check_answer(httpx.Response(422, json={"code": "undecodable_video"}, headers=kind), ANY_ANSWER)[0]
    assert check_answer(httpx.Response(200, text="<html>"), ANY_ANSWER)[0]


def test_killed_decoder_fails_only_its_own_requests(service: LiveService, files: list[HostileFile]) -> None:
    reference = next(file for file in files if file.name == REFERENCE)
    stopped = threading.Event()
    answers: list[tuple[int, str]] = []
    failing: set[str] = set()

    def work() -> None:
        with service.client() as client:
            while not stopped.is_set():
                answer = client.post("/classify", files={"file": (reference.name, reference.data)})
                answers.append((answer.status_code, answer.json().get("code", "")))

    def watch() -> None:
        while not stopped.wait(0.05):
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
    stopped.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    failed = [answer for answer in answers if answer[0] != 200]
    assert set(failed) <= {(422, "undecodable_video")}
    assert len(failed) <= num_killed
    assert len(answers) > 60
    # While a replacement starts; all other checks stay ok.
    # That of the store is about time: on a busy disk its reply may be late.
    assert failing - {"store"} <= {"decoders"}

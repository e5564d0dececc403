"""Fuzzing a running service: hostile files, then mutations of them.

Every 100th request carries a reference video, whose scores must not change. A file that breaks a rule is written to
``keep_dir``; the seed and its number reproduce it.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fuzz.access_detector import AccessDetector
from fuzz.answers import ANY_ANSWER, UNSUPPORTED, HostileFile
from fuzz.hostile_files import build
from fuzz.mutate import mutate
from fuzz.valid_files import REFERENCE
from vidlex.service.bench.harness import BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import LiveService, live_service
from vidlex.service.schemas.classify import ClassificationView

# Paths, addresses, names of libraries and their messages: no error response may contain them.
_LEAK = re.compile(
    r"/tmp|/home|/root|/work|/usr|/var|site-packages|Traceback|Error\(|Errno|0x[0-9a-f]{6}|\.py\b|redis|"
    r"(?i:ffmpeg|decord|libav|pyav|moov|invalid data|127\.0\.0\.1|detector)"
)
_REFERENCE_INTERVAL = 100
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}


@dataclass(frozen=True)
class FuzzOptions(BenchOptions):
    model: str = "dummy"
    num_files: int = 10_000
    num_clients: int = 4
    num_decoders: int = 2
    first_number: int = 0
    keep_dir: Path | None = None


@dataclass
class Findings:
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    changed_scores: list[str] = field(default_factory=list)
    num_reference: int = 0
    slowest_seconds: float = 0.0
    decoders: set[int] = field(default_factory=set)

    @property
    def is_clean(self) -> bool:
        return not (self.wrong or self.leaks or self.changed_scores)


def run(options: FuzzOptions) -> Report:
    with tempfile.TemporaryDirectory(prefix="vidlex-fuzz-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        with AccessDetector(folder) as detector:
            files = build(folder / "files", detector.url, detector.path)
            began = time.monotonic()
            with live_service(
                folder / "data",
                options.model,
                device=options.device,
                decode_workers=options.num_decoders,
                decode_timeout_seconds=10,
            ) as service:
                found = send_files(service, files, options, num_mutations=options.num_files)
                seconds = time.monotonic() - began
                num_uploads = len(service.uploads())
                survived = service.is_running and service.is_ready()
                num_replaced = len(found.decoders) - options.num_decoders
                num_logged = count_unexpected_errors(service.log_text())
            num_accesses = detector.num_accesses
    rules = {
        "service ended or not ready": float(not survived),
        "wrong statuses": len(found.wrong),
        "responses that leak internals": len(found.leaks),
        "accesses to other files and addresses": num_accesses,
        "reference videos with changed scores": len(found.changed_scores),
        "uploads left on disk": num_uploads,
        "unexpected errors in the log": num_logged,
    }
    num_sent = len(files) + options.num_files
    figures = [Figure(name=rule, value=value, at_most=0) for rule, value in rules.items()]
    figures += [
        Figure(name="files sent", value=num_sent, unit="files"),
        Figure(name="reference videos sent", value=found.num_reference),
        Figure(name="decode processes replaced", value=num_replaced),
        Figure(name="slowest answer", value=found.slowest_seconds, unit="s"),
        Figure(name="rate", value=num_sent / seconds, unit="files/s"),
    ]
    figures += [Figure(name=answer, value=count, unit="answers") for answer, count in sorted(found.answers.items())]
    note = "; ".join([*found.wrong[:5], *found.leaks[:5], *found.changed_scores[:5]])
    return report("fuzz", [Case(name="hostile and mutated files", figures=tuple(figures), note=note)], options)


def count_unexpected_errors(log: str) -> int:
    """In the service, and in a decode process, whose faults are answered as undecodable videos."""
    return sum(log.count(f'"{event}"') for event in ("internal_error", "decode_failed", "decode_reply_invalid"))


def send_files(
    service: LiveService, files: Sequence[HostileFile], options: FuzzOptions, *, num_mutations: int
) -> Findings:
    """Send all ``files``, then ``num_mutations`` mutations of them, from several concurrent clients."""
    found, lock = Findings(), threading.Lock()
    with service.client() as client:
        for label in ("red", "green", "blue"):
            client.post("/labels", json={"name": label}, params={"if_exists": "return"}).raise_for_status()
        reference = next(file for file in files if file.name == REFERENCE)
        expected = _scores(_send(client, reference.name, reference.data).json())

        def send(name: str, data: bytes, allowed: frozenset[tuple[int, str]]) -> None:
            began = time.monotonic()
            try:
                answer = _send(client, name, data)
            except httpx.HTTPError as error:
                with lock:
                    found.wrong.append(f"{name}: no answer: {type(error).__name__}")
                    _store(options, name, data)
                return
            seconds = time.monotonic() - began
            wrong, leak, key = check_answer(answer, allowed)
            with lock:
                found.answers[key] += 1
                found.slowest_seconds = max(found.slowest_seconds, seconds)
                if wrong or leak:
                    found.wrong += [f"{name}: {wrong}"] if wrong else []
                    found.leaks += [f"{name}: {leak}"] if leak else []
                    _store(options, name, data)

        def send_mutation(number: int) -> None:
            send(f"mutation {number}", mutate(videos, donors=donors, seed=options.seed, number=number), ANY_ANSWER)
            if number % _REFERENCE_INTERVAL == 0:
                answer = _send(client, reference.name, reference.data)
                is_same = answer.status_code == 200 and _scores(answer.json()) == expected
                with lock:
                    found.num_reference += 1
                    found.decoders.update(service.decoders())
                    if not is_same:
                        found.changed_scores.append(f"after {number}: {answer.status_code} {answer.text[:300]}")

        donors = [file.data for file in files]
        videos = [file.data for file in files if UNSUPPORTED not in file.allowed and file.data]
        with ThreadPoolExecutor(options.num_clients) as clients, _recording_decoders(service, found, lock):
            list(clients.map(lambda file: send(file.name, file.data, file.allowed), files))
            list(clients.map(send_mutation, range(options.first_number, options.first_number + num_mutations)))
    return found


@contextmanager
def _recording_decoders(service: LiveService, found: Findings, lock: threading.Lock) -> Iterator[None]:
    """Record the process id of every decoder, so that replacements can be counted."""
    stopped = threading.Event()

    def poll() -> None:
        while not stopped.wait(0.2):
            pids = service.decoders()
            with lock:
                found.decoders.update(pids)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def check_answer(answer: httpx.Response, allowed: frozenset[tuple[int, str]]) -> tuple[str, str, str]:
    """(violation, leak, status and code); the first two are empty for a correct answer."""
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code}: no JSON", "", "no JSON"
    code = str(body.get("code", "")) if isinstance(body, dict) else "no object"
    key = f"{answer.status_code} {code}".rstrip()
    match = _LEAK.search(answer.text) if answer.status_code != 200 else None
    leak = f"{match.group()!r} in {answer.text[:300]}" if match else ""
    if (answer.status_code, code) not in allowed:
        return f"{key} is not among {sorted(allowed)}", leak, key
    if answer.status_code == 200:
        view = ClassificationView.model_validate(body)
        if not all(0 <= label.score <= 1 for label in view.labels) or not view.labels:
            return f"scores {_scores(body)}", leak, key
    elif not body.keys() >= _PROBLEM_MEMBERS or answer.headers.get("content-type") != "application/problem+json":
        return f"{key}: no problem document", leak, key
    return "", leak, key


def _send(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
    return client.post("/classify", files={"file": (name, data, "video/mp4")})


def _scores(body: dict[str, Any]) -> str:
    return json.dumps([(label["name"], label["score"], label["similarity"]) for label in body["labels"]])


def _store(options: FuzzOptions, name: str, data: bytes) -> None:
    if options.keep_dir is not None:
        options.keep_dir.mkdir(parents=True, exist_ok=True)
        (options.keep_dir / re.sub(r"[^\w.]+", "-", name)).write_bytes(data)

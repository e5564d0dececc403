"""Thousands of damaged and hostile videos sent to a real service, which must answer each rightly and lose nothing.

No speed is compared here; every figure with a target is a rule that may not be broken once. A file that broke one is
kept in ``--keep-dir`` and can be made again from the seed and its number.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vidlex.service.bench.harness import BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.hostile_files import ANY_ANSWER, UNSUPPORTED, HostileFile, build
from vidlex.service.bench.live import Canary, LiveService, live_service
from vidlex.service.bench.mutate import mutate
from vidlex.service.schemas.classify import ClassificationView

_LEAK = re.compile(
    r"/tmp|/home|/root|/work|/usr|/var|site-packages|Traceback|Error\(|Errno|0x[0-9a-f]{6}|\.py\b|redis|"
    r"(?i:ffmpeg|decord|libav|pyav|moov|invalid data|127\.0\.0\.1|canary)"
)
"""What no answer may hold: paths, addresses, names of libraries, their messages."""
_GOOD_EVERY = 100
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}


@dataclass(frozen=True)
class FuzzOptions(BenchOptions):
    model: str = "dummy"
    num_files: int = 10_000
    num_clients: int = 4
    num_decoders: int = 2
    first_number: int = 0
    """Begin at this mutation, to repeat a single one."""
    keep_dir: Path | None = None


@dataclass
class Findings:
    """What went wrong, and what was answered."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    good_differ: list[str] = field(default_factory=list)
    num_good: int = 0
    slowest_seconds: float = 0.0
    decoders: set[int] = field(default_factory=set)

    @property
    def clean(self) -> bool:
        return not (self.wrong or self.leaks or self.good_differ)


def run(options: FuzzOptions) -> Report:
    """Send the hostile files, then ``num_files`` mutations of them and a sound one every 100th time."""
    num_files = min(options.num_files, 20) if options.quick else options.num_files
    with tempfile.TemporaryDirectory(prefix="vidlex-fuzz-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        with Canary(folder) as canary:
            files = build(folder / "files", canary.url, canary.path)
            began = time.monotonic()
            with live_service(
                folder / "data",
                options.model,
                device=options.device,
                decode_workers=options.num_decoders,
                decode_timeout_seconds=10,
            ) as service:
                found = attack(service, files, options, num_files=num_files)
                seconds = time.monotonic() - began
                left = len(service.uploads())
                survived = service.running and service.is_ready()
                extra = len(found.decoders) - options.num_decoders
                log = service.log_lines('"internal_error"')
            touches = canary.num_touches
    rules = {
        "the service ended or is not ready": float(not survived),
        "wrong statuses": len(found.wrong),
        "bodies that leak": len(found.leaks),
        "touches of the canary": touches,
        "sound videos with other scores": len(found.good_differ),
        "uploads left on disk": left,
        "unexpected errors in the log": log,
    }
    figures = [Figure(name=rule, value=value, at_most=0) for rule, value in rules.items()]
    figures += [
        Figure(name="files sent", value=len(files) + num_files, unit="files"),
        Figure(name="sound videos sent in between", value=found.num_good),
        Figure(name="decode processes that had to be replaced", value=extra),
        Figure(name="slowest answer", value=found.slowest_seconds, unit="s"),
        Figure(name="rate", value=(len(files) + num_files) / seconds, unit="files/s"),
    ]
    figures += [Figure(name=answer, value=count, unit="answers") for answer, count in sorted(found.answers.items())]
    note = "; ".join([*found.wrong[:5], *found.leaks[:5], *found.good_differ[:5]])
    return report("fuzz", [Case(name="hostile and mutated files", figures=tuple(figures), note=note)], options)


def attack(service: LiveService, files: Sequence[HostileFile], options: FuzzOptions, *, num_files: int) -> Findings:
    """All ``files`` as they are, then mutations of them, by several clients at once."""
    found, lock = Findings(), threading.Lock()
    with service.client() as client:
        for label in ("red", "green", "blue"):
            client.post("/labels", json={"name": label}, params={"if_exists": "return"}).raise_for_status()
        good = next(file for file in files if file.name == "sound.mp4")
        expected = _scores(_send(client, good.name, good.data).json())

        def send(name: str, data: bytes, allowed: frozenset[tuple[int, str]]) -> None:
            began = time.monotonic()
            try:
                answer = _send(client, name, data)
            except httpx.HTTPError as error:
                with lock:
                    found.wrong.append(f"{name}: no answer: {type(error).__name__}")
                    _keep(options, name, data)
                return
            seconds = time.monotonic() - began
            wrong, leak, key = judge(answer, allowed)
            with lock:
                found.answers[key] += 1
                found.slowest_seconds = max(found.slowest_seconds, seconds)
                if wrong or leak:
                    found.wrong += [f"{name}: {wrong}"] if wrong else []
                    found.leaks += [f"{name}: {leak}"] if leak else []
                    _keep(options, name, data)

        def send_number(number: int) -> None:
            send(f"mutation {number}", mutate(videos, pieces=pieces, seed=options.seed, number=number), ANY_ANSWER)
            if number % _GOOD_EVERY == 0:
                answer = _send(client, good.name, good.data)
                same = answer.status_code == 200 and _scores(answer.json()) == expected
                with lock:
                    found.num_good += 1
                    found.decoders.update(service.decoders())
                    if not same:
                        found.good_differ.append(f"after {number}: {answer.status_code} {answer.text[:300]}")

        pieces = [file.data for file in files]
        videos = [file.data for file in files if UNSUPPORTED not in file.allowed and file.data]
        with ThreadPoolExecutor(options.num_clients) as clients, _watching(service, found, lock):
            list(clients.map(lambda file: send(file.name, file.data, file.allowed), files))
            list(clients.map(send_number, range(options.first_number, options.first_number + num_files)))
    return found


class _watching:
    """Notes the ids of decode processes, so that each that was replaced is counted."""

    def __init__(self, service: LiveService, found: Findings, lock: threading.Lock) -> None:
        self._service, self._found, self._lock = service, found, lock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            pids = self._service.decoders()
            with self._lock:
                self._found.decoders.update(pids)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def judge(answer: httpx.Response, allowed: frozenset[tuple[int, str]]) -> tuple[str, str, str]:
    """(what is wrong with the answer, what it leaks, its kind); both empty if it is as it should be."""
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code}: no JSON", "", "no JSON"
    code = str(body.get("code", "")) if isinstance(body, dict) else "no object"
    key = f"{answer.status_code} {code}".rstrip()
    leak = _LEAK.search(answer.text) if answer.status_code != 200 else None
    leaked = f"{leak.group()!r} in {answer.text[:300]}" if leak else ""
    if (answer.status_code, code) not in allowed:
        return f"{key} is not among {sorted(allowed)}", leaked, key
    if answer.status_code == 200:
        view = ClassificationView.model_validate(body)
        if not all(0 <= label.score <= 1 for label in view.labels) or not view.labels:
            return f"scores {_scores(body)}", leaked, key
    elif not body.keys() >= _PROBLEM_MEMBERS or answer.headers.get("content-type") != "application/problem+json":
        return f"{key}: no problem document", leaked, key
    return "", leaked, key


def _send(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
    return client.post("/classify", files={"file": (name, data, "video/mp4")})


def _scores(body: dict[str, Any]) -> str:
    """Bit for bit."""
    return json.dumps([(label["name"], label["score"], label["similarity"]) for label in body["labels"]])


def _keep(options: FuzzOptions, name: str, data: bytes) -> None:
    if options.keep_dir is not None:
        options.keep_dir.mkdir(parents=True, exist_ok=True)
        (options.keep_dir / re.sub(r"[^\w.]+", "-", name)).write_bytes(data)

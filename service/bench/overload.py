"""Four times the videos that the service can take: its throughput, and how its refusals are scheduled."""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from vidlex.service.bench.harness import BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import Answers, Client, add_labels, classify_all, send, with_unique_bytes, write_videos

_MAX_THREADS = 512
_RETRY_SECONDS = 0.1
_numbers = itertools.count()


@dataclass(frozen=True)
class OverloadOptions(BenchOptions):
    overload_factor: float = 4.0
    """Requests per second, as a multiple of the capacity."""
    seconds: float = 15.0
    """Duration of each load."""
    num_clients: int = 8
    """Concurrent clients in the measurement of the capacity; more would only queue."""
    max_waiting: int = 16
    """The service's VIDLEX_MAX_WAITING_VIDEOS."""


@dataclass
class ObeyingClients:
    num_refused: int = 0
    num_accepted_on_return: int = 0
    failures: list[str] = field(default_factory=list)  # responses other than 200 and 429, and broken connections

    @property
    def accepted_share(self) -> float:
        return self.num_accepted_on_return / self.num_refused if self.num_refused else 1.0


def run(options: OverloadOptions) -> Report:
    # First clients that obey Retry-After: a stream at fixed times, a burst, a stream next to clients that ignore it.
    # Then in turn a closed loop, which measures the capacity, and requests at fixed times that are never retried.
    seconds = 0.5 if options.quick else options.seconds
    spec = "dummy" if options.quick else options.model
    waiting, clients = options.max_waiting, options.num_clients
    with tempfile.TemporaryDirectory(prefix="vidlex-overload-") as name:
        folder = Path(name)
        videos = write_videos(folder / "videos", count=4, seconds=0.4 if options.quick else 4.0)
        with live_service(folder / "data", spec, device=options.device, max_waiting_videos=waiting) as service:
            add_labels(service.url)
            first = classify_all(service.url, videos, num_requests=4 * clients, num_clients=clients)
            num_requests = max(2 * clients, round(first.rate * seconds))
            rate = options.overload_factor * first.rate
            stream = obeying(service.url, videos, rate=rate, count=round(rate * seconds / 3))
            burst = obeying(service.url, videos, rate=float("inf"), count=round(options.overload_factor * waiting))
            with ignoring(service.url, videos, num_clients=2 * waiting):
                mixed = obeying(service.url, videos, rate=first.rate / 2, count=round(first.rate * seconds / 2))
            closed, offered = [], []
            for _ in range(1 if options.quick else options.repetitions):
                closed.append(classify_all(service.url, videos, num_requests=num_requests, num_clients=clients))
                rate = options.overload_factor * closed[-1].rate
                offered.append(offer(service.url, videos, rate=rate, count=round(rate * seconds)))
            is_ready = service.is_ready()
    capacity = median(answers.rate for answers in closed)
    ratios = sorted(open_.rate / loop.rate for loop, open_ in zip(closed, offered, strict=True))
    overload = Answers(latencies=[seconds for answers in offered for seconds in answers.latencies])
    everything: list[Answers | ObeyingClients] = [*closed, *offered, stream, burst, mixed]
    failures = [failure for answers in everything for failure in answers.failures]
    num_refused = sum(answers.statuses[429] for answers in offered)
    full_seconds = (waiting + clients) / capacity
    figures = (
        Figure(name="capacity", value=capacity, unit="videos/s"),
        Figure(name="offered", value=options.overload_factor * capacity, unit="videos/s"),
        Figure(name="goodput", value=median(answers.rate for answers in offered), unit="videos/s"),
        Figure(name="goodput over capacity", value=median(ratios), at_least=0.9),
        Figure(name="goodput over capacity, least of the rounds", value=ratios[0]),
        Figure(name="refused with 429 and a Retry-After", value=num_refused, unit="requests"),
        Figure(name="failed otherwise", value=len(failures), at_most=0),
        Figure(name="accepted: p50", value=1000 * overload.percentile(0.5), unit="ms"),
        Figure(name="accepted: p99", value=1000 * overload.percentile(0.99), unit="ms", at_most=2000 * full_seconds),
        Figure(name="burst: refused", value=burst.num_refused, unit="clients"),
        Figure(name="burst: accepted on return", value=burst.accepted_share, at_least=0.9),
        Figure(name="stream: refused", value=stream.num_refused, unit="clients"),
        Figure(name="stream: accepted on return", value=stream.accepted_share, at_least=0.9),
        Figure(name="next to clients that ignore Retry-After: refused", value=mixed.num_refused, unit="clients"),
        Figure(name="next to clients that ignore Retry-After: accepted on return", value=mixed.accepted_share),
        Figure(name="ready afterwards", value=float(is_ready), at_least=1),
    )
    note = "The bound of the p99 is twice the time that a full queue takes at capacity."
    title = f"{options.overload_factor:g} times the capacity for {seconds:g} s, {Path(spec).name}"
    return report("overload", [Case(name=title, figures=figures, note="; ".join([note, *failures[:3]]))], options)


def offer(url: str, videos: Sequence[bytes], *, rate: float, count: int) -> Answers:
    """``rate`` per second at fixed times, independent of the answers. A refusal is final."""
    answers, lock = Answers(), threading.Lock()

    def request(http: Client, data: bytes) -> None:
        send(http, data, answers, lock)

    answers.seconds = _at_fixed_times(request, url, videos, rate=rate, count=count)
    return answers


def obeying(url: str, videos: Sequence[bytes], *, rate: float, count: int) -> ObeyingClients:
    """A refused client retries once, after Retry-After seconds."""
    clients, lock, answers = ObeyingClients(), threading.Lock(), Answers()

    def request(http: Client, data: bytes) -> None:
        first = send(http, data, answers, lock)
        if first is None or first.status != 429 or first.retry_after is None:
            return
        time.sleep(first.retry_after)
        second = send(http, data, answers, lock)
        with lock:
            clients.num_refused += 1
            clients.num_accepted_on_return += second is not None and second.status == 200

    _at_fixed_times(request, url, videos, rate=rate, count=count)
    clients.failures = answers.failures
    return clients


@contextmanager
def ignoring(url: str, videos: Sequence[bytes], *, num_clients: int) -> Iterator[None]:
    """In the background, clients that retry ``_RETRY_SECONDS`` after a refusal."""
    stop, lock, answers = threading.Event(), threading.Lock(), Answers()

    def client(number: int) -> None:
        with Client(url, local_address=_address(next(_numbers))) as http:
            while not stop.is_set():
                answer = send(http, with_unique_bytes(videos[number % len(videos)]), answers, lock)
                if answer is None or answer.status != 200:
                    stop.wait(_RETRY_SECONDS)

    with ThreadPoolExecutor(num_clients) as threads:
        for number in range(num_clients):
            threads.submit(client, number)
        try:
            yield
        finally:
            stop.set()


def _at_fixed_times(
    request: Callable[[Client, bytes], None], url: str, videos: Sequence[bytes], *, rate: float, count: int
) -> float:
    # Seconds from the first request to the last answer.

    def client(number: int) -> None:
        with Client(url, local_address=_address(next(_numbers))) as http:
            request(http, with_unique_bytes(videos[number % len(videos)]))

    started = time.perf_counter()
    with ThreadPoolExecutor(max(1, min(count, _MAX_THREADS))) as threads:
        for number in range(count):
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            threads.submit(client, number)
    return time.perf_counter() - started


def _address(number: int) -> str | None:
    """Clients without an API key are identified by address; Linux has a /8 of loopback addresses."""
    return f"127.1.{number // 250 % 250}.{number % 250 + 1}" if sys.platform == "linux" else None

"""Four times as many videos as the service can take: is it as fast as before, and what are the refused told?"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from vidlex.service.bench.harness import BenchOptions, Case, Figure, Report, report
from vidlex.service.bench.live import live_service
from vidlex.service.bench.load import Answers, Client, add_labels, classify_all, send, unique, write_clips

_MAX_THREADS = 512
_numbers = itertools.count()


@dataclass(frozen=True)
class OverloadOptions(BenchOptions):
    overload_factor: float = 4.0
    seconds: float = 15.0
    """How long each load lasts."""
    num_clients: int = 8
    """Enough to find the capacity; more only wait."""
    max_waiting: int = 16
    """The service's VIDLEX_MAX_WAITING_VIDEOS."""


@dataclass
class Polite:
    """What became of clients that were refused and came back once, when Retry-After said."""

    num_refused: int = 0
    num_accepted_next: int = 0
    failures: list[str] = field(default_factory=list)
    """Answers that were neither 200 nor 429, and connections that broke."""

    @property
    def share_accepted_next(self) -> float:
        return self.num_accepted_next / self.num_refused if self.num_refused else 1.0


def run(options: OverloadOptions) -> Report:
    """Requests at fixed times from clients that do as they are told, then all at once; then in turn clients that wait
    for their answers, which finds the capacity, and requests at fixed times from clients that never come back."""
    seconds = 0.5 if options.quick else options.seconds
    spec = "dummy" if options.quick else options.model
    waiting, clients = options.max_waiting, options.num_clients
    with tempfile.TemporaryDirectory(prefix="vidlex-overload-") as name:
        folder = Path(name)
        clips = write_clips(folder / "clips", count=4, seconds=0.4 if options.quick else 4.0)
        with live_service(folder / "data", spec, device=options.device, max_waiting_videos=waiting) as service:
            add_labels(service.url)
            tried = classify_all(service.url, clips, num_requests=4 * clients, num_clients=clients)
            num_requests = max(2 * clients, round(tried.rate * seconds))
            rate = options.overload_factor * tried.rate
            stream = obeying(service.url, clips, rate=rate, count=round(rate * seconds / 3))
            herd = obeying(service.url, clips, rate=float("inf"), count=round(options.overload_factor * waiting))
            calms, floods = [], []
            for _ in range(1 if options.quick else options.repetitions):
                calms.append(classify_all(service.url, clips, num_requests=num_requests, num_clients=clients))
                rate = options.overload_factor * calms[-1].rate
                floods.append(offer(service.url, clips, rate=rate, count=round(rate * seconds)))
            survived = service.is_ready()
    capacity = median(calm.rate for calm in calms)
    ratios = sorted(flood.rate / calm.rate for calm, flood in zip(calms, floods, strict=True))
    flood = Answers(latencies=[seconds for flood in floods for seconds in flood.latencies])
    found: list[Answers | Polite] = [*calms, *floods, stream, herd]
    failures = [failure for answers in found for failure in answers.failures]
    full_seconds = (waiting + clients) / capacity
    figures = (
        Figure(name="capacity", value=capacity, unit="videos/s"),
        Figure(name="offered", value=options.overload_factor * capacity, unit="videos/s"),
        Figure(name="goodput", value=median(flood.rate for flood in floods), unit="videos/s"),
        Figure(name="goodput over capacity", value=median(ratios), at_least=0.9),
        Figure(name="goodput over capacity, least of the rounds", value=ratios[0]),
        Figure(name="refused with 429 and a Retry-After", value=sum(f.statuses[429] for f in floods), unit="requests"),
        Figure(name="failed otherwise", value=len(failures), at_most=0),
        Figure(name="accepted: p50", value=1000 * flood.percentile(0.5), unit="ms"),
        Figure(name="accepted: p99", value=1000 * flood.percentile(0.99), unit="ms", at_most=2000 * full_seconds),
        Figure(name="refused of a crowd that comes at once", value=herd.num_refused, unit="clients"),
        Figure(name="of the crowd accepted when told to return", value=herd.share_accepted_next, at_least=0.9),
        Figure(name="refused of a stream that obeys", value=stream.num_refused, unit="clients"),
        Figure(name="of the stream accepted when told to return", value=stream.share_accepted_next, at_least=0.9),
        Figure(name="ready afterwards", value=float(survived), at_least=1),
    )
    note = "The bound of the p99 is twice the time that a full queue takes at capacity."
    title = f"{options.overload_factor:g} times the capacity for {seconds:g} s, {Path(spec).name}"
    told = "; ".join([note, *failures[:3]])
    return report("overload", [Case(name=title, figures=figures, note=told)], options)


def offer(url: str, clips: Sequence[bytes], *, rate: float, count: int) -> Answers:
    """``count`` requests at fixed times, ``rate`` a second, each of a client of its own, whether or not others are
    done. Nobody comes back."""
    found, lock = Answers(), threading.Lock()

    def come(http: Client, data: bytes) -> None:
        send(http, data, found, lock)

    found.seconds = _at_fixed_times(come, url, clips, rate=rate, count=count)
    return found


def obeying(url: str, clips: Sequence[bytes], *, rate: float, count: int) -> Polite:
    """As ``offer``, but who is refused comes back once, after as many seconds as Retry-After says."""
    told, lock, found = Polite(), threading.Lock(), Answers()

    def come(http: Client, data: bytes) -> None:
        first = send(http, data, found, lock)
        if first is None or first.status != 429 or first.retry_after is None:
            return
        time.sleep(first.retry_after)
        second = send(http, data, found, lock)
        with lock:
            told.num_refused += 1
            told.num_accepted_next += second is not None and second.status == 200

    _at_fixed_times(come, url, clips, rate=rate, count=count)
    told.failures = found.failures
    return told


def _at_fixed_times(
    come: Callable[[Client, bytes], None], url: str, clips: Sequence[bytes], *, rate: float, count: int
) -> float:
    """Seconds from the first request to the last answer."""

    def client(number: int) -> None:
        with Client(url, local_address=_address(next(_numbers))) as http:
            come(http, unique(clips[number % len(clips)]))

    began = time.perf_counter()
    with ThreadPoolExecutor(max(1, min(count, _MAX_THREADS))) as threads:
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            threads.submit(client, number)
    return time.perf_counter() - began


def _address(number: int) -> str | None:
    """Clients are known by their addresses. Linux has 16 million on its loopback, others one."""
    return f"127.1.{number // 250 % 250}.{number % 250 + 1}" if sys.platform == "linux" else None

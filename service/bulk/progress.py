"""How far a run is: a bar on a terminal, JSON lines elsewhere, and a summary."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from vidlex.service.bulk.engine import BusyShares
from vidlex.service.bulk.run import Tagged

RATE_SECONDS = 30.0  # that the present rate is of
LINE_SECONDS = 10.0  # between two JSON lines
BAR_SECONDS = 0.5
MIN_SECONDS, MIN_VIDEOS = 10.0, 50  # of a run whose shares say what it lacks
HIGH_SHARE = 0.85
LOW_SHARE = 0.6


class Reporter(Protocol):
    def add(self, tagged: Tagged) -> None: ...

    def close(self) -> None: ...


@dataclass
class RunCounts:
    """``busy`` is asked for the engine's shares."""

    total: int | None
    busy: Callable[[], BusyShares | None] = lambda: None
    num_done: int = 0
    num_new: int = 0
    num_failed: int = 0
    video_ms: int = 0  # of the videos that were tagged now
    failures: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque([(self.started, 0)])
        self._first_shares = self._last_shares = self.busy()
        self._last_time = self.started
        self._num_new_failed = 0

    def add(self, tagged: Tagged) -> None:
        self.num_done += 1
        self.num_new += tagged.is_new
        result = tagged.result
        if result.failure is not None:
            self.num_failed += 1
            self._num_new_failed += tagged.is_new
            self.failures[result.failure.code] += 1
        elif tagged.is_new and result.video is not None:
            self.video_ms += result.video.duration_ms

    def snapshot(self) -> dict[str, Any]:
        """Rates and shares are those since the last snapshots; None where they are not known."""
        now = time.monotonic()
        self._recent.append((now, self.num_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()
        then, num_then = self._recent[0]
        rate = (self.num_done - num_then) / max(1e-6, now - then)
        left = None if self.total is None or rate <= 0 else (self.total - self.num_done) / rate
        shares = self.busy()
        decode, device = _shares(self._last_shares, shares, now - self._last_time)
        self._last_shares, self._last_time = shares, now
        return {
            "done": self.num_done,
            "total": self.total,
            "failed": self.num_failed,
            "per_second": round(rate, 2),
            "seconds_left": None if left is None else round(left),
            "decode_busy": decode,
            "device_busy": device,
        }

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        decode, device = _shares(self._first_shares, self.busy(), seconds)
        is_telling = seconds >= MIN_SECONDS and self.num_new >= MIN_VIDEOS
        return {
            "num_videos": self.num_done,
            "num_tagged": self.num_new - self._num_new_failed,
            "num_reused": self.num_done - self.num_new,  # of this run or an earlier one
            "num_failed": self.num_failed,
            "failures": dict(sorted(self.failures.items())),
            "seconds": round(seconds, 1),
            "videos_per_second": round(self.num_new / max(1e-6, seconds), 2),
            "video_seconds_per_second": round(self.video_ms / 1000 / max(1e-6, seconds), 1),
            "decode_busy": decode,
            "device_busy": device,
            "bottleneck": bottleneck(decode, device) if is_telling else None,
        }


def bottleneck(decode: float | None, device: float | None) -> str | None:
    """What more of would make the run faster; None if neither share is high, or not known."""
    if decode is not None and decode >= HIGH_SHARE and (device or 0) < decode:
        return "decode: more CPU cores make it faster"
    if device is not None and device >= HIGH_SHARE:
        return "device: a faster device, or more of them, makes it faster"
    if decode is not None and device is not None and max(decode, device) < LOW_SHARE:
        return "input: neither decode processes nor the device are busy; the disk or the network is slow"
    return None


def reporter(counts: RunCounts, *, as_json: bool) -> Reporter:
    if sys.stderr.isatty() and not as_json:
        return BarReporter(counts)
    return LineReporter(counts)


class LineReporter:
    """One JSON object per line on stderr, every ``LINE_SECONDS`` in which results come."""

    def __init__(self, counts: RunCounts) -> None:
        self.counts = counts
        self._last = time.monotonic()

    def add(self, tagged: Tagged) -> None:
        self.counts.add(tagged)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"event": "tagging", "timestamp": stamp, **self.counts.snapshot()}
        print(json.dumps(line), file=sys.stderr, flush=True)


class BarReporter:
    def __init__(self, counts: RunCounts) -> None:
        self.counts = counts
        self._last = 0.0
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("tagging"),
            BarColumn(),
            _StateColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.add_task("tagging", total=counts.total, **_fields(counts.snapshot()))
        self._bar.start()

    def add(self, tagged: Tagged) -> None:
        self.counts.add(tagged)
        if time.monotonic() - self._last >= BAR_SECONDS:
            self._last = time.monotonic()
            state = self.counts.snapshot()
            self._bar.update(self._bar.task_ids[0], completed=self.counts.num_done, **_fields(state))

    def close(self) -> None:
        self._bar.stop()


class _StateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(describe(task.fields))


def _fields(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "total"} | {"num_total": state["total"]}


def describe(state: dict[str, Any]) -> str:
    """Such as "120/1000, 2 failed, 14.2/s, 1 min left; decode 98 %, device 30 % busy"."""
    total = state.get("num_total", state.get("total"))
    words = [f"{state['done']}/{total}" if total is not None else f"{state['done']}"]
    if state["failed"]:
        words.append(f"{state['failed']} failed")
    words.append(f"{state['per_second']:.1f}/s")
    if state["seconds_left"] is not None:
        words.append(f"{_duration(state['seconds_left'])} left")
    shares = [f"{name} {100 * state[f'{name}_busy']:.0f} %" for name in ("decode", "device") if _known(state, name)]
    return ", ".join(words) + (f"; {', '.join(shares)} busy" if shares else "")


def _known(state: dict[str, Any], name: str) -> bool:
    return state[f"{name}_busy"] is not None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _shares(before: BusyShares | None, after: BusyShares | None, seconds: float) -> tuple[float | None, float | None]:
    if before is None or after is None or seconds <= 0:
        return None, None
    decode = (after.decode_seconds - before.decode_seconds) / seconds / max(1, after.num_decoders)
    device = (after.device_seconds - before.device_seconds) / seconds / max(1, after.num_devices)
    return (
        round(min(1.0, decode), 3) if after.num_decoders else None,
        round(min(1.0, device), 3) if after.num_devices else None,
    )

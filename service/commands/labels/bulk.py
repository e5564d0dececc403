"""Registers many labels with a running service: adaptive batch sizes, progress, bounded memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vidlex.service.bounds import MAX_BATCH_JSON_VALUES, MAX_BATCH_LABELS
from vidlex.service.commands.output import progress, stderr

if TYPE_CHECKING:
    from vidlex.service.client.calls import IfExists
    from vidlex.service.client.client import Client

# Small, because each new label is encoded, and a slow encoder must not exceed the client's timeout.
FIRST_BATCH = 50
MAX_BATCH_BYTES = 4 * 2**20
FAST_SECONDS = 2.0
SLOW_SECONDS = 10.0
REPORT_INTERVAL_SECONDS = 10.0

# The fraction of the source that has been read; None if its size is unknown.
ReadFraction = Callable[[], float | None]


def register(
    client: Client,
    entries: Iterable[dict[str, Any]],
    *,
    if_exists: IfExists,
    read_fraction: ReadFraction = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Register labels. Yields {"name", "status", "label"} or {"name", "status", "error": problem} per entry.

    Labels whose parents do not exist yet are retried after all others, for as long as a pass registers any; they are
    deferred to a file. The other results keep the order of the entries.
    """
    rate = _Rate(read_fraction)
    pending = entries
    while True:
        num_registered = 0
        with tempfile.TemporaryFile("w+", encoding="utf-8") as deferred_file:
            num_deferred = 0
            for entry, item in _send(client, pending, if_exists, rate):
                if (item.get("error") or {}).get("code") == "parent_not_found":
                    deferred_file.write(json.dumps([entry, item]) + "\n")
                    num_deferred += 1
                    continue
                num_registered += not item.get("error")
                yield {"name": entry["name"], **item}
            deferred_file.seek(0)
            deferred = (json.loads(line) for line in deferred_file)
            if not num_deferred:
                return
            if not num_registered:
                yield from ({"name": entry["name"], **item} for entry, item in deferred)
                return
            pending = _spooled(entry for entry, _ in deferred)


def _spooled(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Copy the entries to a temporary file, which is deleted once they are read."""
    file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    file.writelines(json.dumps(entry) + "\n" for entry in entries)
    file.seek(0)

    def lines() -> Iterator[dict[str, Any]]:
        with file:
            yield from map(json.loads, file)

    return lines()


def _send(
    client: Client, entries: Iterable[dict[str, Any]], if_exists: IfExists, rate: _Rate
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    size = FIRST_BATCH
    rest = iter(entries)
    with progress("registering labels", total=None) as bar:
        overflow: list[dict[str, Any]] = []
        while batch := _take(rest, size, overflow):
            started = time.monotonic()
            results = client.create_labels(batch, if_exists=if_exists)
            seconds = time.monotonic() - started
            if seconds < FAST_SECONDS:
                size = min(MAX_BATCH_LABELS, size * 2)
            elif seconds > SLOW_SECONDS:
                size = max(10, size // 2)
            rate.add(len(batch))
            bar.update(bar.task_ids[0], description=f"registering labels: {rate.describe()}", completed=rate.num_done)
            rate.print_at_intervals()
            for entry, result in zip(batch, results, strict=True):
                yield entry, result.model_dump(mode="json")


def _take(rest: Iterator[dict[str, Any]], size: int, overflow: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to ``size`` entries of at most MAX_BATCH_BYTES; an entry that does not fit is moved to ``overflow``."""
    batch: list[dict[str, Any]] = []
    num_bytes = num_values = 0
    while len(batch) < size:
        entry = overflow.pop() if overflow else next(rest, None)
        if entry is None:
            break
        text = json.dumps(entry)
        num_bytes += len(text)
        num_values += text.count(",") + text.count("[") + text.count("{")  # or more, because texts contain them too
        if batch and (num_bytes > MAX_BATCH_BYTES or num_values > MAX_BATCH_JSON_VALUES // 2):
            overflow.append(entry)
            break
        batch.append(entry)
    return batch


class _Rate:
    """Labels per second, and the remaining time estimated from the fraction of the source that has been read."""

    def __init__(self, read_fraction: ReadFraction) -> None:
        self._read_fraction = read_fraction
        self._started = self._printed = time.monotonic()
        self.num_done = 0

    def add(self, count: int) -> None:
        self.num_done += count

    def describe(self) -> str:
        seconds = time.monotonic() - self._started
        rate = self.num_done / max(seconds, 1e-9)
        text = f"{self.num_done} done, {rate:.{1 if rate < 10 else 0}f}/s"
        fraction = self._read_fraction()
        if fraction:
            left = round(seconds * (1 - fraction) / fraction)
            text += f", {left // 60}:{left % 60:02d} left"
        return text

    def print_at_intervals(self) -> None:
        """Print the rate every REPORT_INTERVAL_SECONDS if stderr is not a terminal."""
        now = time.monotonic()
        if now - self._printed >= REPORT_INTERVAL_SECONDS and not sys.stderr.isatty():
            self._printed = now
            stderr().print(self.describe(), soft_wrap=True)

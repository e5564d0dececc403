"""Many labels to a running service: batches that grow while it is fast, rate and time left, bounded memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vidlex.service.commands.client import ServiceClient
from vidlex.service.commands.output import progress, stderr

FIRST_BATCH = 50
"""Each new label costs a run of the label encoder, so the first batch must end well before a timeout."""
MAX_BATCH = 1000
MAX_BATCH_BYTES = 4 * 2**20
FAST_SECONDS = 2.0
SLOW_SECONDS = 10.0
REPORT_SECONDS = 10.0

Share = Callable[[], float | None]
"""How much of the source is read, 0 to 1; None where that cannot be told."""


def register(
    client: ServiceClient, entries: Iterable[dict[str, Any]], *, if_exists: str, share: Share = lambda: None
) -> Iterator[dict[str, Any]]:
    """Register labels; per entry {"name", "status", "label"} or {"name", "status", "error": problem}.

    In the order given, except that labels whose parents are not there yet come again at the end, when others have
    been registered; they wait in a file, not in memory.
    """
    rate = _Rate(share)
    waiting = entries
    while True:
        num_registered = 0
        with tempfile.TemporaryFile("w+", encoding="utf-8") as later:
            num_later = 0
            for entry, item in _send(client, waiting, if_exists, rate):
                if (item.get("error") or {}).get("code") == "parent_not_found":
                    later.write(json.dumps([entry, item]) + "\n")
                    num_later += 1
                    continue
                num_registered += not item.get("error")
                yield {"name": entry["name"], **item}
            later.seek(0)
            kept = (json.loads(line) for line in later)
            if not num_later:
                return
            if not num_registered:
                yield from ({"name": entry["name"], **item} for entry, item in kept)
                return
            # A pass over what is left; what waits again goes to the next file while this one is read.
            waiting = _copied(entry for entry, _ in kept)


def _copied(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The entries, from a file of their own that lives as long as it is read."""
    file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    file.writelines(json.dumps(entry) + "\n" for entry in entries)
    file.seek(0)

    def lines() -> Iterator[dict[str, Any]]:
        with file:
            yield from map(json.loads, file)

    return lines()


def _send(
    client: ServiceClient, entries: Iterable[dict[str, Any]], if_exists: str, rate: _Rate
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    size = FIRST_BATCH
    rest = iter(entries)
    with progress("registering labels", total=None) as bar:
        held: list[dict[str, Any]] = []
        while batch := _take(rest, size, held):
            started = time.monotonic()
            answer = client.call("POST", "/labels", params={"if_exists": if_exists}, json={"labels": batch})
            seconds = time.monotonic() - started
            if seconds < FAST_SECONDS:
                size = min(MAX_BATCH, size * 2)
            elif seconds > SLOW_SECONDS:
                size = max(10, size // 2)
            rate.add(len(batch))
            bar.update(bar.task_ids[0], description=f"registering labels: {rate.describe()}", completed=rate.num_done)
            rate.report()
            yield from zip(batch, answer["data"], strict=True)


def _take(rest: Iterator[dict[str, Any]], size: int, held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to ``size`` entries of together at most MAX_BATCH_BYTES; the first one too many waits in ``held``."""
    batch: list[dict[str, Any]] = []
    num_bytes = 0
    while len(batch) < size:
        entry = held.pop() if held else next(rest, None)
        if entry is None:
            break
        num_bytes += len(json.dumps(entry))
        if batch and num_bytes > MAX_BATCH_BYTES:
            held.append(entry)
            break
        batch.append(entry)
    return batch


class _Rate:
    """Labels per second since the start, and from the share that is read the time left."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._started = self._reported = time.monotonic()
        self.num_done = 0

    def add(self, count: int) -> None:
        self.num_done += count

    def describe(self) -> str:
        seconds = time.monotonic() - self._started
        text = f"{self.num_done} done, {self.num_done / max(seconds, 1e-9):.0f} a second"
        share = self._share()
        if share:
            left = round(seconds * (1 - share) / share)
            text += f", {left // 60}:{left % 60:02d} left"
        return text

    def report(self) -> None:
        """A line now and then where no progress bar is seen."""
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS and not sys.stderr.isatty():
            self._reported = now
            stderr().print(self.describe())

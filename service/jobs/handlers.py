"""What does the work of a kind of job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vidlex.service.jobs.records import EventType, Job, JobProgress


@dataclass(frozen=True, eq=False)
class JobWork:
    """Of one attempt at a job. ``cancelled`` is set once its result is of no use any more: the job was cancelled or
    timed out, its lease was lost, or this process stops."""

    deadline: float  # of time.monotonic
    cancelled: threading.Event
    report: Callable[[JobProgress], None]  # cheap: only the newest of the last half second is stored
    emit: Callable[[EventType, Mapping[str, Any]], None]


class JobHandler(Protocol):
    def __call__(self, job: Job, work: JobWork) -> Mapping[str, Any]:
        """Blocks. Returns the result, as JSON.

        May run more than once for one job, after its process was killed: what it writes elsewhere it must write again
        without harm. A VidlexError fails the job with its code; one of status 429 or 503 is tried again.
        """

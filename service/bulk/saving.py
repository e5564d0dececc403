"""A run whose results go to a file or a folder, from Python."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from vidlex.service.bulk.engine import TagEngine
from vidlex.service.bulk.fetch import Cancelled
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.output import TagOutput
from vidlex.service.bulk.run import run_numbered
from vidlex.service.bulk.source import VideoSource


@dataclass(frozen=True, slots=True)
class SavedRun:
    locations: Sequence[str]  # what was written
    num_videos: int
    num_new: int  # tagged now, not taken from an earlier run or from a file of equal content
    num_failed: int


def tag_to(
    engine: TagEngine,
    sources: Iterable[VideoSource],
    options: TagOptions,
    out: str,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    cancelled: threading.Event | None = None,
) -> SavedRun:
    """As `vidlex tag`, with its formats. What is done is kept when the run ends early; ``resume`` continues it.

    Raises OutputError, Cancelled once ``cancelled`` is set, and as ``run`` does.
    """
    num_videos = num_new = num_failed = 0
    with closing(TagOutput(out, resume=resume or retry_failed, overwrite=overwrite)) as output:
        output.start(engine.identity, options, retry_failed=retry_failed)
        with closing(run_numbered(sources, engine, options, known=output, cancelled=cancelled)) as results:  # type: ignore[type-var]
            for tagged in results:
                output.add(tagged)
                num_videos += 1
                num_new += tagged.is_new
                num_failed += tagged.result.failure is not None
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        return SavedRun(output.finish(), num_videos, num_new, num_failed)

"""WebVTT: a cue per stretch of a label, which players show as subtitles (www.w3.org/TR/webvtt1)."""

from __future__ import annotations

from collections.abc import Iterator

from vidlex.service.exports.tagged import TaggedVideo

_MIN_CUE_MS = 1  # a cue must not be empty


def webvtt(video: TaggedVideo) -> Iterator[str]:
    """The lines of a file, each with its end. Cues are in order of time; the matched labels only."""
    cues = sorted(
        (stretch.start_ms, max(stretch.end_ms, stretch.start_ms + _MIN_CUE_MS), label.name, stretch.score)
        for label in video.matched
        for stretch in video.stretches(label)
    )
    yield "WEBVTT\n"
    for start_ms, end_ms, name, score in cues:
        yield f"\n{_time(start_ms)} --> {_time(end_ms)}\n{_text(name)} ({score:.2f})\n"


def _time(time_ms: int) -> str:
    seconds, ms = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{ms:03}"


def _text(name: str) -> str:
    """In one line, without markup. "-->" would end the cue."""
    one_line = " ".join(name.split())
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""Decodes the sampled frames of a video file, scaled to the model's input size.

Files are untrusted: `model.decode.probe` validates a file before its frames are decoded. Native decoders can still
crash or hang: decode untrusted files in a process that can be killed.

Imports no torch: every decode process loads this module and must stay small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vidlex.model.decode.frame_content import FrameContentDetector
from vidlex.model.decode.limits import DecodeError, DecodeLimits
from vidlex.model.decode.looks import MAX_UNSEEN_MS, choose_looks
from vidlex.model.decode.readers import ReaderError
from vidlex.model.decode.sampling import Indices, select_frames
from vidlex.model.decode.source import VideoSource
from vidlex.model.decode.video_file import VideoFile, nearest, undecodable
from vidlex.model.types import SHORT_MS, DecoderName, FrameBatch, FrameGeometry, FramePolicy

_MIN_COVERED = 0.95


@dataclass(frozen=True)
class _Job:
    num_frames: int
    segment_ms: int | None
    policy: FramePolicy
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, eq=False)
class _Plan:
    indices: Indices  # [T], not decreasing
    is_short: bool  # one segment, without shots
    warnings: tuple[tuple[str, str], ...]


def decode_frames(
    source: VideoSource,
    *,
    geometry: FrameGeometry,
    num_frames: int,
    segment_ms: int | None = None,
    policy: FramePolicy = "uniform",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    num_threads: int = 0,
    decoder: DecoderName = "auto",
) -> FrameBatch:
    """``num_frames`` upright square RGB frames of the window [start_ms, end_ms), by default the whole video.

    With ``segment_ms`` the window is divided into segments of that length, the last possibly shorter, and
    ``num_frames`` per segment are sampled evenly over the window. Policy ``shots`` looks at a window longer than
    SHORT_MS at least every MAX_UNSEEN_MS, up to ``limits.max_looks`` frames; ``num_frames`` is then that of a
    shorter window. A frame that cannot be decoded is replaced by the nearest good one and counted in ``num_failed``.
    ``num_threads`` = 0 uses one thread per core, at most 16. Neither it nor ``decoder`` (the preferred reader) changes
    a pixel. Raises `DecodeError`, or OSError if the file cannot be read.
    """
    (batch,) = decode_chunks(
        source,
        max_chunk_frames=sys.maxsize,
        with_content=False,
        geometry=geometry,
        num_frames=num_frames,
        segment_ms=segment_ms,
        policy=policy,
        start_ms=start_ms,
        end_ms=end_ms,
        limits=limits,
        num_threads=num_threads,
        decoder=decoder,
    )
    return batch


def decode_chunks(
    source: VideoSource,
    *,
    max_chunk_frames: int,
    with_content: bool = True,
    geometry: FrameGeometry,
    num_frames: int,
    segment_ms: int | None = None,
    policy: FramePolicy = "uniform",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    num_threads: int = 0,
    decoder: DecoderName = "auto",
) -> Iterator[FrameBatch]:
    """The frames of `decode_frames` in batches of at most ``max_chunk_frames``; only one is in memory.

    The first batch carries the warnings about the file, the last one that about damaged frames. ``with_content``: say
    what the frames show, 0.2 ms each.
    """
    job = _Job(num_frames, segment_ms, policy, start_ms, end_ms)
    _check_job(job, limits)
    video = VideoFile(source, limits, num_threads=num_threads, decoder=decoder)
    plan = _plan(video, job, limits)
    remaining, num_frames_in_all, num_failed = plan.indices, len(plan.indices), 0
    warnings = plan.warnings
    detector, last_ms = FrameContentDetector() if with_content else None, 0
    while len(remaining):
        part, rest = remaining[:max_chunk_frames], remaining[max_chunk_frames:]
        try:
            read = video.read(part, geometry)
        except ReaderError as error:
            if video.is_scanned:
                raise undecodable(str(error)) from error
            wanted = video.index.pts[remaining]
            is_first = len(remaining) == num_frames_in_all
            video.scan(str(error))
            if is_first:
                plan = _plan(video, job, limits)
                remaining, num_frames_in_all, warnings = plan.indices, len(plan.indices), plan.warnings
            else:
                remaining = nearest(wanted, video.index.pts)
            continue
        num_failed += read.num_failed
        remaining = rest
        if not len(rest) and num_failed:
            warnings += (("damaged_frames", _damage(num_failed, num_frames_in_all)),)
        content = None if detector is None else detector.add(read.frames)
        if content is not None and plan.is_short:
            content = replace(content, starts_shot=np.zeros(len(part), np.bool_))
        times = tuple(max(time, last_ms) for time in read.timestamps_ms)  # a scan may shift the start
        last_ms = times[-1]
        batch = FrameBatch(read.frames, times, video.info, warnings, read.num_failed, content)
        del read, content
        yield batch
        del batch  # its memory is not needed while the next one is decoded
        warnings = ()


def _plan(video: VideoFile, job: _Job, limits: DecodeLimits) -> _Plan:
    """Which frames to decode. Raises DecodeError for a window outside the video or with too many segments."""
    index = video.index
    start, end = _window(job.start_ms, job.end_ms, video.duration_ms)
    num_frames, policy, warnings = job.num_frames, job.policy, video.warnings
    if job.segment_ms is not None:
        num_frames *= len(range(start, end, job.segment_ms))
        if num_frames > limits.max_total_frames:
            raise DecodeError("too_many_frames", f"The segments need more than {limits.max_total_frames} frames.")
    is_short = end - start <= SHORT_MS
    if policy == "shots" and not is_short:
        end = max(start + 1, min(end, index.end_ms))  # a still end has one frame
        indices = choose_looks(
            index.starts_ms,
            index.keyframes,
            index.num_bytes,
            start_ms=start,
            end_ms=end,
            max_looks=min(limits.max_looks, limits.max_total_frames),
        )
        covered = _covered_share(index.starts_ms, indices, start, end)
        if covered < _MIN_COVERED:
            warnings += (("sparse_sampling", _sparse(len(indices), covered)),)
        return _Plan(indices, False, warnings)
    indices = select_frames(
        index.starts_ms,
        num_frames=num_frames,
        start_ms=start,
        end_ms=end,
        policy="keyframes" if policy == "keyframes" else "uniform",
        keyframes=index.keyframes,
    )
    num_distinct = len(np.unique(indices))
    if policy == "keyframes" and num_distinct < num_frames:
        warnings += (("few_keyframes", _few_keyframes(num_distinct, num_frames)),)
    return _Plan(indices, policy == "shots", warnings)


def _covered_share(starts_ms: Indices, looks: Indices, start_ms: int, end_ms: int) -> float:
    """Of the window, without the time in which frames are shown for longer than MAX_UNSEEN_MS without a look."""
    last_frame = int(np.searchsorted(starts_ms, end_ms)) - 1
    edges = np.concatenate([[start_ms], starts_ms[looks], [end_ms]])
    has_frames = np.diff(np.concatenate([[looks[0] - 1], looks, [last_frame + 1]])) > 1
    has_frames[0] = looks[0] > 0
    gaps = np.where(has_frames, np.diff(edges), 0)
    return float(1 - (gaps - MAX_UNSEEN_MS).clip(0).sum() / (end_ms - start_ms))


def _damage(num_failed: int, num_frames: int) -> str:
    return f"{num_failed} of {num_frames} sampled frames cannot be decoded; the nearest good ones took their place"


def _sparse(num_looks: int, covered: float) -> str:
    return (
        f"{num_looks} frames are the limit and cover {covered:.0%} of the video: elsewhere a scene of "
        f"{MAX_UNSEEN_MS / 1000:g} s may be missed"
    )


def _few_keyframes(num_distinct: int, num_frames: int) -> str:
    return f"The window has {num_distinct} key frames for {num_frames} frames; the last one was repeated"


# --- validation --------------------------------------------------------------------------------------------------


def _check_job(job: _Job, limits: DecodeLimits) -> None:
    if not 1 <= job.num_frames <= limits.max_frames:
        raise DecodeError(
            "invalid_parameter", f"num_frames must be between 1 and {limits.max_frames}, not {job.num_frames}."
        )
    if job.policy not in ("uniform", "keyframes", "shots"):
        raise DecodeError("invalid_parameter", "The frame policy must be uniform, keyframes or shots.")
    if job.segment_ms is not None and job.segment_ms < 1:
        raise DecodeError("invalid_parameter", f"segment_ms must be positive, not {job.segment_ms}.")
    if job.start_ms is not None and job.start_ms < 0:
        raise DecodeError("invalid_parameter", f"start_ms must not be negative, not {job.start_ms}.")
    if job.end_ms is not None and job.end_ms <= (job.start_ms or 0):
        raise DecodeError("invalid_parameter", f"end_ms must be greater than start_ms, not {job.end_ms}.")


def _window(start_ms: int | None, end_ms: int | None, duration_ms: int) -> tuple[int, int]:
    start, end = start_ms or 0, min(duration_ms if end_ms is None else end_ms, duration_ms)
    if start >= duration_ms:
        raise DecodeError("invalid_parameter", f"start_ms is {start}, but the video is only {duration_ms} ms long.")
    return start, end
